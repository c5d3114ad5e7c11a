//! A selector that learns where equal pages are.
//!
//! Frames are sorted into groups (`candidates`): pieces of a region, all of which stand in the same
//! name_match to what is known elsewhere. One is expected_savings what hashes of it are expected to
//! save (`expected_savings`), which is known at three levels, each of which corrects the one
//! before: the class (color and name_match), from other guests; the cluster (a directory, a
//! region), and the group itself, from this guest:
//!
//! ```text
//! loop: take the group of the highest expected_savings; stop below the least expected_savings
//!       give as many of its frames as it has earned: few at first, twice as many as it has answered for later
//!       when all of them are answered, weigh it again
//! ```
//!
//! The first frame of an group is one from its middle: of two versions of a file the first page
//! differs most often, and often it alone.

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

/// Most hashes that what is known of a class counts as, beside those of this guest. With fewer,
/// frames whose equal ones the other guest has yet to hash count for too much.
const CLASS_WEIGHT: f64 = 256.0;

/// Hashes that the class counts as beside those of the cluster.
const CLUSTER_WEIGHT: f64 = 8.0;

/// Worth below which the rest is left alone, unless told otherwise.
const LEAST_SAVINGS: f64 = 0.03;

/// What is taken for granted of a class that nobody has seen.
const UNSEEN: ClassHitRate =
    ClassHitRate { hashed: 8.0, shared: 2.0, saved: 1.0, diverged: 0.2, alike: 0.4 };

/// Worth above which an group needs no trial: about what two guests with the same files reach.
const SURE: f64 = 0.4;

/// Frames given at once: of an group that is sure, and at most.
const SURE_GRANT: u32 = 16;
const MAX_GRANT: u32 = 64;

/// Steps of expected_savings: groups within one are alike, so that ties break in the same way in
/// every guest.
const STEPS: f64 = 128.0;

/// Learns the yield of every color and region, and spends the budget where it is.
#[derive(Clone, Debug)]
pub struct Adaptive {
    locality: Arc<LocalityOrder>,
    candidates: CandidateGroups,
    groups: Vec<Tried>,
    clusters: Vec<Tried>,
    /// What was known before, and what has been learned here.
    before: HitRates,
    here: HitRates,
    answers: Vec<Answer>,
    queue: BinaryHeap<(u32, Reverse<u32>, u32)>,
    least: f64,
}

/// What trying an group or a cluster has shown.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    hashed: f64,
    saved: f64,
    /// Frames given, and of these those without an answer.
    given: u32,
    pending: u32,
    /// Worth under which it is in the queue, or was announced.
    queued: Option<u32>,
}

/// The last outcome of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    NotGiven,
    Pending,
    Skipped,
    Alone,
    Shared,
    Diverged,
}

impl Adaptive {
    /// A selector of frames of one guest of the catalog, which starts with what is known of other
    /// guests.
    #[must_use]
    pub fn new(
        locality: Arc<LocalityOrder>,
        catalog: &Catalog,
        guest: GuestNumber,
        hit_rates: &HitRates,
    ) -> Self {
        let candidates = CandidateGroups::new(&locality, catalog, guest);
        let mut adaptive = Self {
            groups: vec![Tried::default(); candidates.groups.len()],
            clusters: vec![Tried::default(); candidates.clusters.len()],
            answers: vec![Answer::NotGiven; locality.frames() as usize],
            before: hit_rates.clone(),
            here: HitRates::default(),
            queue: BinaryHeap::with_capacity(candidates.groups.len()),
            least: LEAST_SAVINGS,
            locality,
            candidates,
        };
        for group in 0..adaptive.groups.len() {
            adaptive.enqueue(group);
        }
        adaptive
    }

    /// With another number of pages saved per hash below which the rest is left alone; 0 ends with
    /// all frames.
    #[must_use]
    pub fn with_least_worth(mut self, least: f64) -> Self {
        self.least = least;
        self
    }

    /// What was learned from this guest, for [`HitRates::merge`].
    #[must_use]
    pub fn learned(&self) -> HitRates {
        let mut learned = self.here.clone();
        for (group, tried) in self.candidates.groups.iter().zip(&self.groups) {
            let alike = tried.saved * tried.saved / tried.hashed.max(1.0);
            learned.add(group.class, &ClassHitRate { alike, ..ClassHitRate::default() });
        }
        learned
    }

    /// What hashing all frames of a guest would teach: `judge` says of each frame how many copies
    /// there are of its page (0 when it cannot be hashed) and whether it is written to later.
    /// For learning from guests that were hashed blindly.
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

    /// What a hash in an group is expected to save.
    fn expected_savings(&self, group: usize) -> f64 {
        let (Some(of), Some(tried)) = (self.candidates.groups.get(group), self.groups.get(group))
        else {
            return 0.0;
        };
        let class = self.class_yield(of.class);
        let cluster = self.clusters.get(of.cluster as usize).copied().unwrap_or_default();
        let rate = class.saved / class.hashed;
        let kept = 1.0 - class.diverged / class.shared.max(1.0);
        let prospect = Estimate {
            rate: (cluster.saved + CLUSTER_WEIGHT * rate) / (cluster.hashed + CLUSTER_WEIGHT),
            good: class.alike / class.saved.max(f64::MIN_POSITIVE),
            per_hit: class.saved / class.shared.max(f64::MIN_POSITIVE),
            left: of.len.saturating_sub(tried.given),
            hashed: tried.hashed,
            saved: tried.saved,
        };
        expected_savings(&prospect) * kept.clamp(0.0, 1.0)
    }

    /// What is known of a class: from other guests, as if from few hashes, and from this one.
    fn class_yield(&self, class: Class) -> ClassHitRate {
        let (mut known, here) = (self.before.get(class), self.here.get(class));
        if known.hashed < UNSEEN.hashed {
            known = UNSEEN;
        }
        let scale = (CLASS_WEIGHT / known.hashed).min(1.0);
        ClassHitRate {
            hashed: known.hashed * scale + here.hashed,
            shared: known.shared * scale + here.shared,
            saved: known.saved * scale + here.saved,
            diverged: known.diverged * scale + here.diverged,
            // How alike frames are is known from other guests: here, many groups are known by one
            // frame only.
            alike: known.alike / known.saved.max(f64::MIN_POSITIVE)
                * (known.saved * scale + here.saved),
        }
    }

    /// Puts an group in the queue under what it is expected_savings now, if it has frames left and
    /// all that it gave are answered.
    fn enqueue(&mut self, group: usize) {
        self.enqueue_at(group, steps(self.expected_savings(group)));
    }

    fn enqueue_at(&mut self, group: usize, expected_savings: u32) {
        let (Some(of), Some(tried)) =
            (self.candidates.groups.get(group), self.groups.get_mut(group))
        else {
            return;
        };
        if tried.given < of.len && tried.pending == 0 && tried.queued != Some(expected_savings) {
            tried.queued = Some(expected_savings);
            let number = u32::try_from(group).unwrap_or(u32::MAX);
            self.queue.push((expected_savings, Reverse(of.tie), number));
        }
    }

    /// The next frames of an group.
    fn give(&mut self, group: usize, is_sure: bool, room: usize, frames: &mut Vec<FrameIndex>) {
        let (Some(of), Some(tried)) =
            (self.candidates.groups.get(group), self.groups.get_mut(group))
        else {
            return;
        };
        let reservation = match tried.given {
            _ if is_sure => SURE_GRANT.max(tried.given.saturating_mul(2)),
            // Of siblings, the same page of two.
            0 => 2,
            given => given.saturating_mul(2),
        };
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let reservation =
            reservation.min(MAX_GRANT).min(of.len.saturating_sub(tried.given)).min(room);
        let all = self.candidates.of(of);
        let middle = first_of_position(&self.locality, all);
        for n in tried.given..tried.given.saturating_add(reservation) {
            let at = middle.saturating_add(n as usize) % all.len().max(1);
            let Some(frame) = all.get(at) else { continue };
            if let Some(answer) = self.answers.get_mut(frame.as_usize()) {
                *answer = Answer::Pending;
            }
            frames.push(*frame);
        }
        tried.given = tried.given.saturating_add(reservation);
        tried.pending = tried.pending.saturating_add(reservation);
    }

    /// Counts a change in what is known of an group, its cluster and its class.
    fn count(&mut self, group: usize, change: &ClassHitRate) {
        let Some(of) = self.candidates.groups.get(group) else { return };
        self.here.add(of.class, change);
        let tried = self.groups.get_mut(group).into_iter();
        for tried in tried.chain(self.clusters.get_mut(of.cluster as usize)) {
            tried.hashed += change.hashed;
            tried.saved += change.saved;
        }
    }

    /// Weighs an group again, and the others of its cluster when the cluster has turned out better
    /// than they are queued for.
    fn weigh(&mut self, group: usize) {
        let Some(of) = self.candidates.groups.get(group).copied() else { return };
        if let Some(tried) = self.groups.get_mut(group) {
            tried.queued = None;
        }
        self.enqueue(group);
        let Some(cluster) = self.clusters.get_mut(of.cluster as usize) else { return };
        let rate = steps((cluster.saved / cluster.hashed.max(1.0)).min(1.0));
        // By half as much again, so that this happens a few times per cluster and not once per
        // group.
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
        let least = steps(self.least);
        while frames.len() < end {
            let Some((expected_savings, _, group)) = self.queue.pop() else { return };
            let group = group as usize;
            let Some(tried) = self.groups.get_mut(group) else { continue };
            if tried.queued != Some(expected_savings) {
                continue;
            }
            tried.queued = None;
            // Its class may have fallen since it was queued.
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
            self.give(group, exact >= SURE, end.saturating_sub(frames.len()), frames);
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
        let Some(group) = self.candidates.arm_of(frame) else { return };
        let Some(answer) = self.answers.get_mut(frame.as_usize()) else { return };
        let before = *answer;
        let hash = ClassHitRate { hashed: 1.0, ..ClassHitRate::default() };
        let gain =
            |copies| ClassHitRate { shared: 1.0, saved: saved(copies), ..ClassHitRate::default() };
        let change = match (before, outcome) {
            (Answer::Pending, SelectionOutcome::Skipped) => {
                *answer = Answer::Skipped;
                ClassHitRate::default()
            }
            (Answer::Pending, SelectionOutcome::Alone) => {
                *answer = Answer::Alone;
                hash
            }
            (Answer::Pending, SelectionOutcome::Shared { copies }) => {
                *answer = Answer::Shared;
                ClassHitRate { hashed: 1.0, ..gain(copies) }
            }
            (Answer::Alone, SelectionOutcome::Shared { copies }) => {
                *answer = Answer::Shared;
                gain(copies)
            }
            (Answer::Shared, SelectionOutcome::Diverged) => {
                *answer = Answer::Diverged;
                ClassHitRate { diverged: 1.0, ..ClassHitRate::default() }
            }
            _ => return,
        };
        self.count(group, &change);
        if before == Answer::Pending
            && let Some(tried) = self.groups.get_mut(group)
        {
            tried.pending = tried.pending.saturating_sub(1);
        }
        if self.groups.get(group).is_some_and(|tried| tried.pending == 0) {
            self.weigh(group);
        }
    }
}

/// The first frame with the position that the middle frame has.
fn first_of_position(locality: &LocalityOrder, frames: &[FrameIndex]) -> usize {
    let position = |at: usize| frames.get(at).map(|frame| position(locality, *frame));
    let mut at = frames.len() / 2;
    while at > 0 && position(at.saturating_sub(1)) == position(at) {
        at = at.saturating_sub(1);
    }
    at
}

/// The part of a page that a frame with so many copies saves: n equal pages save n - 1.
fn saved(copies: u32) -> f64 {
    if copies < 2 { 0.0 } else { 1.0 - 1.0 / f64::from(copies) }
}

/// A expected_savings in steps.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from 0 to STEPS; saturating is meant"
)]
fn steps(expected_savings: f64) -> u32 {
    (expected_savings * STEPS) as u32
}
