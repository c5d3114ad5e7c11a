//! A selector that learns which candidate groups hold shared pages: a multi-armed bandit whose arms
//! are the candidate groups.
//!
//! All frames of a group (`candidates`) have the same name match. The expected savings of a group
//! (`expected_savings`) combine three levels, each of which corrects the one before: the class
//! (color, name match, access class), learned from other guests; then the cluster (a directory or a
//! region) and the group itself, learned from this guest:
//!
//! ```text
//! loop: take the group with the highest expected savings; stop below the minimum
//!       select frames: 2 at first, then twice as many as have outcomes (at most 64)
//!       when all of these have outcomes, recompute the expected savings of the group
//! ```
//!
//! The first frame selected from a group is its middle one: the first page differs most often
//! between two versions of a file, and often no other page does.

mod candidates;
mod expected_savings;

use super::catalog::position;
use super::hit_rates::{Class, ClassHitRate};
use super::{Catalog, DedupSelector, GuestNumber, HitRates, SelectionOutcome};
use crate::addr::FrameIndex;
use crate::prefetch::LocalityOrder;
use candidates::CandidateGroups;
use expected_savings::{Estimate, expected_savings};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// Maximum weight, in hashes, of the prior hit rate of a class beside the hashes of this guest. At
/// a lower weight, frames whose equal page the other guest has not hashed yet bias the estimate.
const CLASS_WEIGHT: f64 = 256.0;

/// Weight, in hashes, of the class beside the hashes of the cluster.
const CLUSTER_WEIGHT: f64 = 8.0;

/// Default minimum expected savings; groups below it are not hashed.
const MIN_SAVINGS: f64 = 0.03;

/// Prior of a class without data.
const UNSEEN: ClassHitRate =
    ClassHitRate { hashed: 8.0, shared: 2.0, saved: 1.0, diverged: 0.2, alike: 0.4 };

/// Expected savings above which a group is not sampled first: about the savings of two guests with
/// the same files.
const CONFIDENT_SAVINGS: f64 = 0.4;

/// Frames selected at once: from a group above [`CONFIDENT_SAVINGS`] at first, and at most.
const CONFIDENT_BATCH: u32 = 16;
const MAX_BATCH: u32 = 64;

/// Quantization steps of expected savings. Groups within one step are ordered by
/// [`tie`](candidates::CandidateGroup::tie), in the same way in every guest.
const STEPS: f64 = 128.0;

/// Selects from the candidate groups with the highest expected savings, which it learns as it goes.
#[derive(Clone, Debug)]
pub struct Adaptive {
    locality: Arc<LocalityOrder>,
    candidates: CandidateGroups,
    groups: Vec<Samples>,
    clusters: Vec<Samples>,
    /// Hit rates from other guests, and those observed in this one.
    prior: HitRates,
    observed: HitRates,
    states: Vec<FrameState>,
    queue: BinaryHeap<(u32, Reverse<u32>, u32)>,
    min_savings: f64,
}

/// Outcomes of a group or a cluster so far.
#[derive(Clone, Copy, Debug, Default)]
struct Samples {
    hashed: f64,
    saved: f64,
    /// Frames selected, and how many of them have no outcome yet.
    selected: u32,
    pending: u32,
    /// For a group, the quantized expected savings under which it is queued. For a cluster, the
    /// rate at which its groups were last requeued.
    queued: Option<u32>,
}

/// The last outcome of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum FrameState {
    Unselected,
    Pending,
    Skipped,
    Alone,
    Shared,
    Diverged,
}

impl Adaptive {
    /// A selector for one guest of the catalog, with the hit rates of other guests as the prior.
    #[must_use]
    pub fn new(
        locality: Arc<LocalityOrder>,
        catalog: &Catalog,
        guest: GuestNumber,
        hit_rates: &HitRates,
    ) -> Self {
        let candidates = CandidateGroups::new(&locality, catalog, guest);
        let mut adaptive = Self {
            groups: vec![Samples::default(); candidates.groups.len()],
            clusters: vec![Samples::default(); candidates.clusters.len()],
            states: vec![FrameState::Unselected; locality.frames() as usize],
            prior: hit_rates.clone(),
            observed: HitRates::default(),
            queue: BinaryHeap::with_capacity(candidates.groups.len()),
            min_savings: MIN_SAVINGS,
            locality,
            candidates,
        };
        for group in 0..adaptive.groups.len() {
            adaptive.enqueue(group);
        }
        adaptive
    }

    /// Sets the minimum expected savings, in pages saved per hash (0.03 by default). With 0, all
    /// frames are selected eventually.
    #[must_use]
    pub fn with_least_worth(mut self, least: f64) -> Self {
        self.min_savings = least;
        self
    }

    /// The hit rates observed in this guest, for [`HitRates::merge`].
    #[must_use]
    pub fn learned(&self) -> HitRates {
        let mut learned = self.observed.clone();
        for (group, samples) in self.candidates.groups.iter().zip(&self.groups) {
            let alike = samples.saved * samples.saved / samples.hashed.max(1.0);
            learned.add(group.class, &ClassHitRate { alike, ..ClassHitRate::default() });
        }
        learned
    }

    /// The hit rates that hashing all frames of a guest would yield. For each frame, `judge`
    /// returns the number of copies of its page (0 if the frame cannot be hashed) and whether a
    /// clone writes to it later. For learning from guests that were hashed without a selector.
    #[must_use]
    pub fn teach(
        locality: &LocalityOrder,
        catalog: &Catalog,
        guest: GuestNumber,
        mut judge: impl FnMut(FrameIndex) -> (u32, bool),
    ) -> HitRates {
        let candidates = CandidateGroups::new(locality, catalog, guest);
        let mut hit_rates = HitRates::default();
        for group in &candidates.groups {
            let mut found = ClassHitRate::default();
            for frame in candidates.of(group) {
                let (copies, is_written) = judge(*frame);
                if copies == 0 {
                    continue;
                }
                let is_shared = copies > 1;
                found.hashed += 1.0;
                found.shared += f64::from(u8::from(is_shared));
                found.saved += saved(copies);
                found.diverged += f64::from(u8::from(is_shared && is_written));
            }
            found.alike = found.saved * found.saved / found.hashed.max(1.0);
            hit_rates.add(group.class, &found);
        }
        hit_rates
    }

    /// Pages that a hash in a group is expected to save.
    fn expected_savings(&self, group: usize) -> f64 {
        let (Some(of), Some(samples)) = (self.candidates.groups.get(group), self.groups.get(group))
        else {
            return 0.0;
        };
        let class = self.class_rate(of.class);
        let cluster = self.clusters.get(of.cluster as usize).copied().unwrap_or_default();
        let rate = class.saved / class.hashed;
        let kept = 1.0 - class.diverged / class.shared.max(1.0);
        let estimate = Estimate {
            rate: (cluster.saved + CLUSTER_WEIGHT * rate) / (cluster.hashed + CLUSTER_WEIGHT),
            good: class.alike / class.saved.max(f64::MIN_POSITIVE),
            per_hit: class.saved / class.shared.max(f64::MIN_POSITIVE),
            left: of.len.saturating_sub(samples.selected),
            hashed: samples.hashed,
            saved: samples.saved,
        };
        expected_savings(&estimate) * kept.clamp(0.0, 1.0)
    }

    /// The hit rate of a class: the prior, scaled to at most [`CLASS_WEIGHT`] hashes, and the
    /// outcomes in this guest.
    fn class_rate(&self, class: Class) -> ClassHitRate {
        let (mut known, here) = (self.prior.get(class), self.observed.get(class));
        if known.hashed < UNSEEN.hashed {
            known = UNSEEN;
        }
        let scale = (CLASS_WEIGHT / known.hashed).min(1.0);
        ClassHitRate {
            hashed: known.hashed * scale + here.hashed,
            shared: known.shared * scale + here.shared,
            saved: known.saved * scale + here.saved,
            diverged: known.diverged * scale + here.diverged,
            // `alike` comes from other guests only: in this guest many groups have a single sample.
            alike: known.alike / known.saved.max(f64::MIN_POSITIVE)
                * (known.saved * scale + here.saved),
        }
    }

    /// Queues a group by its current expected savings, if it has frames left and none of its
    /// selected frames is pending.
    fn enqueue(&mut self, group: usize) {
        self.enqueue_at(group, steps(self.expected_savings(group)));
    }

    fn enqueue_at(&mut self, group: usize, expected_savings: u32) {
        let (Some(of), Some(samples)) =
            (self.candidates.groups.get(group), self.groups.get_mut(group))
        else {
            return;
        };
        if samples.selected < of.len
            && samples.pending == 0
            && samples.queued != Some(expected_savings)
        {
            samples.queued = Some(expected_savings);
            let number = u32::try_from(group).unwrap_or(u32::MAX);
            self.queue.push((expected_savings, Reverse(of.tie), number));
        }
    }

    /// Selects the next frames of a group.
    fn select_from(
        &mut self,
        group: usize,
        is_confident: bool,
        room: usize,
        frames: &mut Vec<FrameIndex>,
    ) {
        let (Some(of), Some(samples)) =
            (self.candidates.groups.get(group), self.groups.get_mut(group))
        else {
            return;
        };
        let batch = match samples.selected {
            _ if is_confident => CONFIDENT_BATCH.max(samples.selected.saturating_mul(2)),
            // In a group of siblings, these are the same page of two files.
            0 => 2,
            selected => selected.saturating_mul(2),
        };
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let batch = batch.min(MAX_BATCH).min(of.len.saturating_sub(samples.selected)).min(room);
        let all = self.candidates.of(of);
        let middle = first_of_position(&self.locality, all);
        for n in samples.selected..samples.selected.saturating_add(batch) {
            let at = middle.saturating_add(n as usize) % all.len().max(1);
            let Some(frame) = all.get(at) else { continue };
            if let Some(state) = self.states.get_mut(frame.as_usize()) {
                *state = FrameState::Pending;
            }
            frames.push(*frame);
        }
        samples.selected = samples.selected.saturating_add(batch);
        samples.pending = samples.pending.saturating_add(batch);
    }

    /// Adds an outcome to a group, its cluster and its class.
    fn count(&mut self, group: usize, change: &ClassHitRate) {
        let Some(of) = self.candidates.groups.get(group) else { return };
        self.observed.add(of.class, change);
        let samples = self.groups.get_mut(group).into_iter();
        for samples in samples.chain(self.clusters.get_mut(of.cluster as usize)) {
            samples.hashed += change.hashed;
            samples.saved += change.saved;
        }
    }

    /// Requeues a group, and the others of its cluster when the rate of the cluster has risen above
    /// the one at which they were queued.
    fn reprioritize(&mut self, group: usize) {
        let Some(of) = self.candidates.groups.get(group).copied() else { return };
        if let Some(samples) = self.groups.get_mut(group) {
            samples.queued = None;
        }
        self.enqueue(group);
        let Some(cluster) = self.clusters.get_mut(of.cluster as usize) else { return };
        let rate = steps((cluster.saved / cluster.hashed.max(1.0)).min(1.0));
        // A rise by half keeps requeues at a few per cluster instead of one per group.
        if cluster.queued.is_none_or(|before| rate > before.saturating_add(before / 2)) {
            cluster.queued = Some(rate);
            let groups = self.candidates.clusters.get_mut(of.cluster as usize).map(std::mem::take);
            for other in groups.iter().flatten() {
                self.enqueue(*other as usize);
            }
            if let (Some(slot), Some(groups)) =
                (self.candidates.clusters.get_mut(of.cluster as usize), groups)
            {
                *slot = groups;
            }
        }
    }
}

impl DedupSelector for Adaptive {
    fn name(&self) -> &str {
        "adaptive"
    }

    fn select(&mut self, room: usize, frames: &mut Vec<FrameIndex>) {
        let end = frames.len().saturating_add(room);
        let least = steps(self.min_savings);
        while frames.len() < end {
            let Some((expected_savings, _, group)) = self.queue.pop() else { return };
            let group = group as usize;
            let Some(samples) = self.groups.get_mut(group) else { continue };
            if samples.queued != Some(expected_savings) {
                continue;
            }
            samples.queued = None;
            // The hit rate of its class may have fallen since the group was queued.
            let exact = self.expected_savings(group);
            let now = steps(exact);
            if now < expected_savings {
                self.enqueue_at(group, now);
                if now >= least || self.queue.peek().is_some_and(|next| next.0 >= least) {
                    continue;
                }
                return;
            }
            if expected_savings < least {
                self.enqueue_at(group, now);
                return;
            }
            self.select_from(
                group,
                exact >= CONFIDENT_SAVINGS,
                end.saturating_sub(frames.len()),
                frames,
            );
        }
    }

    fn learn(&mut self, outcomes: &[(FrameIndex, SelectionOutcome)]) {
        for (frame, outcome) in outcomes {
            self.learn_one(*frame, *outcome);
        }
    }
}

impl Adaptive {
    fn learn_one(&mut self, frame: FrameIndex, outcome: SelectionOutcome) {
        let Some(group) = self.candidates.group_of(frame) else { return };
        let Some(state) = self.states.get_mut(frame.as_usize()) else { return };
        let before = *state;
        let hash = ClassHitRate { hashed: 1.0, ..ClassHitRate::default() };
        let gain =
            |copies| ClassHitRate { shared: 1.0, saved: saved(copies), ..ClassHitRate::default() };
        let change = match (before, outcome) {
            (FrameState::Pending, SelectionOutcome::Skipped) => {
                *state = FrameState::Skipped;
                ClassHitRate::default()
            }
            (FrameState::Pending, SelectionOutcome::Alone) => {
                *state = FrameState::Alone;
                hash
            }
            (FrameState::Pending, SelectionOutcome::Shared { copies }) => {
                *state = FrameState::Shared;
                ClassHitRate { hashed: 1.0, ..gain(copies) }
            }
            (FrameState::Alone, SelectionOutcome::Shared { copies }) => {
                *state = FrameState::Shared;
                gain(copies)
            }
            (FrameState::Shared, SelectionOutcome::Diverged) => {
                *state = FrameState::Diverged;
                ClassHitRate { diverged: 1.0, ..ClassHitRate::default() }
            }
            _ => return,
        };
        self.count(group, &change);
        if before == FrameState::Pending
            && let Some(samples) = self.groups.get_mut(group)
        {
            samples.pending = samples.pending.saturating_sub(1);
        }
        if self.groups.get(group).is_some_and(|samples| samples.pending == 0) {
            self.reprioritize(group);
        }
    }
}

/// Index of the first frame at the position of the middle frame.
fn first_of_position(locality: &LocalityOrder, frames: &[FrameIndex]) -> usize {
    let position = |at: usize| frames.get(at).map(|frame| position(locality, *frame));
    let mut at = frames.len() / 2;
    while at > 0 && position(at.saturating_sub(1)) == position(at) {
        at = at.saturating_sub(1);
    }
    at
}

/// Pages saved per frame with this many copies: n equal pages save n - 1.
fn saved(copies: u32) -> f64 {
    if copies < 2 { 0.0 } else { 1.0 - 1.0 / f64::from(copies) }
}

/// Quantizes expected savings.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from 0 to STEPS; the cast saturates"
)]
fn steps(expected_savings: f64) -> u32 {
    (expected_savings * STEPS) as u32
}
