//! Checks the kind of every frame.
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::check::coloring::{Coloring, Frame, Kind};
use crate::check::truth::Truth;
use crate::check::truth::flags::{Class, Flags};

/// Largest share of unknown frames that passes, in thousandths of all frames.
const MAX_UNKNOWN_PER_MILLE: u64 = 5;

/// A frame shown as an example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Example {
    /// Guest frame number.
    pub(crate) gfn: u64,
    /// Its flags in the guest, decoded.
    pub(crate) flags: String,
}

/// Frames with one class in the ground truth and one kind in the coloring.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    /// Number of frames.
    pub(crate) frames: u64,
    /// The first frames.
    pub(crate) examples: Vec<Example>,
}

impl Cell {
    fn add(&mut self, gfn: u64, flags: Flags, limit: usize) {
        self.frames += 1;
        if self.examples.len() < limit {
            self.examples.push(Example { gfn, flags: flags.to_string() });
        }
    }
}

/// The score of one class.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ClassScore {
    /// Class in the ground truth.
    pub(crate) class: Class,
    /// Judged frames.
    pub(crate) frames: u64,
    /// Frames of the right kind.
    pub(crate) right: u64,
    /// Frames of a wrong kind.
    pub(crate) wrong: u64,
}

/// A cell of the confusion matrix of class and kind.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct KindCount {
    /// Class in the ground truth.
    pub(crate) class: Class,
    /// Kind in the coloring; `None` if it leaves the frames out.
    pub(crate) kind: Option<Kind>,
    /// The frames.
    #[serde(flatten)]
    pub(crate) cell: Cell,
}

/// Findings about the kinds of frames.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FrameFindings {
    /// Frames in the coloring, and frames of the guest that the coloring leaves out.
    pub(crate) frames: u64,
    /// Frames that are unknown or left out, although the guest's kernel has a descriptor for them.
    /// A crash kernel has none for most memory of the kernel that panicked.
    pub(crate) unknown: u64,
    /// Frames of the coloring that the guest does not describe: without a descriptor, or past the
    /// end of its memory.
    pub(crate) outside: u64,
    /// Outside frames that are free in the coloring: an error, as free frames have descriptors.
    pub(crate) outside_free: u64,
    /// Reserved frames that the coloring leaves out. Not judged, because holes in the guest's
    /// memory have descriptors, too.
    pub(crate) reserved_left_out: u64,
    /// Frames that changed while the ground truth was captured. Not judged.
    pub(crate) unstable: u64,
    /// Scores of the classes that occur.
    pub(crate) classes: Vec<ClassScore>,
    /// Wrong frames by class and kind.
    pub(crate) wrong: Vec<KindCount>,
    /// All wrong frames.
    #[serde(skip)]
    pub(crate) wrong_gfns: BTreeSet<u64>,
    /// Untyped frames by kind.
    pub(crate) untyped: Vec<KindCount>,
    /// Frames that are block-device cache in the coloring.
    pub(crate) block_device: u64,
    /// Frames of block-device cache by the guest's `/proc/meminfo`.
    pub(crate) buffers: Option<u64>,
}

impl FrameFindings {
    /// Why the coloring is not right; empty if it is. A class has more than `tolerance` wrong
    /// frames, too many frames are unknown, or none was judged.
    pub(crate) fn failures(&self, tolerance: u64) -> Vec<String> {
        let wrong = self.classes.iter().filter(|class| class.wrong > tolerance);
        let mut failures: Vec<_> = wrong
            .map(|class| {
                let (wrong, frames, name) = (class.wrong, class.frames, class.class.name());
                format!("{wrong} of {frames} {name} frames are wrong")
            })
            .collect();
        let most_unknown = self.frames.saturating_mul(MAX_UNKNOWN_PER_MILLE);
        if self.unknown.saturating_mul(1000) > most_unknown {
            failures.push(format!("{} of {} frames are unknown", self.unknown, self.frames));
        }
        if self.outside_free > tolerance {
            let outside = self.outside_free;
            failures.push(format!("{outside} frames that the guest does not know are called free"));
        }
        if self.classes.is_empty() {
            failures.push("no frame was judged".to_owned());
        }
        failures
    }
}

/// Compares the kinds of all frames, keeping `limit` examples of each error. With `suspects`, a
/// wrong frame that is not among them counts as unstable.
pub(crate) fn judge(
    truth: &Truth,
    coloring: &Coloring,
    limit: usize,
    suspects: Option<&BTreeSet<u64>>,
) -> FrameFindings {
    let is_right = |class: Class, kind: Option<Kind>| {
        kind.and_then(|kind| class.accepts(kind)).unwrap_or(false)
    };
    let is_suspect = |gfn: u64| suspects.is_none_or(|suspects| suspects.contains(&gfn));
    let mut wrong_gfns = BTreeSet::new();
    let mut unstable = 0;
    let mut reserved_left_out = 0;
    let mut left_out = 0;
    let mut called = BTreeMap::<(Class, Option<Kind>), Cell>::new();
    for (gfn, flags, class) in truth.frames() {
        let kind = coloring.frame(gfn).map(|frame| frame.kind);
        match (class, kind) {
            (Class::Absent, _) => continue,
            (Class::Kernel, None) => {
                reserved_left_out += 1;
                continue;
            }
            // 7.x kernels list holes in memory as frames without flags.
            (Class::Untyped, None) if flags.0 == 0 => continue,
            (_, None) => left_out += 1,
            (_, Some(_)) => {}
        }
        let is_wrong = class != Class::Untyped && !is_right(class, kind);
        if !truth.is_stable(gfn) || is_wrong && !is_suspect(gfn) {
            unstable += 1;
            continue;
        }
        if is_wrong {
            wrong_gfns.insert(gfn);
        }
        called.entry((class, kind)).or_default().add(gfn, flags, limit);
    }

    let score = |class: Class| {
        let of_class = || called.iter().filter(move |((of, _), _)| *of == class);
        let frames: u64 = of_class().map(|(_, cell)| cell.frames).sum();
        let right = of_class()
            .filter(|((_, kind), _)| is_right(class, *kind))
            .map(|(_, cell)| cell.frames)
            .sum();
        (frames > 0).then(|| ClassScore { class, frames, right, wrong: frames - right })
    };
    let classes = Class::JUDGED.into_iter().filter_map(score).collect();
    let block_device =
        coloring.frames().iter().filter(|frame| frame.kind == Kind::BlockDevice).count_u64();
    let count = |is_outside: bool, kind: Option<Kind>| {
        let is_counted = |frame: &&Frame| {
            let class = truth.class(frame.gfn).unwrap_or(Class::Absent);
            (class == Class::Absent) == is_outside && kind.is_none_or(|kind| frame.kind == kind)
        };
        coloring.frames().iter().filter(is_counted).count_u64()
    };
    let (untyped, typed): (Vec<_>, Vec<_>) = called
        .into_iter()
        .map(|((class, kind), cell)| KindCount { class, kind, cell })
        .partition(|called| called.class == Class::Untyped);
    FrameFindings {
        frames: coloring.frames().iter().count_u64() + left_out,
        unknown: count(false, Some(Kind::Unknown)) + left_out,
        outside: count(true, None),
        outside_free: count(true, Some(Kind::Free)),
        reserved_left_out,
        unstable,
        classes,
        wrong: typed.into_iter().filter(|called| !is_right(called.class, called.kind)).collect(),
        wrong_gfns,
        untyped,
        block_device,
        buffers: truth.buffers,
    }
}

/// Counts items as `u64`.
trait CountU64: Iterator + Sized {
    fn count_u64(self) -> u64 {
        self.fold(0, |count, _| count + 1)
    }
}

impl<I: Iterator> CountU64 for I {}
