//! Selectors at work on a set of guests.

use super::{
    DedupSelector, GuestNumber, PartialHashFilter, SelectionOutcome, SharingStatistics, Tally,
};
use crate::addr::FrameIndex;
use crate::fingerprint::{Content, Fingerprint, PartialHash};
use crate::prefetch::LocalityOrder;

/// Rounds that a budget is spent in, about: in each, every selector chooses, all is hashed, and all
/// learn.
const ROUNDS: u64 = 64;

/// Fewest and most frames that a selector chooses in a round.
const ROUND: (u64, u64) = (32, 1024);

/// A guest whose frames are chosen.
pub struct TrialGuest<'a> {
    /// Its number in the catalog, and in the sharing.
    pub number: GuestNumber,
    /// What its frames are.
    pub locality: &'a LocalityOrder,
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
    pub sharing: SharingStatistics,
    /// The way there.
    pub curve: Vec<Point>,
}

impl Trial {
    /// All counts.
    #[must_use]
    pub fn total(&self) -> Tally {
        self.sharing.total()
    }

    /// Notes how far it has come.
    fn mark(&mut self) {
        let total = self.total();
        self.curve.push(Point { hashed: total.hashed, net: total.net() });
    }
}

/// What selectors will be told, guest by guest.
type Outcomes = Vec<Vec<(FrameIndex, SelectionOutcome)>>;

/// Lets the selectors choose in turn until `budget` frames of all guests were hashed, or none is
/// worth it any more. `read` says what the chosen frames of one of the guests hold, which is named
/// by its place in `guests`.
///
/// # Errors
/// The first one of `read`.
pub fn run<E>(
    guests: &mut [TrialGuest<'_>],
    budget: u64,
    mut read: impl FnMut(usize, &[FrameIndex]) -> Result<Vec<Content>, E>,
) -> Result<Trial, E> {
    let mut trial = Trial::default();
    let share = share(guests, budget);
    rounds(guests, &mut trial, (share, budget), |trial, guests, place, chosen, outcomes| {
        let found = chosen.iter().copied().zip(read(place, chosen)?);
        note(&mut trial.sharing, guests, place, found, outcomes, hashed);
        Ok(())
    })?;
    Ok(trial)
}

/// The same through a [`PartialHashFilter`]: of everything that the selectors choose, `glance`
/// reads some lines, and only frames that may have an equal one are hashed by `read`, the largest
/// groups first, until `budget` of them were. Selectors learn from the lines: of what they take for
/// shared, a few frames in a hundred are not.
///
/// # Errors
/// The first one of `glance` or `read`.
pub fn run_filtered<E>(
    guests: &mut [TrialGuest<'_>],
    budget: u64,
    mut glance: impl FnMut(usize, &[FrameIndex]) -> Result<Vec<Content<PartialHash>>, E>,
    mut read: impl FnMut(usize, &[FrameIndex]) -> Result<Vec<Content>, E>,
) -> Result<Trial, E> {
    let mut trial = Trial::default();
    let mut filter = PartialHashFilter::new();
    let all = share(guests, u64::MAX);
    rounds(guests, &mut trial, (all, u64::MAX), |trial, guests, place, chosen, outcomes| {
        let found = chosen.iter().copied().zip(glance(place, chosen)?);
        note(&mut trial.sharing, guests, place, found, outcomes, |sharing, guest, frame, page| {
            sharing.add_glanced(guest.locality.color(frame));
            let alike = filter.add(guest.number, frame, page);
            (alike.frames, alike.first)
        });
        Ok(())
    })?;
    let mut alike = filter.alike();
    alike.truncate(usize::try_from(budget).unwrap_or(usize::MAX));
    let batch = usize::try_from(share(guests, budget)).unwrap_or(usize::MAX);
    let mut unheard = vec![Vec::new(); guests.len()];
    for batch in alike.chunks(batch.saturating_mul(guests.len()).max(1)) {
        for place in 0..guests.len() {
            let number = guests.get(place).map(|guest| guest.number);
            let of_guest = batch.iter().filter(|frame| Some(frame.0) == number);
            let frames: Vec<_> = of_guest.map(|frame| frame.1).collect();
            let found = frames.iter().copied().zip(read(place, &frames)?);
            note(&mut trial.sharing, guests, place, found, &mut unheard, hashed);
        }
        trial.mark();
    }
    Ok(trial)
}

/// Frames that a selector chooses in a round.
fn share(guests: &[TrialGuest<'_>], budget: u64) -> u64 {
    let all: u64 = guests.iter().map(|guest| u64::from(guest.locality.frames())).sum();
    let count = u64::try_from(guests.len()).unwrap_or(u64::MAX).max(1);
    (budget.min(all) / ROUNDS / count).clamp(ROUND.0, ROUND.1)
}

/// Lets the selectors choose `share` frames each in turn until `budget` were hashed or they choose
/// nothing more, and learn after each round what `work` found out.
fn rounds<E>(
    guests: &mut [TrialGuest<'_>],
    trial: &mut Trial,
    (share, budget): (u64, u64),
    mut work: impl FnMut(
        &mut Trial,
        &[TrialGuest<'_>],
        usize,
        &[FrameIndex],
        &mut Outcomes,
    ) -> Result<(), E>,
) -> Result<(), E> {
    let mut chosen = Vec::new();
    let mut outcomes: Outcomes = vec![Vec::new(); guests.len()];
    // No frame comes twice: selectors that choose more than there are would go on for ever.
    let mut left_to_choose: u64 =
        guests.iter().map(|guest| u64::from(guest.locality.frames())).sum();
    loop {
        outcomes.iter_mut().for_each(Vec::clear);
        for place in 0..guests.len() {
            let left = budget.saturating_sub(trial.total().hashed);
            let room = usize::try_from(share.min(left)).unwrap_or(usize::MAX);
            let Some(guest) = guests.get_mut(place).filter(|_| room > 0) else { continue };
            chosen.clear();
            guest.selector.select(room, &mut chosen);
            chosen.truncate(usize::try_from(left_to_choose).unwrap_or(usize::MAX));
            left_to_choose -= u64::try_from(chosen.len()).unwrap_or(left_to_choose);
            if !chosen.is_empty() {
                work(trial, guests, place, &chosen, &mut outcomes)?;
            }
        }
        if outcomes.iter().all(Vec::is_empty) {
            return Ok(());
        }
        for (guest, outcomes) in guests.iter_mut().zip(&outcomes) {
            guest.selector.learn(outcomes);
        }
        trial.mark();
    }
}

/// Notes an outcome for the selector of the guest at a place.
fn tell(outcomes: &mut Outcomes, place: usize, frame: FrameIndex, outcome: SelectionOutcome) {
    if let Some(outcomes) = outcomes.get_mut(place) {
        outcomes.push((frame, outcome));
    }
}

/// Notes for selectors that a frame is one of so many equal ones. The one that was alone until now
/// is not any more.
fn tell_shared(
    guests: &[TrialGuest<'_>],
    outcomes: &mut Outcomes,
    (place, frame): (usize, FrameIndex),
    copies: u32,
    first: (GuestNumber, FrameIndex),
) {
    if copies < 2 {
        return tell(outcomes, place, frame, SelectionOutcome::Alone);
    }
    tell(outcomes, place, frame, SelectionOutcome::Shared { copies });
    if copies == 2
        && let Some(at) = guests.iter().position(|guest| guest.number == first.0)
    {
        tell(outcomes, at, first.1, SelectionOutcome::Shared { copies });
    }
}

/// Notes what the frames of one guest hold, which `count` counts: how many equal ones there are
/// now, and which is the first one.
fn note<H>(
    sharing: &mut SharingStatistics,
    guests: &[TrialGuest<'_>],
    place: usize,
    found: impl Iterator<Item = (FrameIndex, Content<H>)>,
    outcomes: &mut Outcomes,
    mut count: impl FnMut(
        &mut SharingStatistics,
        &TrialGuest<'_>,
        FrameIndex,
        H,
    ) -> (u32, (GuestNumber, FrameIndex)),
) {
    let Some(guest) = guests.get(place) else { return };
    for (frame, content) in found {
        match content {
            Content::Page(page) => {
                let (copies, first) = count(sharing, guest, frame, page);
                tell_shared(guests, outcomes, (place, frame), copies, first);
            }
            Content::Zero => {
                sharing.add_zero(guest.locality.color(frame));
                tell(outcomes, place, frame, SelectionOutcome::Skipped);
            }
            Content::Missing => tell(outcomes, place, frame, SelectionOutcome::Skipped),
        }
    }
}

/// Counts a frame that was hashed.
fn hashed(
    sharing: &mut SharingStatistics,
    guest: &TrialGuest<'_>,
    frame: FrameIndex,
    page: Fingerprint,
) -> (u32, (GuestNumber, FrameIndex)) {
    let is_written = (guest.is_written)(frame);
    sharing.add((guest.number, frame), guest.locality.color(frame), page, is_written)
}
