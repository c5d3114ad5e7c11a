//! The init process of Linux guests of `kaleidoscope clone`. It checks that a clone's memory and
//! disk are correct, and implements the guest's half of SIGCLONE.
//!
//! As process 1 it mounts file systems and starts workers. Each worker fills its memory with a
//! pattern of its own and checks it round after round. Once all workers are warm, process 1 prints
//! `guest: ready` on the console. Then it executes the commands that the host sends to the console,
//! one per line:
//!
//! - `clone ID`: this guest is a clone. If there is a disk, all of its files are read and one file
//!   is written (see `disk`). Every subscriber is sent its signal (SIGCLONE) and finds the id in
//!   `/run/clone-id`. A process subscribes with a file in `/run/sigclone` that is named after its
//!   PID and contains the signal's number. The workers check all of their memory, and process 1
//!   prints `guest: clone ID: 4 of 4 right`.
//! - `flags N`: the workers are stopped, so that memory changes as little as possible.
//!   `/proc/kpageflags` is written to the window to the host, run-length encoded as pairs of words:
//!   the flags, and the number of consecutive frames. Process 1 prints
//!   `guest: R runs of flags N`. From two such answers the host sees which frames may have changed
//!   in between.
//! - `end`: the guest reboots, which ends it.

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, Read, Write, stdin};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Prints a line on the console. Ignores errors, because process 1 must not exit.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// The disk, if there is one. Each file's name is the XXH3 hash of its contents, in 16 hexadecimal
/// digits.
mod disk {
    use super::Outcome;
    use rustix::fs::sync;
    use rustix::mount::{MountFlags, mount};
    use std::fs;
    use std::path::{Path, PathBuf};
    use twox_hash::XxHash3_64;

    const DEVICE: &str = "/dev/vda";
    const AT: &str = "/disk";

    /// Mounts the disk and reads every second file, so that half are in the page cache. Returns
    /// the number of files; `None` without a disk.
    pub(crate) fn warm() -> Outcome<Option<usize>> {
        mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None)?;
        if !Path::new(DEVICE).exists() {
            return Ok(None);
        }
        fs::create_dir(AT)?;
        mount(DEVICE, AT, "ext4", MountFlags::empty(), None)?;
        let files = files()?;
        files.iter().step_by(2).try_for_each(|path| check(path))?;
        Ok(Some(files.len()))
    }

    fn files() -> Outcome<Vec<PathBuf>> {
        let entries = fs::read_dir(Path::new(AT).join("files"))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Outcome<Vec<_>>>()?;
        files.sort();
        Ok(files)
    }

    fn check(path: &Path) -> Outcome<()> {
        let hash = format!("{:016x}", XxHash3_64::oneshot(&fs::read(path)?));
        match path.ends_with(&hash) {
            true => Ok(()),
            false => Err(format!("{}: the contents have the hash {hash}", path.display()).into()),
        }
    }

    /// Reads all files, half of them for the first time. Writes a file that only this clone has,
    /// and reads it back from the disk.
    pub(crate) fn check_all(id: &str) -> Outcome<()> {
        if !Path::new(AT).exists() {
            return Ok(());
        }
        files()?.iter().try_for_each(|path| check(path))?;
        let own = Path::new(AT).join("own");
        if own.exists() {
            return Err("the disk contains another machine's file".into());
        }
        let text = format!("{id} ").repeat(1000);
        fs::write(&own, &text)?;
        sync();
        // Drop the page cache, dentries and inodes, so that the read comes from the disk.
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        match fs::read_to_string(&own)? == text {
            true => Ok(()),
            false => Err("the disk does not return what was written to it".into()),
        }
    }
}

type Outcome<T> = Result<T, Box<dyn Error>>;

const WORKERS: usize = 4;
/// Words per page, and pages per worker.
const WORDS: usize = 512;
const PAGES: usize = 512;
/// Rounds until a worker is warm.
const WARM: u64 = 1000;

/// How long a worker sleeps after every 64 rounds.
const REST: Duration = Duration::from_millis(20);

const SUBSCRIBERS: &str = "/run/sigclone";
const IDENTITY: &str = "/run/clone-id";

/// Physical address of the window to the host, one page, accessed through `/dev/mem`.
const WINDOW: u64 = 0xd_0000;

/// Bytes of flags per read, and initial capacity for runs.
const PIECE: usize = 64 << 10;

/// How long workers may take to answer.
const TIMEOUT: Duration = Duration::from_secs(120);

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        // Process 1's arguments are ignored: the kernel passes unknown parameters to it.
        _ if std::process::id() == 1 => {
            // If process 1 exited, the kernel would panic without giving the reason.
            if let Err(error) = init() {
                say!("guest: failed: {error}");
            }
            Ok(reboot(RebootCommand::Restart)?)
        }
        (Some("worker"), Some(number)) => worker(number.parse()?),
        _ => Err("this runs as the first process of a guest of `kaleidoscope clone`".into()),
    }
}

fn init() -> Outcome<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp")] {
        mount(kind, at, kind, MountFlags::empty(), None)?;
    }
    fs::create_dir(SUBSCRIBERS)?;
    // Puts a file into the page cache that no process maps.
    let mut file = Vec::new();
    File::open("/init")?.read_to_end(&mut file)?;
    let length = file.len();
    fs::write("/tmp/copy", file)?;
    let disk = disk::warm()?;
    let workers = (0..WORKERS)
        .map(|number| Command::new("/init").args(["worker", &number.to_string()]).spawn())
        .collect::<Result<Vec<_>, _>>()?;
    for number in 0..WORKERS {
        wait_for(&report_file(number, "warm"))?;
    }
    // Allocated now, so that the answer to `flags` changes little memory.
    let (mut flags, mut runs) = (vec![0; PIECE], Vec::with_capacity(PIECE));
    let on_disk = disk.map_or("no disk".to_owned(), |files| format!("a disk with {files} files"));
    say!(
        "guest: ready, {WORKERS} workers of {} MiB, a file of {length} bytes, {on_disk}",
        PAGES >> 8
    );
    for line in stdin().lock().lines() {
        let line = line?;
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("clone", id) => cloned(id)?,
            ("flags", number) => {
                for worker in &workers {
                    kill(Pid::from_raw(worker.id().try_into()?), Signal::SIGSTOP)?;
                }
                read_flags(&mut flags, &mut runs)?;
                write_to_window(&runs)?;
                say!("guest: {} runs of flags {number}", runs.len() / 16);
            }
            ("end", _) => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

/// Notifies subscribers that this is a clone, and reports the workers' results.
fn cloned(id: &str) -> Outcome<()> {
    fs::write(IDENTITY, id)?;
    for entry in fs::read_dir(SUBSCRIBERS)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let signal: i32 = fs::read_to_string(&path)?.trim().parse()?;
        if let Some(number) = number {
            // Fails if the subscriber has exited.
            let _ = kill(Pid::from_raw(number), Signal::try_from(signal)?);
        }
    }
    if let Err(error) = disk::check_all(id) {
        say!("guest: clone {id}: its disk is wrong: {error}");
        return Ok(());
    }
    let mut right = 0;
    for number in 0..WORKERS {
        if wait_for(&report_file(number, id))? == "right" {
            right += 1;
        }
    }
    say!("guest: clone {id}: {right} of {WORKERS} right");
    Ok(())
}

/// The file in which a worker reports something.
fn report_file(worker: usize, word: &str) -> PathBuf {
    Path::new("/run").join(format!("worker-{worker}-{word}"))
}

/// Waits until a file is not empty. Returns its contents.
fn wait_for(path: &Path) -> Outcome<String> {
    let start = Instant::now();
    loop {
        match fs::read_to_string(path) {
            Ok(text) if !text.is_empty() => return Ok(text),
            _ if start.elapsed() > TIMEOUT => {
                return Err(format!("timeout: {} does not appear", path.display()).into());
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Reads `/proc/kpageflags` in pieces and run-length encodes it: each word, and its number of
/// repetitions.
fn read_flags(piece: &mut [u8], runs: &mut Vec<u8>) -> Outcome<()> {
    let mut file = File::open("/proc/kpageflags")?;
    let mut last = None;
    runs.clear();
    loop {
        // The kernel returns whole words.
        let length = file.read(piece)?;
        let (words, _) = piece.get(..length).unwrap_or_default().as_chunks::<8>();
        for word in words {
            match &mut last {
                Some((run, count)) if run == word => *count += 1,
                _ => write_run(last.replace((*word, 1u64)), runs),
            }
        }
        if length == 0 {
            write_run(last, runs);
            return Ok(());
        }
    }
}

fn write_run(run: Option<([u8; 8], u64)>, runs: &mut Vec<u8>) {
    if let Some((word, count)) = run {
        runs.extend(word);
        runs.extend(count.to_le_bytes());
    }
}

/// Writes bytes to the window.
fn write_to_window(bytes: &[u8]) -> Outcome<()> {
    let memory = OpenOptions::new().write(true).open("/dev/mem")?;
    for piece in bytes.chunks(4096) {
        memory.write_all_at(piece, WINDOW)?;
    }
    Ok(())
}

/// A process that can check every word of its memory.
struct Worker {
    number: u64,
    /// How often each page was written.
    versions: Vec<u64>,
    pages: Vec<Box<[u64; WORDS]>>,
}

impl Worker {
    fn new(number: u64) -> Self {
        let mut worker = Self {
            number,
            versions: vec![0; PAGES],
            pages: (0..PAGES).map(|_| Box::new([0; WORDS])).collect(),
        };
        (0..PAGES).for_each(|page| worker.write(page));
        worker
    }

    /// The expected words of a page.
    fn words(&self, page: usize) -> impl Iterator<Item = u64> + use<> {
        let version = self.versions.get(page).copied().unwrap_or_default();
        let first = (self.number + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add((page as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9))
            ^ version.wrapping_mul(0x94d0_49bb_1331_11eb);
        (0u64..).map(move |n| first.wrapping_add(n.wrapping_mul(0xd6e8_feb8_6659_fd93)))
    }

    /// Writes the next version of a page.
    fn write(&mut self, page: usize) {
        if let Some(version) = self.versions.get_mut(page) {
            *version += 1;
        }
        let words = self.words(page);
        if let Some(page) = self.pages.get_mut(page) {
            page.iter_mut().zip(words).for_each(|(word, new)| *word = new);
        }
    }

    fn is_right(&self, page: usize) -> bool {
        self.pages.get(page).is_some_and(|p| p.iter().copied().eq(self.words(page).take(WORDS)))
    }
}

fn worker(number: usize) -> Outcome<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGUSR1);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK)?;
    let mut worker = Worker::new(u64::try_from(number)?);
    let pid = std::process::id().to_string();
    fs::write(Path::new(SUBSCRIBERS).join(pid), (Signal::SIGUSR1 as i32).to_string())?;
    let mut random = u64::try_from(number)? + 1;
    for round in 0u64.. {
        // Knuth's MMIX generator (TAOCP volume 2, section 3.3.4).
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let page = usize::try_from(random >> 40)? % PAGES;
        if !worker.is_right(page) {
            say!("guest: worker {number}: page {page} is wrong");
            return Err("a wrong page".into());
        }
        if random >> 36 & 3 == 0 {
            worker.write(page);
        }
        if round == WARM {
            fs::write(report_file(number, "warm"), "warm")?;
        }
        if round % 64 != 0 {
            continue;
        }
        // Lets other workers run, also in an emulated guest, which is slow.
        std::thread::sleep(REST);
        if signals.read_signal()?.is_some() {
            let is_right = (0..PAGES).all(|page| worker.is_right(page));
            let id = fs::read_to_string(IDENTITY)?;
            let mut file = File::create(report_file(number, &id))?;
            file.write_all(if is_right { b"right" } else { b"wrong" })?;
        }
    }
    Ok(())
}
