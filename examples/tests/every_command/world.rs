//! What commands read, and runs of them whose ends and leftovers are looked at.

use crate::table::Entry;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::color::Color;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// After so long, something hangs.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(300);

const PROGRAM: &str = env!("CARGO_BIN_EXE_kaleidoscope");

/// What is there to read. A server serves the guest.
pub(crate) struct World {
    folder: TempDir,
    server: Option<Child>,
}

/// The world, which tests that run at the same time share. It goes with the last of them.
pub(crate) fn world() -> Arc<World> {
    static WORLD: Mutex<Weak<World>> = Mutex::new(Weak::new());
    let mut world = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    world.upgrade().unwrap_or_else(|| {
        let made = Arc::new(World::new());
        *world = Arc::downgrade(&made);
        made
    })
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl World {
    fn new() -> Self {
        let mut world = Self { folder: tempfile::tempdir().unwrap(), server: None };
        set_mode(world.folder.path(), 0o755);
        world.write_guest("guest", KernelStyle::V6_12);
        world.write_guest("other", KernelStyle::V5_10);
        world.write_captured();
        let truth = world.path("guest/truth/gt");
        fs::create_dir_all(&truth).unwrap();
        fs::write(truth.join("proc_kpageflags"), vec![0; 8 << 13]).unwrap();
        // Programs that never end, in place of those that the lab runs.
        let stubs = world.path("stubs");
        fs::create_dir(&stubs).unwrap();
        for name in ["apt-get", "apt-cache", "dpkg-deb"] {
            fs::write(stubs.join(name), "#!/bin/sh\nexec sleep 1000\n").unwrap();
            set_mode(&stubs.join(name), 0o755);
        }
        let version = "#!/bin/sh\necho QEMU emulator version 0\n";
        fs::write(stubs.join("qemu-system-x86_64"), version).unwrap();
        set_mode(&stubs.join("qemu-system-x86_64"), 0o755);
        for line in [
            "color {w}/guest/ram.bin --layout {w}/guest/layout.txt -o {w}/map.kscope",
            "record make {w}/guest/ram.bin --layout {w}/guest/layout.txt --trace \
             {w}/guest/traces/one.csv -o {w}/one.krec",
        ] {
            let words: Vec<_> = line.split(' ').collect();
            let output = world.command(&words, world.folder.path()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let line =
            "serve {w}/guest/ram.bin --layout {w}/guest/layout.txt --listen unix:{w}/parent.sock";
        let words: Vec<_> = line.split(' ').collect();
        let mut server = world.command(&words, world.folder.path());
        let server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        world.server = Some(server);
        wait_until("the server listens", || world.path("parent.sock").exists());
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program, where other users can start it.
    pub(crate) fn public_program(&self, name: &str) -> PathBuf {
        let program = self.path(name);
        if fs::hard_link(PROGRAM, &program).is_err() {
            fs::copy(PROGRAM, &program).unwrap();
        }
        program
    }

    fn write_guest(&self, name: &str, style: KernelStyle) {
        let guest = GuestBuilder::new(style).seed(3).ram_bytes(32 << 20).build().unwrap();
        let folder = self.path(name);
        fs::create_dir_all(folder.join("traces")).unwrap();
        fs::write(folder.join("ram.bin"), guest.memory.bytes()).unwrap();
        let mut layout = String::new();
        for region in guest.truth.layout().regions() {
            let (offset, bytes) = (region.first_index.0 * 4096, u64::from(region.frames) * 4096);
            writeln!(layout, "{offset:#x} {:#x} {bytes:#x}", region.start.gpa().0).unwrap();
        }
        fs::write(folder.join("layout.txt"), layout).unwrap();
        let vcpu = &guest.registers[0];
        let (cr0, cr3, cr4) = (vcpu.cr0.unwrap(), vcpu.cr3.unwrap(), vcpu.cr4.unwrap());
        let (rip, efer) = (vcpu.rip, vcpu.efer.unwrap());
        let registers = format!(
            "CPU#0\nRIP={rip:016x} RSP=0000000000000000\nCR0={cr0:08x} CR2=0000000000000000 CR3={cr3:016x} \
             CR4={cr4:08x}\nEFER={efer:016x}\n"
        );
        fs::write(folder.join("regs.txt"), registers).unwrap();
        for (name, step) in [("one.csv", 7), ("two.csv", 3)] {
            fs::write(folder.join("traces").join(name), trace(&guest, step)).unwrap();
        }
    }

    /// The guest as a captured VM of cloud-hypervisor.
    fn write_captured(&self) {
        let (from, to) = (self.path("guest"), self.path("vm"));
        fs::create_dir(&to).unwrap();
        for name in ["ram.bin", "layout.txt"] {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
        let slots: Vec<_> = fs::read_to_string(from.join("layout.txt"))
            .unwrap()
            .lines()
            .map(|line| {
                let words = line
                    .split(' ')
                    .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap());
                let [offset, gpa, size] = words.collect::<Vec<_>>()[..] else { panic!("{line}") };
                format!(r#"{{"slot":{offset},"gpa":{gpa},"size":{size},"file_offset":0}}"#)
            })
            .collect();
        let slots = slots.join(",");
        let config = format!(r#"{{"memory_manager_data":{{"guest_ram_mappings":[{slots}]}}}}"#);
        fs::write(to.join("config.json"), config).unwrap();
        fs::write(to.join("state.json"), "{}").unwrap();
    }

    /// The program with these words, and `{o}` for outputs.
    pub(crate) fn command(&self, words: &[&str], outputs: &Path) -> Command {
        let mut command = Command::new(PROGRAM);
        let folder = self.folder.path().display().to_string();
        let outputs = outputs.display().to_string();
        command.args(words.iter().map(|w| w.replace("{w}", &folder).replace("{o}", &outputs)));
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }
}

fn trace(guest: &MockGuest, step: usize) -> String {
    let is_free = |frame: FrameIndex| guest.truth.color(frame) == Color::Free;
    let frames = guest.truth.layout().iter().filter(|(frame, _)| !is_free(*frame));
    let mut text = String::from("t_us,gfn\n");
    for (n, (_, gfn)) in frames.step_by(step).enumerate() {
        writeln!(text, "{},{:x}", n * 50, gfn.0).unwrap();
    }
    text
}

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < WATCHDOG, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A run with folders of its own.
pub(crate) struct Run {
    world: Arc<World>,
    folder: TempDir,
    pub(crate) command: Command,
    what: String,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) said: String,
    pub(crate) took: Duration,
}

impl Run {
    /// The entry's command with these words behind its own.
    pub(crate) fn new(entry: &Entry, words: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        set_mode(folder.path(), 0o755);
        for name in ["out", "tmp"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let own: Vec<_> = entry.words.split(' ').collect();
        let words = [&own[..], words].concat();
        let world = world();
        let mut command = world.command(&words, &folder.path().join("out"));
        command.env("TMPDIR", folder.path().join("tmp"));
        if entry.words == "lab run" {
            let path = std::env::var("PATH").unwrap();
            command.env("PATH", format!("{}:{path}", world.path("stubs").display()));
        }
        let mut run = Self { world, folder, command, what: words.join(" ") };
        let said = File::create(run.path("said")).unwrap();
        run.command.stdout(Stdio::null()).stderr(said);
        run
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn output(&self, name: &str) -> PathBuf {
        self.path("out").join(name)
    }

    /// Has another program start the command, which gets the command's words behind its own.
    pub(crate) fn wrap(&mut self, program: &str, words: &[&str]) {
        let own = std::mem::replace(&mut self.command, Command::new(program));
        self.command.args(words).arg(own.get_program()).args(own.get_args());
        self.command.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.command.current_dir(self.world.path("")).stdin(Stdio::null()).stdout(Stdio::null());
        self.command.stderr(File::create(self.path("said")).unwrap());
    }

    pub(crate) fn start(&mut self) -> Child {
        self.command.spawn().unwrap()
    }

    /// Waits for the end. Nothing that the program says may be of a panic.
    pub(crate) fn wait(&self, mut child: Child, start: Instant) -> Ended {
        let limit = start + WATCHDOG;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > limit {
                let _ = child.kill();
                panic!("{}: it does not end", self.what);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let said = fs::read_to_string(self.path("said")).unwrap_or_default();
        assert!(!said.contains("panicked"), "{}: {said}", self.what);
        assert_ne!(status.code(), Some(101), "{}: {said}", self.what);
        assert_ne!(status.signal(), Some(6), "{}: {said}", self.what);
        Ended { status, said, took: start.elapsed() }
    }

    pub(crate) fn finish(&mut self) -> Ended {
        let start = Instant::now();
        let child = self.start();
        self.wait(child, start)
    }

    /// What is in the folder of outputs: names, and how many files are below each.
    pub(crate) fn outputs(&self) -> BTreeMap<String, usize> {
        let entries = fs::read_dir(self.path("out")).unwrap();
        let count = |entry: fs::DirEntry| {
            let inside = fs::read_dir(entry.path()).map_or(1, Iterator::count);
            (entry.file_name().into_string().unwrap(), inside)
        };
        entries.map(|entry| count(entry.unwrap())).collect()
    }

    /// Nothing is left but whole outputs of the entry's: no file, process or mount.
    pub(crate) fn assert_clean(&self, entry: &Entry, ended: &Ended) {
        let what = &self.what;
        let own = self.folder.path().display().to_string();
        // Those that die with their parent need a moment.
        wait_until(&format!("{what}: the end of all its processes"), || processes(&own).is_empty());
        let outputs = self.outputs();
        let known: BTreeMap<_, _> = entry.written.iter().copied().collect();
        for (name, inside) in &outputs {
            let expected = known.get(name.as_str());
            let is_old = name == OLD || name.starts_with(OLD);
            assert!(is_old || expected == Some(inside), "{what}: left {outputs:?}; {ended:?}");
        }
        let left: Vec<_> = fs::read_dir(self.path("tmp")).unwrap().collect();
        assert!(left.is_empty(), "{what}: left {left:?}; {ended:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&own), "{what}: {mounts}");
    }
}

/// Begins the names of files that are there before a run.
pub(crate) const OLD: &str = "old";

/// Processes in whose environment there is this text.
fn processes(text: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let numbered = entries.filter(|entry| {
        entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
    });
    let has = |path: &Path| {
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        environment.windows(text.len()).any(|window| window == text.as_bytes())
    };
    numbered
        .map(|entry| entry.path())
        .filter(|path| has(path))
        .map(|path| path.display().to_string())
        .collect()
}

/// Whether this process may do anything.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says loudly that something cannot be tested here.
pub(crate) fn skipped(why: &str) {
    println!("******** SKIPPED: {why} ********");
}
