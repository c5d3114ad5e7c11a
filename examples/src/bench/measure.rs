//! The measurements. Rounds of a measurement and of its baseline alternate.

use super::bare;
use super::cores::{Cores, Pinned};
use super::world::{
    Arena, GeneratedImage, Outcome, PageServer, RepeatedImage, image, locality, start,
};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{
    Delivery, InstallError, Installed, PageInstaller, PageSource, Priority, SourceError,
};
use kaleidoscope_core::clone::shared::Shared;
use kaleidoscope_core::clone::{Background, Engine, EngineOptions};
use kaleidoscope_core::memory::Page;
use kaleidoscope_core::prefetch::{Access, ColorGuide, Colored, Demand, Settings};
use kaleidoscope_mock::clone::MockMemory;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Frames of the transferred image: 64 MiB.
const FRAMES: u32 = 16_384;

/// Faults per round, and consecutive faults before switching to the other side.
const FAULTS: u32 = 1024;
const BLOCK: usize = 32;

/// Frames of the clone in the bookkeeping measurement: 4 GiB.
const MANY: u32 = 1 << 20;

/// Clones that share a server.
const CLONES: usize = 16;

/// Clones on one host that share fetched pages.
const SIBLINGS: usize = 4;

/// Duration of the fairness measurement.
const FAIRNESS_TIME: Duration = Duration::from_secs(3);

/// Most time until all pages of a clone are resident.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The median; zero for no times.
pub(super) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The times of the baseline and of the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) bare: Duration,
    pub(super) ours: Duration,
}

/// One fault over a Unix socket, from the access until the page is in the clone's memory.
pub(super) fn fault(rounds: usize, checksums: bool, cores: Cores) -> Outcome<Pair> {
    let (image, locality) = (image(FRAMES)?, locality(FRAMES)?);
    let cores = Pinned::new(cores)?;
    let host = cores.server(|| PageServer::serve(Arc::clone(&image) as _))??;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    let mut server = cores.server(|| bare::Server::start(&image))??;
    let source = host.connect(checksums)?;
    let arena = Arc::new(Arena::new(FRAMES));
    let parts = (Arc::new(source), Arc::clone(&arena) as _);
    let engine = start(&locality, Box::new(Demand), parts.0, parts.1, EngineOptions::default())?;
    // Both sides alternate in short blocks, in a scattered order, so that other load on the
    // machine affects both alike.
    let faults = FRAMES.min(u32::try_from(rounds)?.saturating_mul(FAULTS));
    let order: Vec<u32> = (0..faults).map(|n| n.wrapping_mul(4097) % FRAMES).collect();
    for block in order.chunks(BLOCK) {
        for frame in block {
            let start = Instant::now();
            server.fault(*frame, &*arena)?;
            bare.push(start.elapsed());
        }
        for frame in block {
            let start = Instant::now();
            engine.fault(FrameIndex(*frame), Access::Read)?;
            ours.push(start.elapsed());
        }
    }
    if order.iter().any(|frame| !arena.matches(FrameIndex(*frame), &image)) {
        return Err("a page is wrong".into());
    }
    Ok(Pair { bare: median(bare), ours: median(ours) })
}

/// Time to send the image over a socket without installing it: the lower bound of a stream.
pub(super) fn crossing(rounds: usize, cores: Cores) -> Outcome<Duration> {
    let image = image(FRAMES)?;
    let cores = Pinned::new(cores)?;
    let times: Result<Vec<_>, _> = (0..rounds).map(|_| bare::crossing(&image, &cores)).collect();
    Ok(median(times?))
}

fn fill(engine: &Engine, start: Instant) -> Outcome<Duration> {
    while !engine.is_filled() {
        if let Some(why) = engine.stopped() {
            return Err(why.into());
        }
        if start.elapsed() > TIMEOUT {
            return Err("timeout: the clone is not complete".into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(start.elapsed())
}

/// Time to fill a clone with a whole image over a Unix socket.
pub(super) fn stream(rounds: usize, checksums: bool, cores: Cores) -> Outcome<Pair> {
    let (image, locality) = (image(FRAMES)?, locality(FRAMES)?);
    let cores = Pinned::new(cores)?;
    let host = cores.server(|| PageServer::serve(Arc::clone(&image) as _))??;
    let arena = Arc::new(Arena::new(FRAMES));
    let options = EngineOptions::default().background(Background::Full);
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare.push(bare::stream(&image, &*arena, &cores)?);
        let source = Arc::new(host.connect(checksums)?);
        let now = Instant::now();
        let engine = start(&locality, Box::new(Demand), source, Arc::clone(&arena) as _, options)?;
        ours.push(fill(&engine, now)?);
    }
    if (0..FRAMES).any(|frame| !arena.matches(FrameIndex(frame), &image)) {
        return Err("a page is wrong".into());
    }
    Ok(Pair { bare: median(bare), ours: median(ours) })
}

/// The fewest and the most pages that any clone of one server gets in `FAIRNESS_TIME`. No clone is
/// complete by then.
pub(super) fn fairness() -> Outcome<(u64, u64)> {
    let locality = locality(MANY)?;
    // The server on one core, its clones on the other: thread migration by the scheduler would
    // favor some clones, and is not the server's fault.
    let cores = Pinned::new(Cores::Two)?;
    let image = Arc::new(RepeatedImage::new(MANY, image(FRAMES)?)?);
    let host = cores.server(|| PageServer::serve(image))??;
    let options = EngineOptions::default().background(Background::Full);
    let sink = Arc::new(NullInstaller);
    let mut engines = Vec::new();
    for _ in 0..CLONES {
        let source = Arc::new(host.connect(true)?);
        engines.push(start(&locality, Box::new(Demand), source, Arc::clone(&sink) as _, options)?);
    }
    let filled = |engine: &Engine| engine.statistics().total().filled;
    std::thread::sleep(FAIRNESS_TIME / 10);
    let begun: Vec<u64> = engines.iter().map(filled).collect();
    std::thread::sleep(FAIRNESS_TIME);
    let got: Vec<u64> =
        engines.iter().zip(begun).map(|(engine, begun)| filled(engine) - begun).collect();
    if engines.iter().any(Engine::is_filled) {
        return Err("a clone was complete before the measurement ended".into());
    }
    Ok((got.iter().min().copied().unwrap_or(0), got.iter().max().copied().unwrap_or(0)))
}

/// Time to fill several clones of one parent at once: each over its own connection (the baseline),
/// and all over one. Also returns pages sent over the one connection per page delivered to a clone.
pub(super) fn siblings(rounds: usize) -> Outcome<(Pair, f64)> {
    let (image, locality) = (image(FRAMES)?, locality(FRAMES)?);
    let host = PageServer::serve(Arc::clone(&image) as _)?;
    let arenas: Vec<_> = (0..SIBLINGS).map(|_| Arc::new(Arena::new(FRAMES))).collect();
    let run = |source: &dyn Fn() -> Outcome<Arc<dyn PageSource>>| {
        let now = Instant::now();
        let options = EngineOptions::default().background(Background::Full);
        let mut engines = Vec::new();
        for arena in &arenas {
            let installer = Arc::clone(arena) as _;
            engines.push(start(&locality, Box::new(Demand), source()?, installer, options)?);
        }
        for engine in &engines {
            fill(engine, now)?;
        }
        Outcome::Ok(now.elapsed())
    };
    let (mut bare, mut ours, mut crossed) = (Vec::new(), Vec::new(), 0.0f64);
    for _ in 0..rounds {
        bare.push(run(&|| Ok(Arc::new(host.connect(true)?)))?);
        let shared = Shared::new(Arc::new(host.connect(true)?), FRAMES, image.bytes().len() >> 12)?;
        ours.push(run(&|| Ok(Arc::new(shared.sibling())))?);
        let statistics = shared.statistics();
        #[expect(clippy::cast_precision_loss, reason = "counts of pages are below 2^53")]
        let ratio = statistics.fetched as f64 / statistics.given.max(1) as f64;
        crossed = crossed.max(ratio);
    }
    let is_wrong = |frame| arenas.iter().any(|arena| !arena.matches(FrameIndex(frame), &image));
    if (0..FRAMES).any(is_wrong) {
        return Err("a page is wrong".into());
    }
    Ok((Pair { bare: median(bare), ours: median(ours) }, crossed))
}

/// Discards pages.
struct NullInstaller;

impl PageInstaller for NullInstaller {
    fn install(&self, _frame: FrameIndex, _page: &Page) -> Result<Installed, InstallError> {
        Ok(Installed::Installed)
    }

    fn zero(&self, _frame: FrameIndex) -> Result<Installed, InstallError> {
        Ok(Installed::Installed)
    }

    fn wake(&self, _frame: FrameIndex) -> Result<(), InstallError> {
        Ok(())
    }
}

/// Delivers every requested page at once, as zero.
#[derive(Default)]
struct ZeroSource(Mutex<Vec<FrameIndex>>);

impl PageSource for ZeroSource {
    fn request(&self, frames: &[FrameIndex], _priority: Priority) -> Result<(), SourceError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(frames);
        Ok(())
    }

    fn receive(
        &self,
        _wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        let asked = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        asked.into_iter().for_each(|frame| deliver(Delivery::Zero(frame)));
        Ok(())
    }
}

/// The engine's time per frame without transferring its bytes, and its memory per frame in bytes.
pub(super) fn bookkeeping(rounds: usize) -> Outcome<(Duration, f64)> {
    let locality = locality(MANY)?;
    let options = EngineOptions::default().background(Background::Full);
    let (mut times, mut bytes) = (Vec::new(), 0.0f64);
    for _ in 0..rounds {
        let before = resident()?;
        let now = Instant::now();
        let source = Arc::new(ZeroSource::default());
        let engine = start(&locality, Box::new(Demand), source, Arc::new(NullInstaller), options)?;
        times.push(fill(&engine, now)? / MANY);
        #[expect(clippy::cast_precision_loss, reason = "bytes of memory are below 2^53")]
        let taken = resident()?.saturating_sub(before) as f64;
        bytes = bytes.max(taken / f64::from(MANY));
    }
    Ok((median(times), bytes))
}

/// This process's resident set size in bytes.
fn resident() -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 =
        text.split(' ').nth(1).ok_or("no resident size in /proc/self/statm")?.parse()?;
    Ok(pages * kaleidoscope_core::addr::FRAME_SIZE)
}

/// Time from a descriptor to the first byte that a mock clone's vCPU reads: making its memory,
/// connecting to the page server, starting the engine, and one fault.
pub(super) fn start_time(mib: u32, rounds: usize) -> Outcome<Duration> {
    let frames = mib.checked_mul(256).ok_or("too large")?;
    let locality = locality(frames)?;
    let guide = Arc::new(ColorGuide::new(
        Arc::clone(&locality),
        Settings::shipped_for(locality.map().kernel()),
    ));
    // Everything on one core: half a dozen threads take part, and waking an idle core takes as
    // long as all their work.
    let cores = Pinned::new(Cores::One)?;
    let host = cores.server(|| PageServer::serve(Arc::new(GeneratedImage::new(frames)?)))??;
    let mut times = Vec::new();
    for round in 0..rounds {
        let touched = FrameIndex(u32::try_from(round)?.wrapping_mul(40_503) % frames);
        let now = Instant::now();
        let memory = Arc::new(MockMemory::new(frames)?);
        let policy = Box::new(Colored::new(Arc::clone(&guide)));
        let source = Arc::new(host.connect(true)?);
        let engine =
            start(&locality, policy, source, Arc::clone(&memory) as _, EngineOptions::default())?;
        engine.fault(touched, Access::Read)?;
        let mut number = [0; 4];
        memory.read(touched, 0, &mut number)?;
        times.push(now.elapsed());
        if number != touched.0.to_le_bytes() {
            return Err(format!("frame {touched} is wrong").into());
        }
        drop(engine);
    }
    Ok(median(times))
}
