//! Sets of frames, as sorted ranges that neither touch nor overlap ("normal").

use std::ops::Range;

/// Sorts runs and joins those that touch or overlap.
pub(crate) fn normal(mut runs: Vec<Range<u32>>) -> Vec<Range<u32>> {
    runs.retain(|run| run.start < run.end);
    runs.sort_unstable_by_key(|run| run.start);
    let mut joined: Vec<Range<u32>> = Vec::with_capacity(runs.len());
    for run in runs {
        match joined.last_mut().filter(|last| last.end >= run.start) {
            Some(last) => last.end = last.end.max(run.end),
            None => joined.push(run),
        }
    }
    joined
}

/// The frames of `runs` that are not in `others`; both are normal.
pub(super) fn without(runs: &[Range<u32>], others: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut left = Vec::new();
    let mut others = others.iter().peekable();
    for run in runs {
        let mut start = run.start;
        while let Some(other) = others.peek().filter(|other| other.start < run.end) {
            if other.end <= start {
                others.next();
                continue;
            }
            if other.start > start {
                left.push(start..other.start);
            }
            start = other.end;
            if other.end >= run.end {
                break;
            }
            others.next();
        }
        if start < run.end {
            left.push(start..run.end);
        }
    }
    left
}

/// Joins normal runs across the smallest gaps until at most `most` (at least one) remain.
pub(super) fn fewer(runs: Vec<Range<u32>>, most: usize) -> Vec<Range<u32>> {
    let surplus = runs.len().saturating_sub(most.max(1));
    if surplus == 0 {
        return runs;
    }
    let mut gaps: Vec<(u32, usize)> = runs
        .windows(2)
        .enumerate()
        .filter_map(|(at, pair)| match pair {
            [a, b] => Some((b.start - a.end, at + 1)),
            _ => None,
        })
        .collect();
    gaps.sort_unstable();
    let mut joined: Vec<usize> = gaps.iter().take(surplus).map(|gap| gap.1).collect();
    joined.sort_unstable();
    let mut joined = joined.into_iter().peekable();
    let mut fewer: Vec<Range<u32>> = Vec::with_capacity(most);
    for (at, run) in runs.into_iter().enumerate() {
        if joined.next_if_eq(&at).is_some()
            && let Some(last) = fewer.last_mut()
        {
            last.end = run.end;
        } else {
            fewer.push(run);
        }
    }
    fewer
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(runs: &[Range<u32>]) -> BTreeSet<u32> {
        runs.iter().cloned().flatten().collect()
    }

    fn runs() -> impl Strategy<Value = Vec<Range<u32>>> {
        prop::collection::vec((0u32..200, 0u32..12).prop_map(|(at, n)| at..at + n), 0..30)
    }

    proptest! {
        #[test]
        fn runs_are_sets(a in runs(), b in runs(), most in 1usize..10) {
            let (na, nb) = (normal(a.clone()), normal(b.clone()));
            prop_assert_eq!(set(&na), set(&a));
            prop_assert!(na.windows(2).all(|w| w[0].end < w[1].start));
            let expected: BTreeSet<u32> = set(&a).difference(&set(&b)).copied().collect();
            prop_assert_eq!(set(&without(&na, &nb)), expected);
            let few = fewer(na.clone(), most);
            prop_assert!(few.len() <= most.max(1) && set(&few).is_superset(&set(&a)));
            prop_assert!(few.len() == na.len().min(most));
            prop_assert_eq!(few.first().map(|r| r.start), na.first().map(|r| r.start));
            prop_assert_eq!(few.last().map(|r| r.end), na.last().map(|r| r.end));
        }
    }
}
