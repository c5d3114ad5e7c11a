//! How long clones wait for their memory in sessions, on real guests with traces.
//!
//! `KALEIDOSCOPE_GUESTS` names a folder of guest folders, each with `ram.bin`, `layout.txt`,
//! `regs.txt` and a folder `traces` of CSV files. A child maps the guest's RAM, sends its
//! userfaultfd, and touches the frames of a trace in order, without pauses, reading or writing as
//! the trace says. The pages come from `ram.bin`.

use super::vmm::{Memory, PAGE};
use super::{CHILD, Outcome, copy, median, own, pin};
use kaleidoscope_core::clone::{EngineOptions, FreeFrames, LocalSource, Statistics};
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::image::{Format, LayoutFile, MemoryImage, RawLayout};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::prefetch::{Access, Blind, Demand, LocalityOrder};
use kaleidoscope_core::registers::parse_qemu_text;
use kaleidoscope_core::replay::Trace;
use kaleidoscope_kvm::uffd::{Region, Session, receive};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// Bytes that the copy of the whole memory reads and installs at once.
const CHUNK: usize = 1 << 20;

/// What fills the memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handler {
    /// A session with default options.
    Default,
    Zero,
    Fetch,
    Blind,
    Demand,
    /// A loop that copies the whole memory in ascending order.
    Whole,
}

const HANDLERS: [(Handler, &str); 6] = [
    (Handler::Default, "predicted"),
    (Handler::Zero, "predicted, free frames zeroed"),
    (Handler::Fetch, "predicted, free frames fetched"),
    (Handler::Blind, "blind-aligned-16"),
    (Handler::Demand, "demand"),
    (Handler::Whole, "copy of the whole memory"),
];

struct Guest {
    image: Arc<MemoryImage>,
    file: File,
    locality: Arc<LocalityOrder>,
}

impl Guest {
    fn open(folder: &Path) -> Outcome<Self> {
        let layout = LayoutFile::open(&folder.join("layout.txt"))?;
        let path = folder.join("ram.bin");
        let image = MemoryImage::open(&path, &Format::Raw(RawLayout::File(layout)))?;
        let registers = parse_qemu_text(&fs::read_to_string(folder.join("regs.txt"))?)?;
        let map = color(&image, &ColoringOptions::default().registers(registers))?.map;
        Ok(Self { image: Arc::new(image), file: File::open(path)?, locality: map.into() })
    }

    /// Addresses of the guest's RAM, which is mapped in one piece, in the order of its frames.
    fn regions(&self, address: u64) -> Vec<Region> {
        let (mut regions, mut at) = (Vec::new(), address);
        for region in self.image.layout().regions() {
            let bytes = u64::from(region.frames) * PAGE as u64;
            regions.push(Region::at_offset(at, bytes, region.start.0 * PAGE as u64));
            at += bytes;
        }
        regions
    }

    /// Copies the whole memory.
    fn copy(&self, uffd: OwnedFd, address: u64) -> Outcome<()> {
        let uffd = own(uffd);
        let bytes = usize::try_from(self.image.layout().bytes())?;
        let mut buffer = vec![0; CHUNK];
        for at in (0..bytes).step_by(CHUNK) {
            let chunk = &mut buffer[..CHUNK.min(bytes - at)];
            self.file.read_exact_at(chunk, at as u64)?;
            copy(&uffd, usize::try_from(address)? + at, chunk)?;
        }
        Ok(())
    }

    /// Milliseconds until the child has touched all frames of the trace, and the session's counts.
    fn round(
        &self,
        handler: Handler,
        touches: &Path,
        cpus: (usize, usize),
    ) -> Outcome<(f64, Option<Statistics>)> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("vm.sock");
        let listener = UnixListener::bind(&socket)?;
        let bytes = self.image.layout().bytes();
        let what = format!("{} {bytes} {} {}", socket.display(), touches.display(), cpus.0);
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.env(CHILD, what).stdout(Stdio::piped()).spawn()?;
        pin(cpus.1)?;
        let (stream, _) = listener.accept()?;
        let mut hello = receive(&stream)?;
        let descriptor = hello.descriptors.pop().ok_or("no descriptor")?;
        let address = u64::from_le_bytes(*hello.message.first_chunk().ok_or("no address")?);
        let mut statistics = None;
        if handler == Handler::Whole {
            self.copy(descriptor, address)?;
            poll(&mut [PollFd::new(&hello.process, PollFlags::IN)], None)?;
        } else {
            let source = LocalSource::new(Arc::clone(&self.image) as _);
            let mut session = Session::builder(Arc::clone(&self.locality), source)
                .userfaultfd(descriptor, self.regions(address))
                .until_exit(hello.process);
            let options = EngineOptions::default();
            session = match handler {
                Handler::Zero => session.options(options.free_frames(FreeFrames::Zero)),
                Handler::Fetch => session.options(options.free_frames(FreeFrames::Fetch)),
                Handler::Blind => session.policy(Box::new(Blind::aligned(16))),
                Handler::Demand => session.policy(Box::new(Demand)),
                Handler::Default | Handler::Whole => session,
            };
            let session = session.start()?;
            session.wait()?;
            statistics = Some(session.engine().statistics());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err("the child failed".into());
        }
        let nanoseconds: u64 = String::from_utf8(output.stdout)?.trim().parse()?;
        Ok((std::time::Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3, statistics))
    }
}

/// The child: touches frames in order, and prints the nanoseconds since it handed its memory over.
pub(crate) fn child(socket: &str, bytes: &str, touches: &str, cpu: &str) -> Outcome<()> {
    pin(cpu.parse()?)?;
    let touches = fs::read(touches)?;
    let memory = Memory::hand_over(Path::new(socket), bytes.parse()?)?;
    let start = Instant::now();
    for touch in touches.as_chunks::<8>().0 {
        let touch = u64::from_le_bytes(*touch);
        memory.touch(usize::try_from(touch >> 1)?, touch & 1 != 0);
    }
    println!("{}", start.elapsed().as_nanos());
    Ok(())
}

/// The frames of a trace, as the child reads them: twice the frame's number, plus one for a write.
fn write_touches(trace: &Trace, path: &Path) -> Outcome<()> {
    let word = |touch: &kaleidoscope_core::replay::Touch| {
        u64::from(touch.frame.0) << 1 | u64::from(touch.access == Access::Write)
    };
    let bytes: Vec<u8> = trace.touches().iter().flat_map(|t| word(t).to_le_bytes()).collect();
    Ok(fs::write(path, bytes)?)
}

fn entries(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let entries: Result<Vec<_>, _> = fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect();
    let mut entries = entries?;
    entries.sort();
    Ok(entries)
}

/// Measures every trace whose name contains `filter`.
pub(crate) fn measure(rounds: usize, filter: &str, cpus: (usize, usize)) -> Outcome<()> {
    let Some(root) = std::env::var_os("KALEIDOSCOPE_GUESTS").filter(|root| !root.is_empty()) else {
        println!("******** SKIPPED traces: KALEIDOSCOPE_GUESTS names no folder ********");
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let touches = folder.path().join("touches");
    for path in entries(Path::new(&root))?.iter().filter(|path| path.join("traces").is_dir()) {
        let guest = Guest::open(path)?;
        for file in entries(&path.join("traces"))? {
            let name = format!("{}/{}", path.display(), file.display());
            if !name.contains(filter) {
                continue;
            }
            let trace = Trace::from_csv(File::open(&file)?, guest.image.layout())?;
            write_touches(&trace, &touches)?;
            println!("{}: {} touches", file.display(), trace.touches().len());
            let mut times = vec![Vec::new(); HANDLERS.len()];
            let mut counts = vec![None; HANDLERS.len()];
            for round in 0..rounds {
                for n in 0..HANDLERS.len() {
                    let at = (round + n) % HANDLERS.len();
                    let (time, statistics) = guest.round(HANDLERS[at].0, &touches, cpus)?;
                    times[at].push(time);
                    counts[at] = statistics;
                }
            }
            let medians: Vec<f64> = times.into_iter().map(median).collect();
            let of = |handler| HANDLERS.iter().position(|(h, _)| *h == handler).unwrap_or(0);
            let (blind, whole) = (medians[of(Handler::Blind)], medians[of(Handler::Whole)]);
            for (((_, name), time), statistics) in HANDLERS.iter().zip(&medians).zip(&counts) {
                println!(
                    "  {name}: {time:.1} ms, {:.2} of blind, {:.2} of the whole copy{}",
                    time / blind,
                    time / whole,
                    statistics.as_ref().map_or(String::new(), |s| format!("; {}", shown(s))),
                );
            }
        }
    }
    Ok(())
}

fn shown(statistics: &Statistics) -> String {
    let total = statistics.total();
    format!(
        "{} faults, {} zero faults, {} late, {} prefetched, {} zeroed ahead",
        total.faults, total.zero_faults, total.late, total.prefetched, total.zeroed_ahead,
    )
}
