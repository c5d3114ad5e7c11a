//! Clones of a synthetic guest, configured by a recipe.

use kaleidoscope_core::addr::{FrameIndex, Gpa};
use kaleidoscope_core::alloc::{CloneLimits, Host, HostLimits};
use kaleidoscope_core::clone::ports::PageSource;
use kaleidoscope_core::clone::shared::Shared;
use kaleidoscope_core::clone::{
    Background, Engine, EngineOptions, EngineParts, Feedback, FreeFrames, LocalSource,
};
use kaleidoscope_core::color::{
    Color, ColorMap, Frame, FrameKind, KernelIdentity, Order, Region, RegionId, Temperature,
};
use kaleidoscope_core::fingerprint::{Domain, Fingerprints, contents};
use kaleidoscope_core::memory::{GuestMemory, MemoryError, MemoryLayout};
use kaleidoscope_core::prefetch::{
    Blind, ColorGuide, Colored, Demand, Fault, LocalityOrder, Paper, Planner, PrefetchPolicy,
    Settings,
};
use kaleidoscope_core::store::{MemoryStore, PageStore, StoreView};
use kaleidoscope_mock::Rng;
use kaleidoscope_mock::clone::pattern::Pattern;
use kaleidoscope_mock::clone::{
    Call, Failure, FaultyInstaller, FaultyQueue, FaultySource, MockMemory, MockParent, MockVm,
    Program, Report, Script, Threads, When, Work, Writers,
};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Prefetch policy of a clone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Policy {
    Demand,
    Next,
    Aligned,
    Colored,
    Paper,
    Random,
}

/// Number of pages that the clones' shared source keeps: few, so that pages are dropped and fetched
/// again.
const SHARED_PAGES: usize = 40;

/// Everything that a run depends on, except thread timing.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) seed: u64,
    pub(crate) frames: u32,
    pub(crate) policy: Policy,
    pub(crate) options: EngineOptions,
    pub(crate) threads: Threads,
    pub(crate) program: Program,
    /// Whether pages come through the source that clones of one host share.
    pub(crate) shared: bool,
    /// Capacity in pages of the host's content store, if there is one. It starts with half of the
    /// clone's pages, and pages of others come and go.
    pub(crate) store: Option<u32>,
    /// Frames of the host's memory; `None` for no limit.
    pub(crate) host_frames: Option<u32>,
    /// Whether memory is always short, so that prefetched frames are evicted.
    pub(crate) pressure: bool,
    pub(crate) failures: Vec<(Call, When, Failure)>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            seed: 1,
            frames: 1000,
            policy: Policy::Aligned,
            options: EngineOptions::default(),
            threads: Threads::default(),
            program: Program::default(),
            shared: false,
            store: None,
            host_frames: None,
            pressure: false,
            failures: Vec::new(),
        }
    }
}

/// Results of a run.
pub(crate) struct Run {
    pub(crate) report: Report,
    pub(crate) engine: Arc<Engine>,
    pub(crate) memory: Arc<MockMemory>,
    pub(crate) script: Script,
    pub(crate) host: Arc<Host>,
}

/// A parent that keeps being written, its snapshot, and the expected contents of clones.
pub(crate) struct Guest {
    pub(crate) locality: Arc<LocalityOrder>,
    pub(crate) snapshot: Arc<dyn GuestMemory>,
    pub(crate) truth: Arc<dyn GuestMemory>,
    pub(crate) writers: Writers,
}

/// Contents at the freeze, computed from the pattern alone, so that a change of the snapshot is
/// noticed.
struct Truth {
    layout: MemoryLayout,
    pattern: Pattern,
    /// If set, frames that are free in this map read as zeros.
    zeroed: Option<Arc<LocalityOrder>>,
}

impl GuestMemory for Truth {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let frame = self.layout.index_of(gpa.gfn()).unwrap();
        if self.zeroed.as_ref().is_some_and(|locality| locality.is_free(frame)) {
            buf.fill(0);
        } else {
            let at = gpa.offset_in_frame();
            buf.copy_from_slice(&self.pattern.page(frame, 0)[at..at + buf.len()]);
        }
        Ok(())
    }
}

/// A map with runs of free memory, files, slabs and processes, and a hole in the middle.
fn map(frames: u32, seed: u64) -> ColorMap {
    let mut rng = Rng::new(seed);
    let below = u64::from(frames / 2) << 12;
    let above = (u64::from(frames) << 12) - below;
    let layout = MemoryLayout::new(&[(Gpa(0), below), (Gpa(1 << 32), above)]).unwrap();
    let kinds = [
        (FrameKind::File, Order::FileOffset, Color::FileCache),
        (FrameKind::Slab, Order::KernelAddress, Color::Slab),
        (FrameKind::Anonymous, Order::UserAddress, Color::Anonymous),
    ];
    let regions: Vec<_> =
        (0..9).map(|n| Region::new(kinds[n % 3].0, kinds[n % 3].1, format!("r{n}"))).collect();
    let mut all = Vec::new();
    while all.len() < frames as usize {
        let run = 1 + rng.below(24);
        let which = rng.index(12);
        for position in 0..run {
            all.push(match kinds.get(which % 4) {
                Some((kind, _, color)) => Frame {
                    kind: *kind,
                    color: *color,
                    region: (which < 9).then(|| RegionId(region(which))),
                    position: rng.below(9) + position,
                    temperature: Temperature::from_bits(u8::try_from(rng.below(64)).unwrap())
                        .unwrap(),
                },
                None => Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() },
            });
        }
    }
    all.truncate(frames as usize);
    ColorMap::new(layout, KernelIdentity::default(), all, regions).unwrap()
}

/// Number of a region of the same kind.
fn region(which: usize) -> u32 {
    u32::try_from(which % 4 + 3 * (which / 4)).unwrap()
}

/// A policy that plans at random.
struct Random(Rng);

impl Random {
    fn plan(&mut self, planner: &mut Planner<'_>) {
        let frames = u64::from(planner.locality().frames()) + 3;
        for _ in 0..self.0.below(40) {
            let frame = FrameIndex(u32::try_from(self.0.below(frames)).unwrap());
            if self.0.one_in(3) {
                planner.zero(frame);
            } else {
                planner.fetch_used(frame);
            }
        }
    }
}

impl PrefetchPolicy for Random {
    fn name(&self) -> &str {
        "random"
    }

    fn fault(&mut self, _: &Fault, planner: &mut Planner<'_>) {
        planner.answer_with_zeros();
        self.plan(planner);
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        if !self.0.one_in(4) {
            self.plan(planner);
        }
    }
}

impl Guest {
    /// A guest whose free frames hold garbage. Clones read them as zeros with [`FreeFrames::Zero`].
    pub(crate) fn new(frames: u32, seed: u64, free: FreeFrames) -> Self {
        let locality = Arc::new(LocalityOrder::new(map(frames, seed)));
        let layout = locality.layout().clone();
        let pattern = Pattern::new(seed).with(20, 20);
        let parent = MockParent::new(layout.clone(), pattern);
        let snapshot = Arc::new(parent.freeze());
        let writers = parent.keep_writing(1, seed ^ 0xffff).unwrap();
        while writers.written() == 0 {
            std::thread::yield_now();
        }
        let zeroed = (free == FreeFrames::Zero).then(|| Arc::clone(&locality));
        let truth = Arc::new(Truth { layout, pattern, zeroed });
        Self { locality, snapshot, truth, writers }
    }

    pub(crate) fn policy(&self, policy: Policy, seed: u64) -> Box<dyn PrefetchPolicy> {
        match policy {
            Policy::Demand => Box::new(Demand),
            Policy::Next => Box::new(Blind::next(7)),
            Policy::Aligned => Box::new(Blind::aligned(16)),
            Policy::Colored => {
                let guide = ColorGuide::new(Arc::clone(&self.locality), Settings::default());
                Box::new(Colored::new(Arc::new(guide)))
            }
            Policy::Paper => Box::new(Paper::new(Arc::clone(&self.locality))),
            Policy::Random => Box::new(Random(Rng::new(seed))),
        }
    }
}

/// Runs a clone from start to end.
pub(crate) fn run(recipe: &Recipe) -> Run {
    let guest = Guest::new(recipe.frames, recipe.seed, recipe.options.free_frames);
    let script = recipe.failures.iter().fold(Script::new(recipe.seed), |script, rule| {
        let (call, when, failure) = *rule;
        script.on(call, when, failure)
    });
    let memory = MockMemory::with_patience(recipe.frames, Duration::from_secs(60)).unwrap();
    let memory = Arc::new(memory);
    let snapshot = Arc::clone(&guest.snapshot);
    let mut source: Arc<dyn PageSource> = Arc::new(LocalSource::new(snapshot));
    if recipe.shared {
        source = Arc::new(Shared::new(source, recipe.frames, SHARED_PAGES).unwrap().sibling());
    }
    let store = recipe.store.map(|pages| Store::new(&guest, pages, recipe.seed));
    let host = Host::new(match recipe.host_frames {
        None => HostLimits::unlimited(),
        Some(frames) => HostLimits::for_frames(u64::from(frames)),
    });
    let installer = FaultyInstaller::new(Arc::clone(&memory) as _, script.clone());
    let queue = FaultyQueue::new(Arc::new(memory.queue()), recipe.frames, script.clone());
    let parts = EngineParts::new(
        Arc::clone(&guest.locality),
        guest.policy(recipe.policy, recipe.seed),
        Arc::new(FaultySource::new(source, recipe.frames, script.clone())),
        Arc::new(installer),
    )
    .queue(Some(Arc::new(queue)))
    .reservation(Some(host.admit(CloneLimits::unlimited()).unwrap()))
    .local_cache(store.clone().map(|store| Arc::new(store.view) as _));
    let engine = Arc::new(Engine::start(parts, recipe.options).unwrap());
    let vm = MockVm::start(
        Arc::clone(&memory),
        Arc::clone(&engine) as _,
        Arc::clone(&guest.truth),
        Work::Program(recipe.program),
        recipe.threads,
    );
    let vm = vm.unwrap();
    let is_over = AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        if recipe.pressure {
            scope.spawn(|| {
                let mut wanted = 1;
                while !is_over.load(Ordering::Acquire) && engine.reclaim(wanted).is_ok() {
                    wanted = wanted % 50 + 7;
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
        }
        if let Some(store) = &store {
            scope.spawn(|| store.churn(recipe.seed, &is_over));
        }
        let report = vm.join();
        is_over.store(true, Ordering::Release);
        report
    });
    if let Some(store) = store {
        let statistics = store.view.store().statistics();
        assert!(statistics.pages <= statistics.bound, "{statistics:?}");
        assert_eq!((statistics.pinned, statistics.pins), (0, 0), "{statistics:?}");
    }
    Run { report, engine, memory, script, host }
}

/// A host's content store, as the clones of one guest use it.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) view: StoreView,
    domain: Arc<Domain>,
}

impl Store {
    /// A store for `pages` pages that holds about half of the guest's.
    fn new(guest: &Guest, pages: u32, seed: u64) -> Self {
        let store = Self::of(guest, Arc::new(MemoryStore::new(pages)));
        let layout = guest.snapshot.layout();
        let mut rng = Rng::new(seed);
        for frame in (0..layout.frames()).map(FrameIndex) {
            let mut page = [0; 4096];
            let gpa = layout.gfn_of(frame).unwrap().gpa();
            if rng.one_in(2) && guest.snapshot.read(gpa, &mut page).is_ok() {
                store.view.keep(frame, &page).unwrap();
            }
        }
        store
    }

    /// A view of an existing store for the clones of one more guest.
    pub(crate) fn of(guest: &Guest, store: Arc<dyn PageStore>) -> Self {
        let domain = Arc::new(Domain::new([3; 32]));
        let frames: Vec<_> = (0..guest.locality.frames()).map(FrameIndex).collect();
        let found = contents(&*guest.snapshot, &frames, &domain, NonZeroUsize::MIN).unwrap();
        let found = frames.iter().copied().zip(found);
        let table = Fingerprints::new(domain.id(), guest.locality.frames(), found);
        let view = StoreView::new(store, Arc::new(table), Arc::clone(&domain)).unwrap();
        Self { view, domain }
    }

    /// Adds other pages, which evict some of the guest's; some are pinned for a while.
    fn churn(&self, seed: u64, is_over: &AtomicBool) {
        let mut rng = Rng::new(seed);
        let mut pinned = Vec::new();
        let store = self.view.store();
        while !is_over.load(Ordering::Acquire) {
            let mut page = [1; 4096];
            page[..8].copy_from_slice(&rng.below(u64::MAX).to_le_bytes());
            let key = self.domain.fingerprint(&page);
            store.put(key, &page).unwrap();
            if store.pin(key).is_some() {
                pinned.push(key);
            }
            if pinned.len() > 5 {
                store.unpin(pinned.swap_remove(rng.index(pinned.len())));
            }
            let mut seen = [0; 4096];
            if store.get(key, &mut seen).unwrap() {
                assert_eq!(seen, page);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        pinned.into_iter().for_each(|key| store.unpin(key));
    }
}

impl Run {
    /// Description of the run for a failed test.
    pub(crate) fn describe(&self) -> String {
        let log = self.script.log().to_string();
        let lines: Vec<_> =
            log.lines().filter(|l| !l.ends_with(" wait") && !l.ends_with(" read")).collect();
        let last = lines[lines.len().saturating_sub(60)..].join("\n");
        format!("{}\n{:?}\n{:#?}\n...\n{last}", self.report, self.engine, self.memory)
    }
}

/// Background fill settings that tests choose from.
pub(crate) const BACKGROUNDS: [Background; 3] =
    [Background::Off, Background::Throttled { pages_per_second: 2000 }, Background::Full];

/// Feedback settings that tests choose from.
pub(crate) const FEEDBACKS: [Feedback; 3] =
    [Feedback::Off, Feedback::Staged, Feedback::Sampled { one_in: 3 }];
