//! Selectors at work on a set of guests.

use super::{DedupSelector, GuestNumber, Ledger, Outcome, Tally};
use crate::addr::FrameIndex;
use crate::fingerprint::Content;
use crate::prefetch::Atlas;

/// Rounds that a budget is spent in, about: in each, every selector chooses, all is hashed, and all learn.
const ROUNDS: u64 = 64;

/// Fewest and most frames that a selector chooses in a round.
const ROUND: (u64, u64) = (32, 1024);

/// A guest whose frames are chosen.
pub struct Subject<'a> {
    /// Its number in the catalog, and in the ledger.
    pub number: GuestNumber,
    /// What its frames are.
    pub atlas: &'a Atlas,
    /// Who chooses.
    pub selector: &'a mut dyn DedupSelector,
    /// Whether clones write to a frame later: known only afterwards, and to no selector.
    pub is_written: &'a dyn Fn(FrameIndex) -> bool,
}

/// What had been saved after so many hashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// Hashes so far.
    pub hashed: u64,
    /// Pages saved so far that stay saved.
    pub net: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Trial {
    /// What was hashed and saved.
    pub ledger: Ledger,
    /// The way there.
    pub curve: Vec<Point>,
}

impl Trial {
    /// All counts.
    #[must_use]
    pub fn total(&self) -> Tally {
        self.ledger.total()
    }
}

/// Lets the selectors choose in turn until `budget` frames of all guests were hashed, or none is worth it any more. `read` says what the chosen
/// frames of one of the guests hold, which is named by its place in `guests`.
///
/// # Errors
/// The first one of `read`.
pub fn run<E>(
    guests: &mut [Subject<'_>],
    budget: u64,
    mut read: impl FnMut(usize, &[FrameIndex]) -> Result<Vec<Content>, E>,
) -> Result<Trial, E> {
    let mut trial = Trial::default();
    let all: u64 = guests.iter().map(|guest| u64::from(guest.atlas.frames())).sum();
    let count = u64::try_from(guests.len()).unwrap_or(u64::MAX).max(1);
    let share = (budget.min(all) / ROUNDS / count).clamp(ROUND.0, ROUND.1);
    let mut chosen = Vec::new();
    let mut outcomes: Vec<Vec<(FrameIndex, Outcome)>> = vec![Vec::new(); guests.len()];
    loop {
        outcomes.iter_mut().for_each(Vec::clear);
        for place in 0..guests.len() {
            let left = budget.saturating_sub(trial.total().hashed);
            let room = usize::try_from(share.min(left)).unwrap_or(usize::MAX);
            let Some(guest) = guests.get_mut(place).filter(|_| room > 0) else { continue };
            chosen.clear();
            guest.selector.select(room, &mut chosen);
            if chosen.is_empty() {
                continue;
            }
            let found = read(place, &chosen)?;
            record(
                &mut trial.ledger,
                guests,
                place,
                chosen.iter().copied().zip(found),
                &mut outcomes,
            );
        }
        if outcomes.iter().all(Vec::is_empty) {
            return Ok(trial);
        }
        for (guest, outcomes) in guests.iter_mut().zip(&outcomes) {
            guest.selector.learn(outcomes);
        }
        let total = trial.total();
        trial.curve.push(Point { hashed: total.hashed, net: total.net() });
    }
}

/// Counts what the frames of one guest hold, and notes what it means for selectors.
fn record(
    ledger: &mut Ledger,
    guests: &[Subject<'_>],
    place: usize,
    found: impl Iterator<Item = (FrameIndex, Content)>,
    outcomes: &mut [Vec<(FrameIndex, Outcome)>],
) {
    let Some(guest) = guests.get(place) else { return };
    let mut tell = |place: usize, frame, outcome| {
        if let Some(outcomes) = outcomes.get_mut(place) {
            outcomes.push((frame, outcome));
        }
    };
    for (frame, content) in found {
        let color = guest.atlas.color(frame);
        let page = match content {
            Content::Page(page) => page,
            Content::Zero => {
                ledger.add_zero(color);
                tell(place, frame, Outcome::Skipped);
                continue;
            }
            Content::Missing => {
                tell(place, frame, Outcome::Skipped);
                continue;
            }
        };
        let is_written = (guest.is_written)(frame);
        let (copies, first) = ledger.add((guest.number, frame), color, page, is_written);
        if copies < 2 {
            tell(place, frame, Outcome::Alone);
            continue;
        }
        tell(place, frame, Outcome::Shared { copies });
        // The one that was alone is not any more.
        if copies == 2
            && let Some(at) = guests.iter().position(|guest| guest.number == first.0)
        {
            tell(at, first.1, Outcome::Shared { copies });
        }
    }
}
