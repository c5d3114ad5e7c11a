//! Warms the guest: runs programs, reads files, and uses all kinds of memory.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::actors::{Actor, READY};
use super::programs::{PERL_OBJECTS, PYTHON_DATABASE};
use crate::lab::error::{Error, Result};
use crate::lab::feature::{Feature, Features};

/// How many files of the root file system are read.
const FILES_READ: usize = 500;

/// Most time for merging.
const KSM_TIMEOUT: Duration = Duration::from_secs(20);

/// The processes that stay alive.
#[derive(Debug, Default)]
pub(crate) struct Workload {
    children: Vec<Child>,
}

impl Workload {
    /// Starts everything and returns when the guest is warm.
    ///
    /// # Errors
    /// If a step fails.
    pub(crate) fn start(features: &Features) -> Result<Self> {
        let mut workload = Self::default();
        if features.has(Feature::Swap) {
            busybox(&["swapon", &disk("swap")?.to_string_lossy()])?;
        }
        workload.plain()?;
        for feature in features.iter() {
            log(&format!("feature {}", feature.name()));
            match feature {
                Feature::Hugetlb => {
                    set("/proc/sys/vm/nr_hugepages", "8")?;
                    workload.actor(Actor::Hugetlb)?;
                }
                Feature::Thp => {
                    set("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")?;
                    workload.actor(Actor::Thp)?;
                }
                Feature::Swap => workload.actor(Actor::Swap)?,
                Feature::Ksm => workload.merge()?,
                Feature::Overlay => overlay(features)?,
                Feature::Squashfs => squashfs()?,
                Feature::Xfs => xfs()?,
                // The host inflates it once the guest is warm.
                Feature::Balloon => {}
                Feature::Memfd => workload.actor(Actor::Memfd)?,
            }
        }
        settle()?;
        Ok(workload)
    }

    /// Starts what fits into the memory of a crash kernel: a few programs and files. Also reads
    /// part of the first kernel's memory, as a dump collector does.
    ///
    /// # Errors
    /// If a step fails.
    pub(crate) fn start_in_crash_kernel() -> Result<Self> {
        let mut workload = Self::default();
        log("programs of the crash kernel");
        workload.spawn(Command::new("perl").args(["-e", PERL_OBJECTS]))?;
        workload.actor(Actor::Heap)?;
        workload.actor(Actor::Files)?;
        log("files of the crash kernel");
        read_files(Path::new("/usr"), FILES_READ / 4)?;
        const COLLECT: &str = "dd if=/proc/vmcore bs=1M count=16 status=none | md5sum";
        run(Command::new("bash").args(["-c", COLLECT]))?;
        settle()?;
        Ok(workload)
    }

    fn plain(&mut self) -> Result<()> {
        log("programs");
        self.spawn(Command::new("python3").args(["-c", PYTHON_DATABASE]))?;
        self.spawn(Command::new("perl").args(["-e", PERL_OBJECTS]))?;
        self.actor(Actor::Heap)?;
        self.actor(Actor::Files)?;
        log("files");
        run(Command::new("cp").args(["-a", "/etc", "/tmp/etc"]))?;
        read_files(Path::new("/usr"), FILES_READ)?;
        run(Command::new("bash").args(["-c", "ls -lR /usr /var | sort | md5sum"]))
    }

    fn actor(&mut self, actor: Actor) -> Result<()> {
        let name = clap::ValueEnum::to_possible_value(&actor)
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        // Not /proc/self/exe: the process would be called `exe`.
        self.spawn(Command::new(crate::lab::build::rootfs::AGENT).args([
            "lab-agent",
            "--actor",
            &name,
        ]))
    }

    /// Starts a program and waits until it prints `READY`.
    fn spawn(&mut self, command: &mut Command) -> Result<()> {
        let failed = |why: String| Error::Agent(format!("{command:?}: {why}"));
        let mut child = Command::new(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let mut line = String::new();
        if let Some(pipe) = &mut child.stdout {
            BufReader::new(pipe).read_line(&mut line).map_err(|error| failed(error.to_string()))?;
        }
        self.children.push(child);
        if line.trim() == READY {
            return Ok(());
        }
        Err(failed(format!("said {line:?} instead of `{READY}`")))
    }

    /// Starts two processes with equal pages, and runs the kernel's scanner until most are merged.
    fn merge(&mut self) -> Result<()> {
        const KSM: &str = "/sys/kernel/mm/ksm";
        // Of the two actors' 2 * 1024 pages, all but 251 originals and further copies that the
        // sharing limit requires.
        const ENOUGH: u64 = 1200;
        self.actor(Actor::Ksm)?;
        self.actor(Actor::Ksm)?;
        set(&format!("{KSM}/sleep_millisecs"), "10")?;
        set(&format!("{KSM}/pages_to_scan"), "4096")?;
        set(&format!("{KSM}/run"), "1")?;
        let begin = Instant::now();
        let counter = PathBuf::from(format!("{KSM}/pages_sharing"));
        loop {
            let text = fs::read_to_string(&counter).map_err(Error::io("read", &counter))?;
            let sharing = text.trim().parse().unwrap_or(0u64);
            if sharing >= ENOUGH {
                break;
            }
            if begin.elapsed() > KSM_TIMEOUT {
                return Err(Error::Agent(format!("ksm merged only {sharing} pages")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        // 0 stops the scanner and leaves merged pages merged.
        set(&format!("{KSM}/run"), "0")
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Both fail only if the process has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads files through an overlay, and writes to some so that they are copied up.
fn overlay(features: &Features) -> Result<()> {
    let lower = if features.has(Feature::Squashfs) {
        mount_squashfs()?;
        "/mnt/squashfs"
    } else {
        "/usr/lib"
    };
    for folder in ["/var/overlay/upper", "/var/overlay/work", "/mnt/overlay"] {
        create(folder)?;
    }
    let options = format!("lowerdir={lower},upperdir=/var/overlay/upper,workdir=/var/overlay/work");
    busybox(&["mount", "-t", "overlay", "overlay", "-o", &options, "/mnt/overlay"])?;
    let files = read_files(Path::new("/mnt/overlay"), 150)?;
    for file in files.iter().step_by(15) {
        fs::OpenOptions::new()
            .append(true)
            .open(file)
            .and_then(|mut file| file.write_all(b"\n# copied up\n"))
            .map_err(Error::io("append to", file))?;
        fs::read(file).map_err(Error::io("read", file))?;
    }
    Ok(())
}

fn squashfs() -> Result<()> {
    mount_squashfs()?;
    read_files(Path::new("/mnt/squashfs"), 150).map(drop)
}

fn mount_squashfs() -> Result<()> {
    let point = "/mnt/squashfs";
    if Path::new(point).exists() {
        return Ok(());
    }
    create(point)?;
    busybox(&["mount", "-t", "squashfs", "-o", "ro", &disk("squashfs")?.to_string_lossy(), point])
}

fn xfs() -> Result<()> {
    create("/mnt/xfs")?;
    busybox(&["mount", "-t", "xfs", &disk("xfs")?.to_string_lossy(), "/mnt/xfs"])?;
    // Some files stay cached from writing; others are dropped from the cache and read again.
    run(Command::new("bash").args(["-c", "cp -aL /usr/lib/python3*/*.py /mnt/xfs"]))?;
    run(Command::new("cp").args(["-L", "/usr/bin/perl", "/usr/bin/bash", "/mnt/xfs"]))?;
    sync()?;
    const DROP_CACHE: &str = "for f in /mnt/xfs/[a-m]* /mnt/xfs/perl; do
        dd if=$f iflag=nocache count=0 status=none
    done";
    run(Command::new("bash").args(["-c", DROP_CACHE]))?;
    read_files(Path::new("/mnt/xfs"), 200).map(drop)
}

/// Waits for writeback, then leaves a few pages dirty.
fn settle() -> Result<()> {
    log("settling");
    sync()?;
    std::thread::sleep(Duration::from_millis(300));
    let dirty = Path::new("/var/tmp/dirty");
    fs::write(dirty, [b'w'; 100_000]).map_err(Error::io("write", dirty))
}

/// Writes out everything that is dirty.
///
/// # Errors
/// If the program fails.
pub(crate) fn sync() -> Result<()> {
    run(&mut Command::new("sync"))
}

/// Reads up to `limit` regular files under `folder`, in directory order. Returns their paths.
fn read_files(folder: &Path, limit: usize) -> Result<Vec<PathBuf>> {
    let mut read = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(Error::io("examine", &path))?;
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                fs::read(&path).map_err(Error::io("read", &path))?;
                read.push(path);
            }
            if read.len() >= limit {
                return Ok(read);
            }
        }
    }
    Ok(read)
}

/// The disk with a serial number, like `/dev/vdb`.
pub(crate) fn disk(serial: &str) -> Result<PathBuf> {
    let blocks = Path::new("/sys/block");
    for entry in fs::read_dir(blocks).map_err(Error::io("list", blocks))?.flatten() {
        let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if found.trim_end_matches(['\n', '\0']) == serial {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(Error::Agent(format!("no disk has the serial number {serial}")))
}

fn busybox(arguments: &[&str]) -> Result<()> {
    run(Command::new("busybox").args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::Agent(format!("{command:?}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Agent(format!("{command:?}: {} {}", output.status, said.trim())))
}

fn create(folder: &str) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("create", Path::new(folder)))
}

fn set(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).map_err(Error::io("write", Path::new(path)))
}

/// Writes a line to the guest's console.
fn log(what: &str) {
    crate::stdio::say(format_args!("lab: {what}"));
}
