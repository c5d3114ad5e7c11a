//! A guest that fits into a boot sector, in QEMU's emulation: it counts in memory, and for each
//! byte that comes on its serial line fills 64 KiB and a sector of its disk with it, and answers
//! with the byte. For a question mark it reads the sector instead. It runs wherever QEMU does, and starts in a fraction of a second.

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// RAM in bytes.
pub(crate) const RAM: u64 = 64 << 20;

/// Where the guest counts, and what it fills.
pub(crate) const COUNTER: u64 = 0x9000;
pub(crate) const FILLED: std::ops::Range<usize> = 0x2_0000..0x3_0000;

/// Where it reads its disk.
const SECTOR: u64 = 0x3_0000;

/// The video memory, which is no RAM.
const VIDEO: std::ops::Range<usize> = 0xa_0000..0xc_0000;

/// The guest:
///
/// ```text
/// start:  cli; xor ax,ax; mov ds,ax; mov ss,ax; mov sp,0x7c00; sti
///         mov [0x9010],dl; mov dword [0x9000],0; mov al,'R'; call put
/// next:   inc dword [0x9000]; mov dx,0x3fd; in al,dx; test al,1; jz next
///         mov dx,0x3f8; in al,dx; cmp al,'?'; je read
///         push 0x2000; pop es; cld; xor di,di; mov cx,0x8000; mov ah,al; rep stosw
///         push ax; xor bx,bx; mov ax,0x0301; mov cx,2; mov dh,0; mov dl,[0x9010]; int 0x13
///         jc bad; pop ax; call put; jmp next
/// read:   push 0x3000; pop es; xor bx,bx; mov ax,0x0201; mov cx,2; mov dh,0; mov dl,[0x9010]
///         int 0x13; jc bad; mov al,'?'; call put; jmp next
/// bad:    mov al,'!'; call put; jmp next
/// put:    mov ah,al; mov dx,0x3fd
/// wait:   in al,dx; test al,0x20; jz wait; mov al,ah; mov dx,0x3f8; out dx,al; ret
/// ```
const BOOT: [u8; 142] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, 0x88, 0x16, 0x10, 0x90, 0x66,
    0xc7, 0x06, 0x00, 0x90, 0x00, 0x00, 0x00, 0x00, 0xb0, 0x52, 0xe8, 0x60, 0x00, 0x66, 0xff, 0x06,
    0x00, 0x90, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf3, 0xba, 0xf8, 0x03, 0xec, 0x3c, 0x3f,
    0x74, 0x27, 0x68, 0x00, 0x20, 0x07, 0xfc, 0x31, 0xff, 0xb9, 0x00, 0x80, 0x88, 0xc4, 0xf3, 0xab,
    0x50, 0x31, 0xdb, 0xb8, 0x01, 0x03, 0xb9, 0x02, 0x00, 0xb6, 0x00, 0x8a, 0x16, 0x10, 0x90, 0xcd,
    0x13, 0x72, 0x23, 0x58, 0xe8, 0x26, 0x00, 0xeb, 0xc4, 0x68, 0x00, 0x30, 0x07, 0x31, 0xdb, 0xb8,
    0x01, 0x02, 0xb9, 0x02, 0x00, 0xb6, 0x00, 0x8a, 0x16, 0x10, 0x90, 0xcd, 0x13, 0x72, 0x07, 0xb0,
    0x3f, 0xe8, 0x09, 0x00, 0xeb, 0xa7, 0xb0, 0x21, 0xe8, 0x02, 0x00, 0xeb, 0xa0, 0x88, 0xc4, 0xba,
    0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, 0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, 0xc3,
];

/// Whether QEMU is here; says so loudly if not.
pub(crate) fn has_qemu() -> bool {
    let is_there = |name: &str| {
        let mut command = Command::new(name);
        command.arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    let found = is_there("qemu-system-x86_64") && is_there("qemu-img");
    if !found {
        println!("******** SKIPPED: there is no qemu-system-x86_64 and qemu-img ********");
    }
    found
}

/// Starts QEMU in `folder`, where its sockets are.
fn qemu(folder: &Path, memory: &str, drive: &str, more: &[&str]) -> Child {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg"]);
    command.args(["-M", "pc,memory-backend=ram", "-m", "64", "-object", memory]);
    command.args(["-drive", drive, "-device", "virtio-blk-pci,drive=d0,id=vd"]);
    command.args(["-chardev", "socket,id=ser,path=ser.sock,server=on,wait=off"]);
    command.args(["-serial", "chardev:ser", "-qmp", "unix:qmp.sock,server=on,wait=off"]);
    command.args(more).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().unwrap()
}

/// A QEMU process that waits for a migration.
pub(crate) struct Incoming {
    process: Child,
    pub(crate) qmp: Qmp,
    pub(crate) serial: UnixStream,
    /// Where it waits.
    pub(crate) socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Incoming {
    /// A clone of the VM that was captured into `snapshot`, with memory of its own. It stays paused
    /// at its first instant if `is_paused`.
    pub(crate) fn start(parent: &Path, snapshot: &Path, is_paused: bool) -> Self {
        Self::new(parent, snapshot, is_paused, true)
    }

    /// The same, but it takes no postcopy migration.
    pub(crate) fn without_postcopy(parent: &Path, snapshot: &Path) -> Self {
        Self::new(parent, snapshot, true, false)
    }

    fn new(parent: &Path, snapshot: &Path, is_paused: bool, has_postcopy: bool) -> Self {
        let machine = fs::read_to_string(snapshot.join("machine.json")).unwrap();
        let machine: Value = serde_json::from_str(&machine).unwrap();
        let base = parent.join(machine["disks"][0]["image"].as_str().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let overlay = folder.path().join("disk.qcow2");
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(&overlay);
        assert!(command.status().unwrap().success());
        let memory = "memory-backend-ram,id=ram,size=64M";
        let drive = "file=disk.qcow2,format=qcow2,if=none,id=d0";
        let mut more = vec!["-incoming", "defer"];
        more.extend(is_paused.then_some("-S"));
        let process = qemu(folder.path(), memory, drive, &more);
        let mut qmp = Qmp::connect(&folder.path().join("qmp.sock"));
        let serial = connect(&folder.path().join("ser.sock"));
        let capability = json!({ "capability": "postcopy-ram", "state": has_postcopy });
        qmp.run("migrate-set-capabilities", json!({ "capabilities": [capability] }));
        let socket = folder.path().join("in.sock");
        let uri = format!("unix:{}", socket.display());
        qmp.run("migrate-incoming", json!({ "uri": uri }));
        Self { process, qmp, serial, socket, _folder: folder }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A QEMU process with the guest.
pub(crate) struct Guest {
    process: Child,
    pub(crate) qmp: Qmp,
    pub(crate) serial: UnixStream,
    pub(crate) socket: PathBuf,
    pub(crate) disk: PathBuf,
}

impl Guest {
    /// Starts the guest in `folder`, with `more` arguments.
    pub(crate) fn start(folder: &Path, share: &str, more: &[&str]) -> Self {
        let memory = format!("memory-backend-memfd,id=ram,size=64M,share={share}");
        Self::start_with(folder, &memory, more)
    }

    /// The same, with this memory backend.
    pub(crate) fn start_with(folder: &Path, memory: &str, more: &[&str]) -> Self {
        let disk = folder.join("disk.img");
        let mut image = vec![0; 1 << 20];
        image[..BOOT.len()].copy_from_slice(&BOOT);
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(&disk, image).unwrap();
        let drive = "file=disk.img,format=raw,if=none,id=d0,cache=unsafe";
        let process = qemu(folder, memory, drive, more);
        let socket = folder.join("qmp.sock");
        let serial = connect(&folder.join("ser.sock"));
        let mut guest = Self { process, qmp: Qmp::connect(&socket), serial, socket, disk };
        assert_eq!(guest.hear(), b'R', "the guest boots");
        guest
    }

    /// Lets another program use the QMP socket, which takes one client at a time.
    pub(crate) fn lend<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.qmp.stream.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
        let done = work();
        self.qmp = Qmp::connect(&self.socket);
        done
    }

    fn hear(&mut self) -> u8 {
        hear(&mut self.serial)
    }

    /// Has the guest fill its memory and its disk with a byte.
    pub(crate) fn fill(&mut self, byte: u8) {
        fill(&mut self.serial, byte);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn hear(serial: &mut UnixStream) -> u8 {
    let mut byte = [0];
    serial.read_exact(&mut byte).unwrap();
    byte[0]
}

/// Has a guest fill its memory and its disk with a byte.
pub(crate) fn fill(serial: &mut UnixStream, byte: u8) {
    serial.write_all(&[byte]).unwrap();
    assert_eq!(hear(serial), byte, "the guest fills its memory and writes to its disk");
}

/// Has a guest read what it has written to its disk, and tells whether that is full of a byte.
pub(crate) fn disk_is(serial: &mut UnixStream, qmp: &mut Qmp, byte: u8) -> bool {
    fill(serial, b'?');
    qmp.memory(SECTOR, 512).iter().all(|found| *found == byte)
}

/// Compares memory with an image, but for the video memory.
pub(crate) fn assert_same(found: &[u8], image: &[u8], what: &str) {
    assert_eq!(found.len(), image.len(), "{what}");
    let pages = found.chunks(4096).zip(image.chunks(4096)).enumerate();
    let differing: Vec<_> = pages
        .filter(|(n, (a, b))| !VIDEO.contains(&(n * 4096)) && a != b)
        .map(|(n, _)| format!("{:#x}", n * 4096))
        .collect();
    assert!(differing.is_empty(), "{what}: {differing:?}");
}

/// Connects to a socket that comes.
pub(crate) fn connect(path: &Path) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                return stream;
            }
            Err(error) => assert!(start.elapsed() < LIMIT, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A client of QEMU's machine protocol.
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    pub(crate) fn connect(path: &Path) -> Self {
        let mut qmp = Self { stream: BufReader::new(connect(path)) };
        let greeting = qmp.line();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        qmp.run("qmp_capabilities", json!({}));
        qmp
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) fn run(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments });
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        loop {
            let mut reply = self.line();
            if let Some(result) = reply.get_mut("return") {
                return result.take();
            }
            assert!(reply.get("error").is_none(), "{command}: {reply}");
        }
    }

    /// The status of the VM.
    pub(crate) fn status(&mut self) -> String {
        self.run("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// What the guest's memory holds.
    pub(crate) fn memory(&mut self, start: u64, bytes: u64) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory");
        let name = file.to_str().unwrap();
        self.run("pmemsave", json!({ "val": start, "size": bytes, "filename": name }));
        fs::read(file).unwrap()
    }

    /// How far the guest has counted.
    pub(crate) fn counter(&mut self) -> u32 {
        u32::from_le_bytes(self.memory(COUNTER, 4).try_into().unwrap())
    }
}
