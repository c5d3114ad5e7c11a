//! Limits on the cost of names.
//!
//! Every owner of frames is named, and a name can be 4,096 bytes long and need a chain of 256
//! directories. Real chains are short and shared, but hostile ones need not be. Therefore all names
//! of a guest are charged to one budget, which is proportional to its memory.

/// Directory entries and mounts to visit: per frame, plus a constant.
const STEPS_PER_FRAME: u64 = 8;
const SPARE_STEPS: u64 = 65_536;

/// Bytes of names to keep: per frame, plus a constant. A guest full of small cached files needs
/// about 40 bytes per frame.
const BYTES_PER_FRAME: u64 = 64;
const SPARE_BYTES: u64 = 4 << 20;

/// Maximum number of bytes of names for a guest of any size, so that its map fits into a file
/// (`manifest::Limits`).
const MAX_BYTES: u64 = 512 << 20;

/// Remaining steps and bytes for names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::linux) struct NameBudget {
    steps: u64,
    bytes: u64,
    exhausted: bool,
}

impl NameBudget {
    pub(in crate::linux) fn for_frames(frames: u32) -> Self {
        let per_guest =
            |each: u64, spare: u64| u64::from(frames).saturating_mul(each).saturating_add(spare);
        let steps = per_guest(STEPS_PER_FRAME, SPARE_STEPS);
        let bytes = per_guest(BYTES_PER_FRAME, SPARE_BYTES).min(MAX_BYTES);
        Self { steps, bytes, exhausted: false }
    }

    /// Whether a charge was refused.
    pub(in crate::linux) fn is_exhausted(self) -> bool {
        self.exhausted
    }

    /// Charges a visit to a directory entry or a mount; `None` if no steps are left.
    pub(in crate::linux) fn charge_step(&mut self) -> Option<()> {
        let left = self.steps.checked_sub(1);
        self.steps = left.unwrap_or(0);
        self.exhausted |= left.is_none();
        left.map(drop)
    }

    /// Charges the bytes of a name; `None` if the name is longer than the remaining budget.
    pub(in crate::linux) fn charge_name(&mut self, name: &str) -> Option<()> {
        let left = u64::try_from(name.len()).ok().and_then(|n| self.bytes.checked_sub(n));
        self.bytes = left.unwrap_or(self.bytes);
        self.exhausted |= left.is_none();
        left.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_is_gone() {
        let mut budget = NameBudget { steps: 1, bytes: 5, exhausted: false };
        assert_eq!((budget.charge_step(), budget.charge_name("four")), (Some(()), Some(())));
        assert!(!budget.is_exhausted());
        assert_eq!(budget.charge_name("ab"), None);
        assert!(budget.is_exhausted());
        assert_eq!((budget.charge_name("a"), budget.charge_step()), (Some(()), None));
    }
}
