//! A selector that learns where equal pages are.
//!
//! Frames are sorted into arms (`stock`): pieces of a region, all of which stand in the same relation to what is known elsewhere. One is worth
//! what hashes of it are expected to save (`worth`), which is known at three levels, each of which corrects the one before: the class (color
//! and relation), from other guests; the group (a directory, a region), and the arm itself, from this guest:
//!
//! ```text
//! loop: take the arm of the highest worth; stop below the least worth
//!       give as many of its frames as it has earned: few at first, twice as many as it has answered for later
//!       when all of them are answered, weigh it again
//! ```
//!
//! The first frame of an arm is one from its middle: of two versions of a file the first page differs most often, and often it alone.

mod stock;
mod worth;

use super::catalog::position;
use super::yields::{Class, ClassYield};
use super::{Catalog, DedupSelector, GuestNumber, Outcome, Yields};
use crate::addr::FrameIndex;
use crate::prefetch::Atlas;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use stock::Stock;
use worth::{Prospect, worth};

/// Most hashes that what is known of a class counts as, beside those of this guest. With fewer, frames whose equal ones the other
/// guest has yet to hash count for too much.
const CLASS_WEIGHT: f64 = 256.0;

/// Hashes that the class counts as beside those of the group.
const GROUP_WEIGHT: f64 = 8.0;

/// Worth below which the rest is left alone, unless told otherwise.
const LEAST_WORTH: f64 = 0.03;

/// What is taken for granted of a class that nobody has seen.
const UNSEEN: ClassYield =
    ClassYield { hashed: 8.0, shared: 2.0, saved: 1.0, diverged: 0.2, alike: 0.4 };

/// Worth above which an arm needs no trial: about what two guests with the same files reach.
const SURE: f64 = 0.4;

/// Frames given at once: of an arm that is sure, and at most.
const SURE_GRANT: u32 = 16;
const MAX_GRANT: u32 = 64;

/// Steps of worth: arms within one are alike, so that ties break in the same way in every guest.
const STEPS: f64 = 128.0;

/// Learns the yield of every color and region, and spends the budget where it is.
#[derive(Clone, Debug)]
pub struct Adaptive {
    atlas: Arc<Atlas>,
    stock: Stock,
    arms: Vec<Tried>,
    groups: Vec<Tried>,
    /// What was known before, and what has been learned here.
    before: Yields,
    here: Yields,
    answers: Vec<Answer>,
    queue: BinaryHeap<(u32, Reverse<u32>, u32)>,
    least: f64,
}

/// What trying an arm or a group has shown.
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
    /// A selector of frames of one guest of the catalog, which starts with what is known of other guests.
    #[must_use]
    pub fn new(atlas: Arc<Atlas>, catalog: &Catalog, guest: GuestNumber, yields: &Yields) -> Self {
        let stock = Stock::new(&atlas, catalog, guest);
        let mut adaptive = Self {
            arms: vec![Tried::default(); stock.arms.len()],
            groups: vec![Tried::default(); stock.groups.len()],
            answers: vec![Answer::NotGiven; atlas.frames() as usize],
            before: yields.clone(),
            here: Yields::default(),
            queue: BinaryHeap::with_capacity(stock.arms.len()),
            least: LEAST_WORTH,
            atlas,
            stock,
        };
        for arm in 0..adaptive.arms.len() {
            adaptive.enqueue(arm);
        }
        adaptive
    }

    /// With another number of pages saved per hash below which the rest is left alone; 0 ends with all frames.
    #[must_use]
    pub fn with_least_worth(mut self, least: f64) -> Self {
        self.least = least;
        self
    }

    /// What was learned from this guest, for [`Yields::merge`].
    #[must_use]
    pub fn learned(&self) -> Yields {
        let mut learned = self.here.clone();
        for (arm, tried) in self.stock.arms.iter().zip(&self.arms) {
            let alike = tried.saved * tried.saved / tried.hashed.max(1.0);
            learned.add(arm.class, &ClassYield { alike, ..ClassYield::default() });
        }
        learned
    }

    /// What hashing all frames of a guest would teach: `judge` says of each frame how many copies there are of its page (0 when it
    /// cannot be hashed) and whether it is written to later. For learning from guests that were hashed blindly.
    #[must_use]
    pub fn teach(
        atlas: &Atlas,
        catalog: &Catalog,
        guest: GuestNumber,
        mut judge: impl FnMut(FrameIndex) -> (u32, bool),
    ) -> Yields {
        let stock = Stock::new(atlas, catalog, guest);
        let mut yields = Yields::default();
        for arm in &stock.arms {
            let mut found = ClassYield::default();
            for frame in stock.of(arm) {
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
            yields.add(arm.class, &found);
        }
        yields
    }

    /// What a hash in an arm is expected to save.
    fn worth(&self, arm: usize) -> f64 {
        let (Some(of), Some(tried)) = (self.stock.arms.get(arm), self.arms.get(arm)) else {
            return 0.0;
        };
        let class = self.class_yield(of.class);
        let group = self.groups.get(of.group as usize).copied().unwrap_or_default();
        let rate = class.saved / class.hashed;
        let kept = 1.0 - class.diverged / class.shared.max(1.0);
        let prospect = Prospect {
            rate: (group.saved + GROUP_WEIGHT * rate) / (group.hashed + GROUP_WEIGHT),
            good: class.alike / class.saved.max(f64::MIN_POSITIVE),
            per_hit: class.saved / class.shared.max(f64::MIN_POSITIVE),
            left: of.len.saturating_sub(tried.given),
            hashed: tried.hashed,
            saved: tried.saved,
        };
        worth(&prospect) * kept.clamp(0.0, 1.0)
    }

    /// What is known of a class: from other guests, as if from few hashes, and from this one.
    fn class_yield(&self, class: Class) -> ClassYield {
        let (mut known, here) = (self.before.get(class), self.here.get(class));
        if known.hashed < UNSEEN.hashed {
            known = UNSEEN;
        }
        let scale = (CLASS_WEIGHT / known.hashed).min(1.0);
        ClassYield {
            hashed: known.hashed * scale + here.hashed,
            shared: known.shared * scale + here.shared,
            saved: known.saved * scale + here.saved,
            diverged: known.diverged * scale + here.diverged,
            // How alike frames are is known from other guests: here, many arms are known by one frame only.
            alike: known.alike / known.saved.max(f64::MIN_POSITIVE)
                * (known.saved * scale + here.saved),
        }
    }

    /// Puts an arm in the queue under what it is worth now, if it has frames left and all that it gave are answered.
    fn enqueue(&mut self, arm: usize) {
        self.enqueue_at(arm, steps(self.worth(arm)));
    }

    fn enqueue_at(&mut self, arm: usize, worth: u32) {
        let (Some(of), Some(tried)) = (self.stock.arms.get(arm), self.arms.get_mut(arm)) else {
            return;
        };
        if tried.given < of.len && tried.pending == 0 && tried.queued != Some(worth) {
            tried.queued = Some(worth);
            let number = u32::try_from(arm).unwrap_or(u32::MAX);
            self.queue.push((worth, Reverse(of.tie), number));
        }
    }

    /// The next frames of an arm.
    fn give(&mut self, arm: usize, is_sure: bool, room: usize, frames: &mut Vec<FrameIndex>) {
        let (Some(of), Some(tried)) = (self.stock.arms.get(arm), self.arms.get_mut(arm)) else {
            return;
        };
        let grant = match tried.given {
            _ if is_sure => SURE_GRANT.max(tried.given.saturating_mul(2)),
            // Of siblings, the same page of two.
            0 => 2,
            given => given.saturating_mul(2),
        };
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let grant = grant.min(MAX_GRANT).min(of.len.saturating_sub(tried.given)).min(room);
        let all = self.stock.of(of);
        let middle = first_of_position(&self.atlas, all);
        for n in tried.given..tried.given.saturating_add(grant) {
            let at = middle.saturating_add(n as usize) % all.len().max(1);
            let Some(frame) = all.get(at) else { continue };
            if let Some(answer) = self.answers.get_mut(frame.as_usize()) {
                *answer = Answer::Pending;
            }
            frames.push(*frame);
        }
        tried.given = tried.given.saturating_add(grant);
        tried.pending = tried.pending.saturating_add(grant);
    }

    /// Counts a change in what is known of an arm, its group and its class.
    fn count(&mut self, arm: usize, change: &ClassYield) {
        let Some(of) = self.stock.arms.get(arm) else { return };
        self.here.add(of.class, change);
        let tried = self.arms.get_mut(arm).into_iter();
        for tried in tried.chain(self.groups.get_mut(of.group as usize)) {
            tried.hashed += change.hashed;
            tried.saved += change.saved;
        }
    }

    /// Weighs an arm again, and the others of its group when the group has turned out better than they are queued for.
    fn weigh(&mut self, arm: usize) {
        let Some(of) = self.stock.arms.get(arm).copied() else { return };
        if let Some(tried) = self.arms.get_mut(arm) {
            tried.queued = None;
        }
        self.enqueue(arm);
        let Some(group) = self.groups.get_mut(of.group as usize) else { return };
        let rate = steps((group.saved / group.hashed.max(1.0)).min(1.0));
        // By half as much again, so that this happens a few times per group and not once per arm.
        if group.queued.is_none_or(|before| rate > before.saturating_add(before / 2)) {
            group.queued = Some(rate);
            let arms = self.stock.groups.get_mut(of.group as usize).map(std::mem::take);
            for other in arms.iter().flatten() {
                self.enqueue(*other as usize);
            }
            if let (Some(slot), Some(arms)) = (self.stock.groups.get_mut(of.group as usize), arms) {
                *slot = arms;
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
            let Some((worth, _, arm)) = self.queue.pop() else { return };
            let arm = arm as usize;
            let Some(tried) = self.arms.get_mut(arm) else { continue };
            if tried.queued != Some(worth) {
                continue;
            }
            tried.queued = None;
            // Its class may have fallen since it was queued.
            let exact = self.worth(arm);
            let now = steps(exact);
            if now < worth {
                self.enqueue_at(arm, now);
                if now >= least || self.queue.peek().is_some_and(|next| next.0 >= least) {
                    continue;
                }
                return;
            }
            if worth < least {
                self.enqueue_at(arm, now);
                return;
            }
            self.give(arm, exact >= SURE, end.saturating_sub(frames.len()), frames);
        }
    }

    fn learn(&mut self, outcomes: &[(FrameIndex, Outcome)]) {
        for (frame, outcome) in outcomes {
            self.learn_one(*frame, *outcome);
        }
    }
}

impl Adaptive {
    fn learn_one(&mut self, frame: FrameIndex, outcome: Outcome) {
        let Some(arm) = self.stock.arm_of(frame) else { return };
        let Some(answer) = self.answers.get_mut(frame.as_usize()) else { return };
        let before = *answer;
        let hash = ClassYield { hashed: 1.0, ..ClassYield::default() };
        let gain =
            |copies| ClassYield { shared: 1.0, saved: saved(copies), ..ClassYield::default() };
        let change = match (before, outcome) {
            (Answer::Pending, Outcome::Skipped) => {
                *answer = Answer::Skipped;
                ClassYield::default()
            }
            (Answer::Pending, Outcome::Alone) => {
                *answer = Answer::Alone;
                hash
            }
            (Answer::Pending, Outcome::Shared { copies }) => {
                *answer = Answer::Shared;
                ClassYield { hashed: 1.0, ..gain(copies) }
            }
            (Answer::Alone, Outcome::Shared { copies }) => {
                *answer = Answer::Shared;
                gain(copies)
            }
            (Answer::Shared, Outcome::Diverged) => {
                *answer = Answer::Diverged;
                ClassYield { diverged: 1.0, ..ClassYield::default() }
            }
            _ => return,
        };
        self.count(arm, &change);
        if before == Answer::Pending
            && let Some(tried) = self.arms.get_mut(arm)
        {
            tried.pending = tried.pending.saturating_sub(1);
        }
        if self.arms.get(arm).is_some_and(|tried| tried.pending == 0) {
            self.weigh(arm);
        }
    }
}

/// The first frame with the position that the middle frame has.
fn first_of_position(atlas: &Atlas, frames: &[FrameIndex]) -> usize {
    let position = |at: usize| frames.get(at).map(|frame| position(atlas, *frame));
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

/// A worth in steps.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "from 0 to STEPS; saturating is meant"
)]
fn steps(worth: f64) -> u32 {
    (worth * STEPS) as u32
}
