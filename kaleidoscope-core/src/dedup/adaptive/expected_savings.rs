//! Expected savings of the rest of a candidate group.
//!
//! The model: a group is either good, and then a fixed share of its frames saves pages, or none of
//! its frames does. Sampling a bad group costs few hashes, because the group is abandoned after
//! [`ABANDON_AFTER`] misses; sampling a good group leads to all its other frames. So of two groups
//! with the same expected rate, the one whose frames are more alike has the higher expected
//! savings, and so has the longer one:
//!
//! ```text
//! expected savings = p v n / (p n + (1 - p) k)
//!   p: probability that the group is good     v: pages saved per frame of a good group
//!   n: frames left                            k: misses before a bad group is abandoned
//! ```

/// Expected number of hashes spent on a group that saves nothing before it is abandoned.
const ABANDON_AFTER: f64 = 2.0;

/// Weight, in hashed frames, of the prior rate of a good group beside the group's own outcomes.
const GOOD_WEIGHT: f64 = 1.0;

/// What is known about a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    /// Pages saved per frame in its cluster.
    pub(super) rate: f64,
    /// Pages saved per frame in a good group of its class.
    pub(super) good: f64,
    /// Pages saved per frame that has an equal page.
    pub(super) per_hit: f64,
    /// Frames not selected yet.
    pub(super) left: u32,
    /// Frames hashed so far, and the pages that they save.
    pub(super) hashed: f64,
    pub(super) saved: f64,
}

/// Pages saved per hash that the rest of a group is expected to yield, from 0 to 1.
pub(super) fn expected_savings(group: &Estimate) -> f64 {
    let good = group.good.max(group.rate).clamp(0.0, 1.0);
    if good <= 0.0 {
        return 0.0;
    }
    if group.saved > 0.0 {
        return (group.saved + GOOD_WEIGHT * good) / (group.hashed + GOOD_WEIGHT);
    }
    // Each miss lowers the probability that the group is good (Bayes' rule).
    let hit = (good / group.per_hit.clamp(good, 1.0)).min(0.95);
    let before = (group.rate / good).clamp(0.0, 1.0);
    let misses = before * (1.0 - hit).powf(group.hashed);
    let p = misses / (misses + 1.0 - before).max(f64::MIN_POSITIVE);
    let left = f64::from(group.left);
    p * good * left / (p * left + (1.0 - p) * ABANDON_AFTER).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG_GROUP: Estimate =
        Estimate { rate: 0.1, good: 0.5, per_hit: 0.5, left: 64, hashed: 0.0, saved: 0.0 };

    #[test]
    fn long_groups_of_like_frames_have_high_expected_savings() {
        assert!(expected_savings(&LONG_GROUP) > 0.4);
        assert!(expected_savings(&Estimate { left: 1, ..LONG_GROUP }) < 0.1);
        let unlike = Estimate { good: 0.1, ..LONG_GROUP };
        assert!(
            (expected_savings(&unlike) - 0.1).abs() < 1e-9,
            "frames that are not alike save only the mean rate"
        );
    }

    #[test]
    fn misses_lower_the_expected_savings_and_hits_raise_them() {
        let after = |hashed, saved| expected_savings(&Estimate { hashed, saved, ..LONG_GROUP });
        assert!(after(2.0, 0.0) < 0.05);
        assert!(after(2.0, 1.0) >= 0.5);
        assert!(after(20.0, 1.0) < 0.1);
    }

    proptest! {
        #[test]
        fn expected_savings_are_a_share(
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
                prop_assert!(more <= found + 1e-12, "a miss never raises the expected savings");
            }
        }
    }
}
