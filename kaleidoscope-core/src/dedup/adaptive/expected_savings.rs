//! What hashing more of an group is expected_savings.
//!
//! An group is good, and then a share of its frames saves pages, or nothing of it does. What trying
//! it costs is lost only where it is not good, for it is left after a few frames; where it is good,
//! all of the rest follows. So of two groups with the same expected rate the one is
//! expected_savings more whose frames share one fate, and the longer one:
//!
//! ```text
//! expected_savings = p v n / (p n + (1 - p) k)    p: probability that it is good, v: what a frame of a good one saves,
//!                                      n: frames left, k: frames tried in vain
//! ```

/// Frames after which an group that saves nothing is left.
const TIMEOUT: f64 = 2.0;

/// Frames that the expected rate of a good group counts as beside what it has shown itself.
const GOOD_WEIGHT: f64 = 1.0;

/// What is known of an group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    /// Pages that a frame of its cluster saves on average.
    pub(super) rate: f64,
    /// Pages that a frame of a good group of its class saves on average.
    pub(super) good: f64,
    /// Pages that a frame with an equal one saves on average.
    pub(super) per_hit: f64,
    /// Frames that were not given yet.
    pub(super) left: u32,
    /// Frames that were hashed, and pages that these save.
    pub(super) hashed: f64,
    pub(super) saved: f64,
}

/// Pages saved per hash that the rest of an group is expected_savings.
pub(super) fn expected_savings(group: &Estimate) -> f64 {
    let good = group.good.max(group.rate).clamp(0.0, 1.0);
    if good <= 0.0 {
        return 0.0;
    }
    if group.saved > 0.0 {
        return (group.saved + GOOD_WEIGHT * good) / (group.hashed + GOOD_WEIGHT);
    }
    // Each frame without an equal one makes it less likely that the group is good (Bayes).
    let hit = (good / group.per_hit.clamp(good, 1.0)).min(0.95);
    let before = (group.rate / good).clamp(0.0, 1.0);
    let misses = before * (1.0 - hit).powf(group.hashed);
    let p = misses / (misses + 1.0 - before).max(f64::MIN_POSITIVE);
    let left = f64::from(group.left);
    p * good * left / (p * left + (1.0 - p) * TIMEOUT).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ARM: Estimate =
        Estimate { rate: 0.1, good: 0.5, per_hit: 0.5, left: 64, hashed: 0.0, saved: 0.0 };

    #[test]
    fn long_arms_whose_frames_share_one_fate_are_worth_a_trial() {
        assert!(expected_savings(&ARM) > 0.4);
        assert!(expected_savings(&Estimate { left: 1, ..ARM }) < 0.1);
        let luck = Estimate { good: 0.1, ..ARM };
        assert!(
            (expected_savings(&luck) - 0.1).abs() < 1e-9,
            "where luck decides, the rate is all there is"
        );
    }

    #[test]
    fn misses_end_a_trial_and_hits_prolong_it() {
        let after = |hashed, saved| expected_savings(&Estimate { hashed, saved, ..ARM });
        assert!(after(2.0, 0.0) < 0.05);
        assert!(after(2.0, 1.0) >= 0.5);
        assert!(after(20.0, 1.0) < 0.1);
    }

    proptest! {
        #[test]
        fn worth_is_a_share(
            (rate, good, per_hit) in (0.0..1.0f64, 0.0..1.0f64, 0.0..1.0f64),
            left in 0u32..1000,
            hashed in 0u32..100,
            part in 0.0..1.0f64,
        ) {
            let hashed = f64::from(hashed);
            let group = Estimate { rate, good, per_hit, left, hashed, saved: hashed * part };
            let found = expected_savings(&group);
            prop_assert!((0.0..=1.0).contains(&found), "{found}");
            if group.saved == 0.0 {
                let more = expected_savings(&Estimate { hashed: hashed + 1.0, ..group });
                prop_assert!(more <= found + 1e-12, "a miss makes nothing expected_savings more");
            }
        }
    }
}
