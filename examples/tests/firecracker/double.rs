//! A process that does with its memory what Firecracker does when it loads a snapshot: it maps RAM
//! as private memory, watches it with a userfaultfd that reports removals, sends that with the
//! regions as JSON, and keeps a copy. Its "guest" then checks every byte that it reads.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use userfaultfd::{FeatureFlags, UffdBuilder};

/// The variable that makes a test's process the VMM. Lines: the socket, the memory file, the bytes
/// of each region (separated by commas), and what is special.
///
/// - `twice`: it connects again with the same userfaultfd
/// - `none`: it sends no descriptor
/// - `zeros N`: frames from N on may read as zeros instead of as the parent's bytes
const DOUBLE: &str = "KALEIDOSCOPE_TEST_FIRECRACKER";

/// After this long, something hangs.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(120);

const FRAME: usize = 4096;
const WORDS: usize = FRAME / 8;

/// vCPUs of the VM. A frame belongs to one of them, by its number.
const VCPUS: usize = 2;

/// What a frame has to hold.
#[derive(Clone, Copy, Default)]
struct Frame {
    /// It was given back, so that it does not hold the parent's bytes.
    is_zero: bool,
    /// The guest's own first word.
    first: Option<u64>,
}

/// Guest memory, and what it has to hold.
struct Ram {
    /// Address of each region, and its words.
    regions: Vec<(*mut u64, usize)>,
    parent: Vec<u8>,
    /// Frames from this one on may be zeros at first.
    zeros_from: usize,
}

// SAFETY: the addresses stay mapped until the process ends, and each word is only accessed by
// volatile reads and writes of the one vCPU to which its frame belongs.
unsafe impl Sync for Ram {}

impl Ram {
    fn map(bytes: &[usize], parent: Vec<u8>, zeros_from: usize) -> Self {
        let map = |bytes: &usize| {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
            let start = unsafe { mmap_anonymous(std::ptr::null_mut(), *bytes, access, flags) };
            (start.unwrap().cast::<u64>(), *bytes / 8)
        };
        Self { regions: bytes.iter().map(map).collect(), parent, zeros_from }
    }

    fn frames(&self) -> usize {
        self.regions.iter().map(|(_, words)| words / WORDS).sum()
    }

    fn address(&self, frame: usize) -> *mut u64 {
        let mut word = frame * WORDS;
        for (start, words) in &self.regions {
            if word < *words {
                return start.wrapping_add(word);
            }
            word -= words;
        }
        panic!("there is no frame {frame}");
    }

    fn read(&self, frame: usize, word: usize) -> u64 {
        // SAFETY: `address` is that of a frame, which has this word; see `Sync` above.
        unsafe { self.address(frame).wrapping_add(word).read_volatile() }
    }

    fn write(&self, frame: usize, value: u64) {
        // SAFETY: as for `read`.
        unsafe { self.address(frame).write_volatile(value) }
    }

    fn give_back(&self, frame: usize) {
        // SAFETY: a whole frame of a mapping that nothing refers to.
        unsafe { madvise(self.address(frame).cast(), FRAME, Advice::LinuxDontNeed) }.unwrap();
    }

    /// The parent's word.
    fn parent(&self, frame: usize, word: usize) -> u64 {
        let at = (frame * WORDS + word) * 8;
        u64::from_le_bytes(self.parent[at..at + 8].try_into().unwrap())
    }

    /// Whether each word is right.
    fn check(&self, frame: usize, model: &mut Frame) {
        let own = usize::from(model.first.is_some());
        model.is_zero |=
            frame >= self.zeros_from && (own..WORDS).all(|word| self.read(frame, word) == 0);
        for word in 0..WORDS {
            let of_parent = if model.is_zero { 0 } else { self.parent(frame, word) };
            let right = model.first.filter(|_| word == 0).unwrap_or(of_parent);
            let read = self.read(frame, word);
            assert_eq!(read, right, "word {word} of frame {frame}, given back: {}", model.is_zero);
        }
    }

    /// What a vCPU does with its frames.
    fn run(&self, vcpu: usize, command: &[&str], models: &mut [Frame]) {
        let number = |n: usize| command[n].parse::<u64>().unwrap();
        let frame_of = |n: usize| n * VCPUS + vcpu;
        match command[0] {
            // Backward, so that most frames are faults.
            "check" => {
                for n in (0..models.len()).rev() {
                    self.check(frame_of(n), &mut models[n]);
                }
            }
            "first" => {
                for n in 0..models.len().min(usize::try_from(number(1)).unwrap()) {
                    self.check(frame_of(n), &mut models[n]);
                }
            }
            "give-back" => {
                let (from, to) = (number(1), number(2));
                for (n, model) in models.iter_mut().enumerate() {
                    if (from..to).contains(&(frame_of(n) as u64)) {
                        self.give_back(frame_of(n));
                        *model = Frame { is_zero: true, first: None };
                    }
                }
            }
            // Random reads, writes and removals.
            "churn" => {
                let mut random = number(1).wrapping_add(vcpu as u64 + 1);
                for _ in 0..number(2) {
                    // Knuth's MMIX generator.
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let n = usize::try_from(random >> 33).unwrap() % models.len();
                    let (frame, model) = (frame_of(n), &mut models[n]);
                    match (random >> 28) % 8 {
                        0 => {
                            self.give_back(frame);
                            *model = Frame { is_zero: true, first: None };
                        }
                        1 | 2 => {
                            self.write(frame, random);
                            model.first = Some(random);
                        }
                        _ => self.check(frame, model),
                    }
                }
            }
            other => panic!("no command {other}"),
        }
    }
}

/// What the VMM's process does.
#[test]
fn vmm() {
    let Ok(what) = std::env::var(DOUBLE) else { return };
    let lines: Vec<_> = what.split('\n').collect();
    let [socket, memory, sizes, special] = lines[..] else { panic!("{what}") };
    let bytes: Vec<usize> = sizes.split(',').map(|bytes| bytes.parse().unwrap()).collect();
    let zeros_from = special.strip_prefix("zeros ").map_or(usize::MAX, |n| n.parse().unwrap());
    let ram = Ram::map(&bytes, std::fs::read(memory).unwrap(), zeros_from);
    let features = FeatureFlags::EVENT_REMOVE;
    let mut builder = UffdBuilder::new();
    builder.close_on_exec(true).non_blocking(true).user_mode_only(false);
    let uffd = builder.require_features(features).create().unwrap();
    let (mut regions, mut offset) = (Vec::new(), 0);
    for ((start, _), bytes) in ram.regions.iter().zip(&bytes) {
        uffd.register(start.cast(), *bytes).unwrap();
        regions.push(json!({
            "base_host_virt_addr": start.addr(), "size": bytes, "offset": offset,
            "page_size": FRAME, "page_size_kib": FRAME,
        }));
        offset += bytes;
    }
    let message = json!(regions).to_string();
    let sent = [uffd.as_fd()];
    let sent = if special == "none" { &sent[..0] } else { &sent[..] };
    let stream = UnixStream::connect(socket).unwrap();
    kaleidoscope_kvm::uffd::send(&stream, message.as_bytes(), sent).unwrap();
    let again = (special == "twice").then(|| {
        let stream = UnixStream::connect(socket).unwrap();
        kaleidoscope_kvm::uffd::send(&stream, message.as_bytes(), sent).unwrap();
        stream
    });
    let mut models = vec![vec![Frame::default(); ram.frames() / VCPUS]; VCPUS];
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let command: Vec<_> = line.split(' ').collect();
        std::thread::scope(|scope| {
            for (vcpu, models) in models.iter_mut().enumerate() {
                let (ram, command) = (&ram, &command);
                scope.spawn(move || ram.run(vcpu, command, models));
            }
        });
        println!("\ndone {line}");
        std::io::stdout().flush().unwrap();
    }
    drop((again, stream, uffd));
}

/// The VMM's process. Dropping it kills it.
pub(crate) struct Vmm {
    child: Child,
    commands: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Vmm {
    /// Loads a snapshot: connects to a handler's socket.
    pub(crate) fn load(socket: &Path, memory: &Path, regions: &[u64], special: &str) -> Self {
        let sizes: Vec<_> = regions.iter().map(u64::to_string).collect();
        let what = [&socket.display().to_string(), &memory.display().to_string(), &sizes.join(",")];
        let what = format!("{}\n{}\n{}\n{special}", what[0], what[1], what[2]);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "double::vmm", "--nocapture"]).env(DOUBLE, what);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let commands = child.stdin.take();
        Self { child, commands, lines }
    }

    /// Has the guest do something.
    pub(crate) fn begin(&mut self, command: &str) {
        let commands = self.commands.as_mut().unwrap();
        writeln!(commands, "{command}").unwrap();
    }

    /// Waits until the guest has done it.
    pub(crate) fn finish(&mut self, command: &str) {
        let end = Instant::now() + WATCHDOG;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line == format!("done {command}") => return,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("`{command}` hangs"),
                Err(RecvTimeoutError::Disconnected) => panic!("`{command}`: the VMM has ended"),
            }
        }
    }

    pub(crate) fn run(&mut self, command: &str) {
        self.begin(command);
        self.finish(command);
    }

    /// Whether the guest has not done what it was told after a while.
    pub(crate) fn waits(&self, command: &str) -> bool {
        let line = format!("done {command}");
        !self.lines.try_iter().any(|said| said == line)
    }

    /// Ends the VMM as its owner does.
    pub(crate) fn shut_down(mut self) {
        drop(self.commands.take());
        assert!(self.ended().success());
    }

    /// Waits for the end of the process.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + WATCHDOG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the VMM does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
