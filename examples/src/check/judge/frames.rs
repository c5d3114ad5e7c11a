//! Is every frame of the right kind?
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::check::coloring::{Coloring, Frame, Kind};
use crate::check::truth::Truth;
use crate::check::truth::flags::{Class, Flags};

/// Largest share of unknown frames that passes, in thousandths of all frames.
const MOST_UNKNOWN_PER_MILLE: u64 = 5;

/// A frame shown as an example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Example {
    /// Guest frame number.
    pub(crate) gfn: u64,
    /// Its flags in the guest, decoded.
    pub(crate) flags: String,
}

/// Frames of one class of the truth that the coloring calls one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    /// Number of frames.
    pub(crate) frames: u64,
    /// The first of them.
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

/// How one class of the truth fared.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ClassScore {
    /// What the guest said.
    pub(crate) class: Class,
    /// Frames judged.
    pub(crate) frames: u64,
    /// Of the right kind.
    pub(crate) right: u64,
    /// The others.
    pub(crate) wrong: u64,
}

/// Frames of one class called one kind.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Called {
    /// What the guest said.
    pub(crate) class: Class,
    /// What the coloring says; `None` if it leaves the frames out.
    pub(crate) kind: Option<Kind>,
    /// The frames.
    #[serde(flatten)]
    pub(crate) cell: Cell,
}

/// Findings about the kinds of frames.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FrameFindings {
    /// Frames in the coloring, and frames it left out though the guest has them.
    pub(crate) frames: u64,
    /// Those that are unknown or left out, though the guest's kernel has a descriptor of them. A
    /// crash kernel has none of most memory of the kernel that panicked.
    pub(crate) unknown: u64,
    /// Frames of the coloring of which the guest says nothing: no descriptor, or past the end of
    /// its memory.
    pub(crate) outside: u64,
    /// Those of them that the coloring calls free, which only the guest's own allocator can say of
    /// a frame.
    pub(crate) outside_free: u64,
    /// Reserved frames that the coloring left out: holes in the guest's memory have descriptors as
    /// well. Not judged.
    pub(crate) reserved_left_out: u64,
    /// Frames that changed while the truth was captured. Not judged.
    pub(crate) unstable: u64,
    /// Scores of the classes that occur.
    pub(crate) classes: Vec<ClassScore>,
    /// What wrong frames were called.
    pub(crate) wrong: Vec<Called>,
    /// All wrong frames.
    #[serde(skip)]
    pub(crate) wrong_gfns: BTreeSet<u64>,
    /// What untyped frames were called.
    pub(crate) untyped: Vec<Called>,
    /// Frames called block-device cache.
    pub(crate) block_device: u64,
    /// Frames of block-device cache by the guest's `/proc/meminfo`.
    pub(crate) buffers: Option<u64>,
}

impl FrameFindings {
    /// Why the coloring is not right, if it is not: a class has more than `tolerance` wrong frames,
    /// too many frames are unknown, or none was judged.
    pub(crate) fn failures(&self, tolerance: u64) -> Vec<String> {
        let wrong = self.classes.iter().filter(|class| class.wrong > tolerance);
        let mut failures: Vec<_> = wrong
            .map(|class| {
                let (wrong, frames, name) = (class.wrong, class.frames, class.class.name());
                format!("{wrong} of {frames} {name} frames are wrong")
            })
            .collect();
        let most_unknown = self.frames.saturating_mul(MOST_UNKNOWN_PER_MILLE);
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

/// Compares the kinds of all frames, keeping `limit` examples of each mistake. If there are
/// `suspects`, no other frame is wrong: it counts as one that changed.
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
            // Kernels of 7.x show a hole in memory as a frame without flags.
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
        .map(|((class, kind), cell)| Called { class, kind, cell })
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

/// Counting in the type that counts have here.
trait CountU64: Iterator + Sized {
    fn count_u64(self) -> u64 {
        self.fold(0, |count, _| count + 1)
    }
}

impl<I: Iterator> CountU64 for I {}
