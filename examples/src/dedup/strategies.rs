//! Runs the strategies on all guests.

use super::clock::cpu_time;
use super::guests::Guest;
use crate::failure::Failure;
use crate::progress::Bar;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::dedup::{
    Adaptive, Blind, Catalog, DedupSelector, GuestNumber, HitRates, Paper, SelectionOutcome, Trial,
    TrialGuest, run, run_filtered,
};
use kaleidoscope_core::fingerprint::{Domain, contents, partial_contents};
use kaleidoscope_core::memory::{GuestMemory, data_frames};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// A strategy for choosing frames to hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Strategy {
    Blind,
    KernelAndExecutable,
    CacheAndExecutable,
    /// The adaptive selector. With a percentage, it makes at most this share of blind's hashes.
    Adaptive(Option<u32>),
    /// The adaptive selector with a partial-hash filter. With a percentage, all frames are
    /// partially hashed, and at most this share of blind's hashes is made. Without one, frames are
    /// partially hashed only if their expected savings justify it.
    Filtered(Option<u32>),
}

/// All strategies. Blind is first, because the others are compared with it.
pub(super) const STRATEGIES: [Strategy; 9] = [
    Strategy::Blind,
    Strategy::KernelAndExecutable,
    Strategy::CacheAndExecutable,
    Strategy::Adaptive(Some(5)),
    Strategy::Adaptive(Some(25)),
    Strategy::Adaptive(None),
    Strategy::Filtered(Some(5)),
    Strategy::Filtered(Some(25)),
    Strategy::Filtered(None),
];

/// Expected savings, in pages, below which a frame is not even partially hashed if there is no
/// budget. A partial hash costs a tenth to a fifth of a full one.
const LEAST_PARTIAL_SAVINGS: f64 = 0.01;

impl Strategy {
    /// The budget in percent of blind's hashes, if there is one.
    pub(super) fn percent(self) -> Option<u32> {
        match self {
            Self::Adaptive(percent) | Self::Filtered(percent) => percent,
            Self::Blind | Self::KernelAndExecutable | Self::CacheAndExecutable => None,
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Blind => "blind",
            Self::KernelAndExecutable => "kernel+executable",
            Self::CacheAndExecutable => "cache+executable",
            Self::Adaptive(None) => "adaptive",
            Self::Adaptive(Some(percent)) => return f.pad(&format!("adaptive-{percent}%")),
            Self::Filtered(None) => "sieved",
            Self::Filtered(Some(percent)) => return f.pad(&format!("sieved-{percent}%")),
        };
        f.pad(name)
    }
}

/// The result of a strategy.
#[derive(Clone, Debug)]
pub(super) struct StrategyResult {
    pub(super) strategy: Strategy,
    pub(super) trial: Trial,
    /// Frames of each guest that were hashed.
    pub(super) hashed: Vec<Vec<FrameIndex>>,
    /// CPU time of all threads, by activity: partial hashing (including reading); full hashing
    /// (including reading); cataloging names and build ids, selecting and learning; looking up and
    /// counting.
    pub(super) partial_hashing: Duration,
    pub(super) hashing: Duration,
    pub(super) choosing: Duration,
    pub(super) counting: Duration,
}

impl StrategyResult {
    /// Hashes per page that stays saved.
    pub(super) fn hashes_per_page(&self) -> Option<f64> {
        let total = self.trial.total();
        ratio(total.hashed, total.net())
    }
}

impl StrategyResult {
    /// Total CPU time.
    pub(super) fn cpu(&self) -> Duration {
        self.partial_hashing + self.hashing + self.choosing + self.counting
    }
}

/// A selector whose CPU time is measured.
struct Timed {
    selector: Box<dyn DedupSelector>,
    time: Duration,
}

impl Timed {
    fn new(make: impl FnOnce() -> Box<dyn DedupSelector>) -> Self {
        let mut time = Duration::ZERO;
        let selector = timed(&mut time, make);
        Self { selector, time }
    }
}

impl DedupSelector for Timed {
    fn name(&self) -> &str {
        self.selector.name()
    }

    fn select(&mut self, room: usize, frames: &mut Vec<FrameIndex>) {
        timed(&mut self.time, || self.selector.select(room, frames));
    }

    fn learn(&mut self, outcomes: &[(FrameIndex, SelectionOutcome)]) {
        timed(&mut self.time, || self.selector.learn(outcomes));
    }
}

/// One count divided by another.
pub(super) fn ratio(count: u64, by: u64) -> Option<f64> {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    (by > 0).then(|| f64::from(number(count)) / f64::from(number(by)))
}

/// Runs all strategies, blind first.
pub(super) fn run_all(
    guests: &[Guest],
    hit_rates: &HitRates,
) -> Result<Vec<StrategyResult>, Failure> {
    let domain = Domain::random().map_err(|e| Failure::new(format_args!("no random key: {e}")))?;
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let bar = Bar::new("strategies", STRATEGIES.len());
    guests.iter().for_each(touch);
    let mut results: Vec<StrategyResult> = Vec::with_capacity(STRATEGIES.len());
    for strategy in STRATEGIES {
        let all = results.first().map_or(u64::MAX, |blind| blind.trial.total().hashed);
        let share = |percent: u32| all.saturating_mul(percent.into()) / 100;
        let budget = strategy.percent().map_or(u64::MAX, share);
        results.push(run_one(strategy, guests, hit_rates, budget, (&domain, threads))?);
        bar.advance();
    }
    bar.finish();
    Ok(results)
}

/// Reads all frames once, so that the first strategy does not pay for reading the image into the
/// page cache.
fn touch(guest: &Guest) {
    for frame in data_frames(&guest.image).filter(|frame| !guest.locality.is_free(*frame)) {
        let gfn = guest.locality.layout().gfn_of(frame);
        let page = gfn.and_then(|gfn| guest.image.slice(gfn.gpa(), FRAME_BYTES));
        std::hint::black_box((frame, page.and_then(<[u8]>::first)));
    }
}

/// A catalog of all guests, numbered by position. Build ids are read again each time, so that every
/// strategy pays for them.
fn catalog(guests: &[Guest]) -> Result<Catalog, Failure> {
    let mut catalog = Catalog::new();
    for guest in guests {
        catalog.add_with(&guest.locality, &guest.build_ids()?);
    }
    Ok(catalog)
}

fn run_one(
    strategy: Strategy,
    guests: &[Guest],
    hit_rates: &HitRates,
    budget: u64,
    (domain, threads): (&Domain, NonZeroUsize),
) -> Result<StrategyResult, Failure> {
    let start = cpu_time();
    let needs_names = matches!(strategy, Strategy::Adaptive(_) | Strategy::Filtered(_));
    let catalog = catalog(if needs_names { guests } else { &[] })?;
    let cataloging = cpu_time().saturating_sub(start);
    let make = |(number, guest): (GuestNumber, &Guest)| {
        let locality = Arc::clone(&guest.locality);
        let adaptive = || Adaptive::new(Arc::clone(&guest.locality), &catalog, number, hit_rates);
        Timed::new(|| match strategy {
            Strategy::Blind => Box::new(Blind::new(locality)),
            Strategy::KernelAndExecutable => Box::new(Paper::kernel_and_executable(locality)),
            Strategy::CacheAndExecutable => Box::new(Paper::cache_and_executable(locality)),
            // Spend the whole budget.
            Strategy::Adaptive(Some(_)) | Strategy::Filtered(Some(_)) => {
                Box::new(adaptive().with_least_worth(0.0))
            }
            Strategy::Adaptive(None) => Box::new(adaptive()),
            Strategy::Filtered(None) => {
                Box::new(adaptive().with_least_worth(LEAST_PARTIAL_SAVINGS))
            }
        })
    };
    let mut selectors: Vec<Timed> = (0..).map(GuestNumber).zip(guests).map(make).collect();
    let written: Vec<_> =
        guests.iter().map(|guest| |frame: FrameIndex| guest.is_written(frame)).collect();
    let mut subjects: Vec<TrialGuest<'_>> = guests
        .iter()
        .zip(&mut selectors)
        .zip((0..).map(GuestNumber).zip(&written))
        .map(|((guest, selector), (number, is_written))| TrialGuest {
            number,
            locality: &guest.locality,
            selector,
            is_written,
        })
        .collect();
    let (mut partial_hashing, mut hashing) = (Duration::ZERO, Duration::ZERO);
    let read_partial = |place: usize, frames: &[FrameIndex]| {
        timed(&mut partial_hashing, || match guests.get(place) {
            Some(guest) => partial_contents(&guest.image, frames, domain, threads)
                .map_err(|e| Failure::new(format_args!("{}: {e}", guest.name))),
            None => Ok(Vec::new()),
        })
    };
    let mut hashed = vec![Vec::new(); guests.len()];
    let read = |place: usize, frames: &[FrameIndex]| {
        if let Some(hashed) = hashed.get_mut(place) {
            hashed.extend_from_slice(frames);
        }
        timed(&mut hashing, || match guests.get(place) {
            Some(guest) => contents(&guest.image, frames, domain, threads)
                .map_err(|e| Failure::new(format_args!("{}: {e}", guest.name))),
            None => Ok(Vec::new()),
        })
    };
    let trial = match strategy {
        Strategy::Filtered(_) => run_filtered(&mut subjects, budget, read_partial, read)?,
        Strategy::Blind
        | Strategy::KernelAndExecutable
        | Strategy::CacheAndExecutable
        | Strategy::Adaptive(_) => run(&mut subjects, budget, read)?,
    };
    drop(subjects);
    let choosing = cataloging + selectors.iter().map(|selector| selector.time).sum::<Duration>();
    let all = cpu_time().saturating_sub(start);
    let counting = all.saturating_sub(partial_hashing + hashing + choosing);
    Ok(StrategyResult { strategy, trial, hashed, partial_hashing, hashing, choosing, counting })
}

/// Runs `work`, and adds its CPU time to `sum`.
fn timed<T>(sum: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begun = cpu_time();
    let done = work();
    *sum += cpu_time().saturating_sub(begun);
    done
}
