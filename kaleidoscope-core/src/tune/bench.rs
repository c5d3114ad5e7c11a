//! Replays one guest's traces incrementally, in parts that settings affect independently.
//!
//! A window affects no further than its region, with two exceptions: small files share one range of
//! positions, and an inode's frame brings the first pages of its files. So the touches of a trace
//! fall into independent parts: all files with the caches of their inodes, and every other region;
//! regions with the same set of classes share a part. A changed window affects only the parts in
//! which a frame of its class faulted, and a changed hint only those that hold frames of its class.

use super::TracedGuest;
use crate::addr::FrameIndex;
use crate::color::FrameKind;
use crate::prefetch::{
    Blind, Class, ColorGuide, Colored, Fault, LocalityOrder, Planner, PrefetchPolicy, Settings,
};
use crate::replay::{Counter, Counts, Touch, Trace};
use bitvec::vec::BitVec;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most frames of one plan while tuning; the same as the replay's default.
const BUDGET: usize = 256;

/// The baseline: blind aligned blocks of this many frames.
const BASELINE: u32 = 16;

/// A set of classes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
struct ClassSet([bool; Class::COUNT]);

impl ClassSet {
    fn insert(&mut self, class: Class) {
        if let Some(has) = self.0.get_mut(class.index()) {
            *has = true;
        }
    }

    fn intersects(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| *a && b)
    }
}

/// A guest, its traces in parts, and the results of the kept and of the last replayed settings.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    subject: &'a TracedGuest,
    counter: Counter,
    guide: Arc<ColorGuide>,
    /// Background fetches under the settings that were replayed last.
    background: Counts,
    runs: Vec<TracedRun>,
    kept: Option<Settings>,
}

/// A trace.
#[derive(Debug)]
struct TracedRun {
    baseline: Counts,
    parts: Vec<Part>,
}

/// Touches of a trace that are independent of all others.
#[derive(Debug)]
struct Part {
    /// Classes of the frames in these touches' regions.
    classes: ClassSet,
    touches: Vec<Touch>,
    kept: PartResult,
    last: PartResult,
}

#[derive(Clone, Copy, Debug, Default)]
struct PartResult {
    counts: Counts,
    /// Classes of the frames that faulted: only their windows had an effect.
    faulted: ClassSet,
}

impl<'a> Bench<'a> {
    /// Splits the traces and replays the baseline.
    pub(super) fn new(subject: &'a TracedGuest) -> Self {
        let locality = &subject.locality;
        let mut counter = Counter::new(Arc::clone(locality), BUDGET);
        let sets = class_sets(locality);
        let run = |trace: &Trace| TracedRun {
            baseline: counter.count(trace, &mut Blind::aligned(BASELINE)),
            parts: parts(trace, locality, &sets),
        };
        let runs = subject.traces.iter().map(run).collect();
        let guide = Arc::new(ColorGuide::new(Arc::clone(locality), Settings::bare("")));
        let background = counter.start(&mut Colored::new(Arc::clone(&guide)));
        Self { subject, counter, guide, background, runs, kept: None }
    }

    pub(super) fn subject(&self) -> &'a TracedGuest {
        self.subject
    }

    /// Replays the parts on which the settings may differ from the kept ones.
    pub(super) fn replay(&mut self, settings: &Settings) {
        let Self { counter, guide, background, runs, kept, .. } = self;
        if Arc::make_mut(guide).change(settings) {
            *background = counter.start(&mut Colored::new(Arc::clone(guide)));
        }
        let difference = kept.as_ref().and_then(|kept| Difference::between(kept, settings));
        for part in runs.iter_mut().flat_map(|run| &mut run.parts) {
            part.last = match &difference {
                Some(difference) if !difference.affects(part) => part.kept,
                Some(_) | None => part.replay(guide, counter),
            };
        }
    }

    /// Results of the last replayed settings and of the baseline, for each trace.
    pub(super) fn results(&self) -> impl Iterator<Item = (Counts, Counts)> + '_ {
        self.runs.iter().map(|run| {
            let mut counts = self.background;
            run.parts.iter().for_each(|part| counts += part.last.counts);
            (counts, run.baseline)
        })
    }

    /// Keeps the settings that were replayed last.
    pub(super) fn keep(&mut self) {
        self.kept = Some(self.guide.settings().clone());
        for part in self.runs.iter_mut().flat_map(|run| &mut run.parts) {
            part.kept = part.last;
        }
    }
}

impl Part {
    fn replay(&self, guide: &Arc<ColorGuide>, counter: &mut Counter) -> PartResult {
        let colored = Colored::new(Arc::clone(guide));
        let mut policy = FaultRecorder { colored, faulted: ClassSet::default() };
        let counts = counter.resume(&self.touches, &mut policy);
        PartResult { counts, faulted: policy.faulted }
    }
}

/// The classes in which two settings have different windows or hints.
#[derive(Default)]
struct Difference {
    windows: ClassSet,
    hints: ClassSet,
}

impl Difference {
    /// `None` if they differ in other parameters. The number of free frames to fill is ignored,
    /// because it affects no count.
    fn between(old: &Settings, new: &Settings) -> Option<Self> {
        if old.inode_pages != new.inode_pages || old.predict_caches != new.predict_caches {
            return None;
        }
        let mut difference = Self::default();
        for class in Class::all().filter(|class| old.window(*class) != new.window(*class)) {
            difference.windows.insert(class);
        }
        for (some, others) in [(old, new), (new, old)] {
            for hint in some.predict.iter().filter(|hint| !others.predict.contains(hint)) {
                difference.hints.insert(hint.class);
            }
        }
        Some(difference)
    }

    fn affects(&self, part: &Part) -> bool {
        self.windows.intersects(&part.kept.faulted) || self.hints.intersects(&part.classes)
    }
}

/// A policy that records which classes fault.
struct FaultRecorder {
    colored: Colored,
    faulted: ClassSet,
}

impl PrefetchPolicy for FaultRecorder {
    fn name(&self) -> &str {
        self.colored.name()
    }

    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        self.faulted.insert(self.colored.guide().locality().class(fault.frame));
        self.colored.fault(fault, planner);
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        self.colored.background(planner);
    }
}

/// Splits a trace. Free frames are left out: they are filled with zeros under all settings.
fn parts(trace: &Trace, locality: &LocalityOrder, sets: &[ClassSet]) -> Vec<Part> {
    let mut parts = BTreeMap::<ClassSet, Vec<Touch>>::new();
    for touch in trace.touches().iter().filter(|touch| !locality.is_free(touch.frame)) {
        let stretch = locality.stretch(touch.frame).unwrap_or(u32::MAX) as usize;
        let classes = sets.get(stretch).copied().unwrap_or_default();
        parts.entry(classes).or_default().push(*touch);
    }
    let part = |(classes, touches)| Part {
        classes,
        touches,
        kept: PartResult::default(),
        last: PartResult::default(),
    };
    parts.into_iter().map(part).collect()
}

/// Classes of the frames of each stretch; files and the caches of their inodes share the union of
/// theirs.
fn class_sets(locality: &LocalityOrder) -> Vec<ClassSet> {
    let mut sets = vec![ClassSet::default(); locality.stretches()];
    for frame in (0..locality.frames()).map(FrameIndex).filter(|frame| !locality.is_free(*frame)) {
        let stretch = locality.stretch(frame).unwrap_or(u32::MAX) as usize;
        if let Some(set) = sets.get_mut(stretch) {
            set.insert(locality.class(frame));
        }
    }
    let mut of_files: BitVec = BitVec::repeat(false, sets.len());
    for (stretch, region) in (0..).zip(locality.map().regions()) {
        if region.kind == FrameKind::File {
            let inodes = region.anchor.and_then(|frame| locality.stretch(frame));
            for stretch in [Some(stretch), inodes].into_iter().flatten() {
                if let Some(mut is_of_files) = of_files.get_mut(stretch as usize) {
                    *is_of_files = true;
                }
            }
        }
    }
    let mut all = ClassSet::default();
    for set in of_files.iter_ones().filter_map(|stretch| sets.get(stretch)) {
        all.0.iter_mut().zip(set.0).for_each(|(all, has)| *all |= has);
    }
    for stretch in of_files.iter_ones() {
        if let Some(set) = sets.get_mut(stretch) {
            *set = all;
        }
    }
    sets
}
