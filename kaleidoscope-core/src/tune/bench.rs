//! One guest's traces, cut into parts that settings change one at a time.
//!
//! A window reaches no further than its region, apart from two: small files are one line, and an
//! inode's frame brings the beginnings of its files. So the touches of a trace fall into parts that
//! do not know of each other: all files with the caches of their inodes, and every other region;
//! regions of the same classes of frames share a part. Another window for a class changes only the
//! parts in which a frame of that class faulted, and another sign only those that hold such frames.

use super::TracedGuest;
use crate::addr::FrameIndex;
use crate::color::FrameKind;
use crate::prefetch::{
    Blind, Class, ColorGuide, Colored, Fault, LocalityOrder, Planner, PrefetchPolicy, Settings,
};
use crate::replay::{Counter, Counts, Touch, Trace};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Frames of one plan while tuning; as the replay's default.
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

    fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| *a && b)
    }
}

/// A guest, its traces in parts, and how the settings that were kept and those that were replayed
/// last do on them.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    subject: &'a TracedGuest,
    counter: Counter,
    guide: Arc<ColorGuide>,
    /// What the background fetched under the settings that were replayed last.
    background: Counts,
    trials: Vec<Trial>,
    kept: Option<Settings>,
}

/// A trace.
#[derive(Debug)]
struct Trial {
    baseline: Counts,
    parts: Vec<Part>,
}

/// Touches of a trace that affect no others.
#[derive(Debug)]
struct Part {
    /// Classes of the frames in the regions of these touches.
    classes: ClassSet,
    touches: Vec<Touch>,
    kept: Outcome,
    last: Outcome,
}

#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    counts: Counts,
    /// Classes of the frames that faulted: only their windows were looked at.
    faulted: ClassSet,
}

impl<'a> Bench<'a> {
    /// Replays the baseline.
    pub(super) fn new(subject: &'a TracedGuest) -> Self {
        let locality = &subject.locality;
        let mut counter = Counter::new(Arc::clone(locality), BUDGET);
        let sets = sets(locality);
        let trial = |trace: &Trace| Trial {
            baseline: counter.count(trace, &mut Blind::aligned(BASELINE)),
            parts: parts(trace, locality, &sets),
        };
        let trials = subject.traces.iter().map(trial).collect();
        let guide = Arc::new(ColorGuide::new(Arc::clone(locality), Settings::bare("")));
        let background = counter.start(&mut Colored::new(Arc::clone(&guide)));
        Self { subject, counter, guide, background, trials, kept: None }
    }

    pub(super) fn subject(&self) -> &'a TracedGuest {
        self.subject
    }

    /// Replays what the settings may have changed since those that were kept.
    pub(super) fn replay(&mut self, settings: &Settings) {
        let Self { counter, guide, background, trials, kept, .. } = self;
        if Arc::make_mut(guide).change(settings) {
            *background = counter.start(&mut Colored::new(Arc::clone(guide)));
        }
        let difference = kept.as_ref().and_then(|kept| Difference::between(kept, settings));
        for part in trials.iter_mut().flat_map(|trial| &mut trial.parts) {
            part.last = match &difference {
                Some(difference) if !difference.reaches(part) => part.kept,
                Some(_) | None => part.replay(guide, counter),
            };
        }
    }

    /// How the settings that were replayed last and the baseline did on each trace.
    pub(super) fn results(&self) -> impl Iterator<Item = (Counts, Counts)> + '_ {
        self.trials.iter().map(|trial| {
            let mut counts = self.background;
            trial.parts.iter().for_each(|part| counts += part.last.counts);
            (counts, trial.baseline)
        })
    }

    /// Keeps the settings that were replayed last.
    pub(super) fn keep(&mut self) {
        self.kept = Some(self.guide.settings().clone());
        for part in self.trials.iter_mut().flat_map(|trial| &mut trial.parts) {
            part.kept = part.last;
        }
    }
}

impl Part {
    fn replay(&self, guide: &Arc<ColorGuide>, counter: &mut Counter) -> Outcome {
        let colored = Colored::new(Arc::clone(guide));
        let mut policy = Watched { colored, faulted: ClassSet::default() };
        let counts = counter.resume(&self.touches, &mut policy);
        Outcome { counts, faulted: policy.faulted }
    }
}

/// What two settings that differ in windows and signs differ in.
#[derive(Default)]
struct Difference {
    windows: ClassSet,
    signs: ClassSet,
}

impl Difference {
    /// `None` if they differ in more. How many free frames are filled does not matter: nobody
    /// counts them.
    fn between(old: &Settings, new: &Settings) -> Option<Self> {
        if old.inode_pages != new.inode_pages || old.predict_caches != new.predict_caches {
            return None;
        }
        let mut difference = Self::default();
        for class in Class::all().filter(|class| old.window(*class) != new.window(*class)) {
            difference.windows.insert(class);
        }
        for (some, others) in [(old, new), (new, old)] {
            for sign in some.predict.iter().filter(|sign| !others.predict.contains(sign)) {
                difference.signs.insert(sign.class);
            }
        }
        Some(difference)
    }

    fn reaches(&self, part: &Part) -> bool {
        self.windows.meets(&part.kept.faulted) || self.signs.meets(&part.classes)
    }
}

/// A policy that notes which classes fault.
struct Watched {
    colored: Colored,
    faulted: ClassSet,
}

impl PrefetchPolicy for Watched {
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

/// Cuts a trace. Free frames are left out: they are filled with zeros, whatever the settings.
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
        kept: Outcome::default(),
        last: Outcome::default(),
    };
    parts.into_iter().map(part).collect()
}

/// Classes of the frames of each stretch; for files and the caches of their inodes, those of all of
/// them.
fn sets(locality: &LocalityOrder) -> Vec<ClassSet> {
    let mut sets = vec![ClassSet::default(); locality.stretches()];
    for frame in (0..locality.frames()).map(FrameIndex).filter(|frame| !locality.is_free(*frame)) {
        let stretch = locality.stretch(frame).unwrap_or(u32::MAX) as usize;
        if let Some(set) = sets.get_mut(stretch) {
            set.insert(locality.class(frame));
        }
    }
    let mut of_files = vec![false; sets.len()];
    for (stretch, region) in (0..).zip(locality.map().regions()) {
        if region.kind == FrameKind::File {
            let inodes = region.anchor.and_then(|frame| locality.stretch(frame));
            for stretch in [Some(stretch), inodes].into_iter().flatten() {
                if let Some(is_of_files) = of_files.get_mut(stretch as usize) {
                    *is_of_files = true;
                }
            }
        }
    }
    let mut all = ClassSet::default();
    for (set, _) in sets.iter().zip(&of_files).filter(|(_, is_of_files)| **is_of_files) {
        all.0.iter_mut().zip(set.0).for_each(|(all, has)| *all |= has);
    }
    for (set, _) in sets.iter_mut().zip(of_files).filter(|(_, is_of_files)| *is_of_files) {
        *set = all;
    }
    sets
}
