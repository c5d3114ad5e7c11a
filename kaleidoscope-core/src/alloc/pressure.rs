//! Pressure levels.

use std::fmt;

/// How scarce memory is, in ascending order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum Pressure {
    /// Memory is sufficient.
    #[default]
    None = 0,
    /// Prefetch less: a clone gets no more chunks for prefetch, and uses only its spare frames.
    ShrinkPrefetch = 1,
    /// Prefetch nothing, and reclaim prefetched pages that were not touched.
    Reclaim = 2,
    /// As [`Pressure::Reclaim`], and new clones are refused.
    RefuseClones = 3,
}

impl Pressure {
    /// Every level, in ascending order.
    pub const ALL: [Self; 4] =
        [Self::None, Self::ShrinkPrefetch, Self::Reclaim, Self::RefuseClones];

    /// The level with this number; the highest level for larger numbers.
    pub(super) fn from_u8(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::RefuseClones)
    }
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::ShrinkPrefetch => "shrink-prefetch",
            Self::Reclaim => "reclaim",
            Self::RefuseClones => "refuse-clones",
        })
    }
}

/// The amount from which each level holds.
///
/// A level ends 1/32 below the mark at which it begins. Without this hysteresis, taking and
/// returning one frame at a mark would notify every clone each time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks([(Pressure, u64); 3]);

impl Marks {
    pub(super) fn new(shrink_prefetch: u64, reclaim: u64, refuse_clones: u64) -> Self {
        Self([
            (Pressure::ShrinkPrefetch, shrink_prefetch),
            (Pressure::Reclaim, reclaim),
            (Pressure::RefuseClones, refuse_clones),
        ])
    }

    /// The level at an amount, given the level before.
    pub(super) fn level(&self, before: Pressure, amount: u64) -> Pressure {
        let holds = |(level, mark): &(Pressure, u64)| {
            amount >= *mark || (*level <= before && amount >= falling_mark(*mark))
        };
        let highest = self.0.iter().filter(|step| holds(step)).map(|step| step.0).max();
        highest.unwrap_or_default()
    }

    /// Whether a rising or falling mark lies between two amounts; if none does, the level is the
    /// same at both.
    pub(super) fn is_between(&self, a: u64, b: u64) -> bool {
        let between = |mark: u64| (a < mark) != (b < mark);
        self.0.iter().any(|(_, mark)| between(*mark) || between(falling_mark(*mark)))
    }
}

/// The amount below which a level ends that begins at `mark`.
fn falling_mark(mark: u64) -> u64 {
    mark.saturating_sub(mark / 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn levels_fall_later_than_they_rise() {
        let marks = Marks::new(640, 960, 2000);
        let steps = [
            (639, Pressure::None),
            (640, Pressure::ShrinkPrefetch),
            (620, Pressure::ShrinkPrefetch),
            (619, Pressure::None),
            (640, Pressure::ShrinkPrefetch),
            (2500, Pressure::RefuseClones),
            (940, Pressure::Reclaim),
            (929, Pressure::ShrinkPrefetch),
            (0, Pressure::None),
        ];
        let mut level = Pressure::None;
        for (amount, expected) in steps {
            level = marks.level(level, amount);
            assert_eq!(level, expected, "{amount}");
        }
    }

    proptest! {
        /// Recomputing the level only when a mark is crossed misses no change.
        #[test]
        fn changes_happen_at_marks(
            marks: [u8; 3],
            amounts in prop::collection::vec(any::<u8>(), 1..50),
        ) {
            let marks = Marks::new(marks[0].into(), marks[1].into(), marks[2].into());
            let mut at = 0;
            let mut level = marks.level(Pressure::None, at);
            for amount in amounts {
                let next = marks.level(level, amount.into());
                prop_assert!(next == level || marks.is_between(at, amount.into()));
                (at, level) = (amount.into(), next);
            }
        }
    }
}
