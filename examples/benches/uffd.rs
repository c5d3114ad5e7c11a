//! What a fault costs in a userfaultfd session, beside the least that it could cost.
//!
//! `cargo bench -p kaleidoscope-examples --bench uffd -- [ROUNDS] [MIB] [TRACE ROUNDS] [FILTER]`
//!
//! A child maps memory, sends its userfaultfd, and touches every page once, in random order, on one
//! thread. It is served in alternating rounds by a session with the policy `demand`, and by bare
//! loops that read the fault and issue UFFDIO_COPY alone. Both take the pages from the same place:
//! memory, or a file that is read. Handler and child run on one core each, and both on one.
//!
//! Then whole traces of real guests' clones (`uffd/traces.rs`), those whose paths contain FILTER.

#![allow(clippy::print_stdout, reason = "a benchmark shows what it finds")]
#![expect(unsafe_code, reason = "the bare loops issue UFFDIO_COPY")]

#[path = "uffd/traces.rs"]
mod traces;
#[expect(dead_code, unreachable_pub, reason = "an example has more than is used here")]
#[path = "../examples/userfaultfd_vmm.rs"]
mod vmm;

use kaleidoscope_core::clone::LocalSource;
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::image::{Format, MemoryImage};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout, VecMemory};
use kaleidoscope_core::prefetch::{Demand, LocalityOrder};
use kaleidoscope_kvm::uffd::{Region, Session, receive};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::error::Error;
use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use userfaultfd::{Event, Uffd, UffdBuilder};
use vmm::{Memory, PAGE, shuffled};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The variable that makes this program the child: socket, bytes, seed, core.
const CHILD: &str = "KALEIDOSCOPE_BENCH_VM";

/// The first word of a page.
fn word(page: usize) -> u64 {
    (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn pin(cpu: usize) -> Outcome<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// The child: prints the nanoseconds of a fault.
fn child(what: &str) -> Outcome<()> {
    let words: Vec<&str> = what.split(' ').collect();
    let [socket, bytes, seed, cpu] = words[..] else { return Err("four words".into()) };
    if seed.contains('/') {
        return traces::child(socket, bytes, seed, cpu);
    }
    pin(cpu.parse()?)?;
    let memory = Memory::hand_over(Path::new(socket), bytes.parse()?)?;
    let order = shuffled(memory.pages(), seed.parse()?);
    let (first, rest) = order.split_first().ok_or("no pages")?;
    // The handler is ready when it has answered the first fault.
    let mut is_right = memory.word(*first, 0) == word(*first);
    let start = std::time::Instant::now();
    for page in rest {
        is_right &= memory.word(*page, 0) == word(*page);
    }
    let ns = start.elapsed().as_nanos() / rest.len() as u128;
    if !is_right {
        return Err("a page is wrong".into());
    }
    println!("{ns}");
    Ok(())
}

/// Where pages come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Memory,
    File,
}

/// What answers the faults.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handler {
    /// poll, read, UFFDIO_COPY.
    Bare(Place),
    /// read, which waits, and UFFDIO_COPY. It cannot be told that the VM has ended.
    Blocking,
    Session(Place),
}

const HANDLERS: [Handler; 5] = [
    Handler::Bare(Place::Memory),
    Handler::Session(Place::Memory),
    Handler::Bare(Place::File),
    Handler::Session(Place::File),
    Handler::Blocking,
];

struct World {
    memory: Arc<VecMemory>,
    image: Arc<MemoryImage>,
    file: File,
    locality: Arc<LocalityOrder>,
    folder: tempfile::TempDir,
}

impl World {
    fn new(bytes: u64) -> Outcome<Self> {
        let layout = MemoryLayout::contiguous(bytes)?;
        let mut memory = VecMemory::zeroed(layout.clone());
        for (n, page) in memory.bytes_mut().chunks_mut(PAGE).enumerate() {
            page.fill(7);
            page[..8].copy_from_slice(&word(n).to_le_bytes());
        }
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("mem.bin");
        std::fs::write(&path, memory.bytes())?;
        Ok(Self {
            memory: Arc::new(memory),
            image: Arc::new(MemoryImage::open(&path, &Format::Auto)?),
            file: File::open(&path)?,
            locality: ColorMap::unknown(layout).into(),
            folder,
        })
    }

    /// Nanoseconds of a fault.
    fn round(&self, handler: Handler, seed: usize, cpus: (usize, usize)) -> Outcome<u64> {
        let bytes = self.memory.layout().bytes();
        let socket = self.folder.path().join("vm.sock");
        let listener = UnixListener::bind(&socket)?;
        let what = format!("{} {bytes} {seed} {}", socket.display(), cpus.0);
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.env(CHILD, what).stdout(Stdio::piped()).spawn()?;
        let (stream, _) = listener.accept()?;
        let mut hello = receive(&stream)?;
        let descriptor = hello.descriptors.pop().ok_or("no descriptor")?;
        let address = u64::from_le_bytes(*hello.message.first_chunk().ok_or("no address")?);
        pin(cpus.1)?;
        match handler {
            Handler::Session(place) => {
                let source = match place {
                    Place::Memory => LocalSource::new(Arc::clone(&self.memory) as _),
                    Place::File => LocalSource::new(Arc::clone(&self.image) as _),
                };
                let session = Session::builder(Arc::clone(&self.locality), source)
                    .policy(Box::new(Demand))
                    .userfaultfd(descriptor, [Region::at_offset(address, bytes, 0)])
                    .until_exit(hello.process);
                session.start()?.wait()?;
            }
            Handler::Bare(_) | Handler::Blocking => {
                if handler == Handler::Blocking {
                    fcntl_setfl(&descriptor, fcntl_getfl(&descriptor)? - OFlags::NONBLOCK)?;
                }
                self.bare(&own(descriptor), address, handler)?;
            }
        }
        std::fs::remove_file(&socket)?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err("the child failed".into());
        }
        Ok(String::from_utf8(output.stdout)?.trim().parse()?)
    }

    /// Answers as many faults as there are pages.
    fn bare(&self, uffd: &Uffd, address: u64, handler: Handler) -> Outcome<()> {
        let (memory, mut buffer) = (self.memory.bytes(), [0; PAGE]);
        let mut left = memory.len() / PAGE;
        while left > 0 {
            if handler != Handler::Blocking {
                poll(&mut [PollFd::new(uffd, PollFlags::IN)], None)?;
            }
            let Some(event) = uffd.read_event()? else { continue };
            let Event::Pagefault { addr, .. } = event else { return Err("no fault".into()) };
            let at = (addr.addr() - usize::try_from(address)?) / PAGE * PAGE;
            let page = if handler == Handler::Bare(Place::File) {
                self.file.read_exact_at(&mut buffer, at as u64)?;
                &buffer[..]
            } else {
                &memory[at..at + PAGE]
            };
            copy(uffd, usize::try_from(address)? + at, page)?;
            left -= 1;
        }
        Ok(())
    }
}

/// A descriptor that the child opened as a userfaultfd.
fn own(descriptor: OwnedFd) -> Uffd {
    // SAFETY: the child opened it as a userfaultfd, and it is given away.
    unsafe { Uffd::from_raw_fd(descriptor.into_raw_fd()) }
}

/// Fills pages at an address of the child.
fn copy(uffd: &Uffd, address: usize, bytes: &[u8]) -> Outcome<()> {
    let to = std::ptr::without_provenance_mut(address);
    // SAFETY: the source is `bytes`; the target is memory of another process.
    unsafe { uffd.copy(bytes.as_ptr().cast(), to, bytes.len(), true) }?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a fault are below 2^53")]
fn measure(world: &World, rounds: usize, name: &str, cpus: (usize, usize)) -> Outcome<()> {
    let mut times = vec![Vec::new(); HANDLERS.len()];
    for round in 0..rounds {
        // Each comes first as often as the others.
        for n in 0..HANDLERS.len() {
            let at = (round + n) % HANDLERS.len();
            times[at].push(world.round(HANDLERS[at], round, cpus)? as f64);
        }
    }
    let of = |handler| &times[HANDLERS.iter().position(|h| *h == handler).unwrap_or(0)];
    for (place, text) in [(Place::Memory, "memory"), (Place::File, "a file")] {
        let (bare, ours) = (of(Handler::Bare(place)), of(Handler::Session(place)));
        let mut ratios: Vec<f64> = ours.iter().zip(bare).map(|(ours, bare)| ours / bare).collect();
        ratios.sort_by(f64::total_cmp);
        println!(
            "{name}, pages from {text}: bare {:.0} ns, session {:.0} ns, ratio {:.3} ({:.3} to {:.3})",
            median(bare.clone()),
            median(ours.clone()),
            median(ratios.clone()),
            ratios[0],
            ratios[ratios.len() - 1],
        );
    }
    println!("{name}: a loop of blocking reads {:.0} ns", median(of(Handler::Blocking).clone()));
    Ok(())
}

fn main() -> Outcome<()> {
    if let Ok(what) = std::env::var(CHILD) {
        return child(&what);
    }
    if let Err(error) = UffdBuilder::new().user_mode_only(false).create() {
        println!("******** SKIPPED: no userfaultfd for another process here ({error}) ********");
        return Ok(());
    }
    // `cargo bench` passes `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let numbers: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let number = |n: usize, default| numbers.get(n).copied().unwrap_or(default);
    let filter = words.iter().find(|word| word.parse::<u64>().is_err());
    let rounds = usize::try_from(number(0, 15))?;
    let usable = sched_getaffinity(None)?;
    let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| usable.is_set(*cpu));
    let first = usable.next().ok_or("no core")?;
    let second = usable.next();
    if rounds > 0 {
        let world = World::new(number(1, 256) << 20)?;
        if let Some(second) = second {
            measure(&world, rounds, "two cores", (first, second))?;
        }
        measure(&world, rounds, "one core", (first, first))?;
    }
    let filter = filter.map_or("", String::as_str);
    traces::measure(usize::try_from(number(2, 5))?, filter, (first, second.unwrap_or(first)))
}
