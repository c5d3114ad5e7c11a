//! Runs selectors on a set of guests.

use super::{
    DedupSelector, GuestNumber, PartialHashFilter, SelectionOutcome, SharingStatistics, Tally,
};
use crate::addr::FrameIndex;
use crate::fingerprint::{Content, Fingerprint, PartialHash};
use crate::prefetch::LocalityOrder;

/// Approximate number of rounds that a budget is spent in. In each round every selector selects,
/// then all selected frames are hashed, then every selector learns the outcomes.
const ROUNDS: u64 = 64;

/// Minimum and maximum number of frames that a selector selects in a round.
const ROUND_FRAMES: (u64, u64) = (32, 1024);

/// A guest of a trial.
pub struct TrialGuest<'a> {
    /// Its number in the catalog and in the statistics.
    pub number: GuestNumber,
    /// Its frames in locality order.
    pub locality: &'a LocalityOrder,
    /// Selects its frames.
    pub selector: &'a mut dyn DedupSelector,
    /// Whether clones write to a frame later; not visible to selectors.
    pub is_written: &'a dyn Fn(FrameIndex) -> bool,
}

/// A point of the savings curve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// Hashes so far.
    pub hashed: u64,
    /// Pages saved so far that stay saved.
    pub net: u64,
}

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct Trial {
    /// Counts of hashed and shared frames.
    pub sharing: SharingStatistics,
    /// The savings after each round.
    pub curve: Vec<Point>,
}

impl Trial {
    /// All counts.
    #[must_use]
    pub fn total(&self) -> Tally {
        self.sharing.total()
    }

    /// Appends a point to the curve.
    fn mark(&mut self) {
        let total = self.total();
        self.curve.push(Point { hashed: total.hashed, net: total.net() });
    }
}

/// Outcomes of a round, by guest.
type Outcomes = Vec<Vec<(FrameIndex, SelectionOutcome)>>;

/// Runs the selectors in turn until `budget` frames of all guests were hashed, or no selector
/// selects any more. `read` returns the contents of frames of one guest, which is given by its
/// index in `guests`.
///
/// # Errors
/// The first error of `read`.
pub fn run<E>(
    guests: &mut [TrialGuest<'_>],
    budget: u64,
    mut read: impl FnMut(usize, &[FrameIndex]) -> Result<Vec<Content>, E>,
) -> Result<Trial, E> {
    let mut trial = Trial::default();
    let frames = round_frames(guests, budget);
    rounds(guests, &mut trial, (frames, budget), |trial, guests, index, selected, outcomes| {
        let contents = selected.iter().copied().zip(read(index, selected)?);
        record(&mut trial.sharing, guests, index, contents, outcomes, hashed);
        Ok(())
    })?;
    Ok(trial)
}

/// The same through a [`PartialHashFilter`]: `read_partial` computes the partial hashes of all
/// selected frames, and `read` hashes in full only frames whose partial hash occurs more than once,
/// the largest groups first, until `budget` of them were hashed. Selectors learn from the partial
/// hashes; a few percent of the frames reported as shared have no equal page.
///
/// # Errors
/// The first error of `read_partial` or `read`.
pub fn run_filtered<E>(
    guests: &mut [TrialGuest<'_>],
    budget: u64,
    mut read_partial: impl FnMut(usize, &[FrameIndex]) -> Result<Vec<Content<PartialHash>>, E>,
    mut read: impl FnMut(usize, &[FrameIndex]) -> Result<Vec<Content>, E>,
) -> Result<Trial, E> {
    let mut trial = Trial::default();
    let mut filter = PartialHashFilter::new();
    let all = round_frames(guests, u64::MAX);
    rounds(guests, &mut trial, (all, u64::MAX), |trial, guests, index, selected, outcomes| {
        let contents = selected.iter().copied().zip(read_partial(index, selected)?);
        record(
            &mut trial.sharing,
            guests,
            index,
            contents,
            outcomes,
            |sharing, guest, frame, page| {
                sharing.add_glanced(guest.locality.color(frame));
                let found = filter.add(guest.number, frame, page);
                (found.frames, found.first)
            },
        );
        Ok(())
    })?;
    let mut candidates = filter.alike();
    candidates.truncate(usize::try_from(budget).unwrap_or(usize::MAX));
    let batch = usize::try_from(round_frames(guests, budget)).unwrap_or(usize::MAX);
    let mut unused = vec![Vec::new(); guests.len()];
    for batch in candidates.chunks(batch.saturating_mul(guests.len()).max(1)) {
        for index in 0..guests.len() {
            let number = guests.get(index).map(|guest| guest.number);
            let of_guest = batch.iter().filter(|frame| Some(frame.0) == number);
            let frames: Vec<_> = of_guest.map(|frame| frame.1).collect();
            let contents = frames.iter().copied().zip(read(index, &frames)?);
            record(&mut trial.sharing, guests, index, contents, &mut unused, hashed);
        }
        trial.mark();
    }
    Ok(trial)
}

/// Frames that each selector selects per round.
fn round_frames(guests: &[TrialGuest<'_>], budget: u64) -> u64 {
    let all: u64 = guests.iter().map(|guest| u64::from(guest.locality.frames())).sum();
    let count = u64::try_from(guests.len()).unwrap_or(u64::MAX).max(1);
    (budget.min(all) / ROUNDS / count).clamp(ROUND_FRAMES.0, ROUND_FRAMES.1)
}

/// Runs rounds of `frames` selected frames per guest until `budget` were hashed or no selector
/// selects any more. `work` hashes the frames of one guest; the selectors learn its outcomes after
/// each round.
fn rounds<E>(
    guests: &mut [TrialGuest<'_>],
    trial: &mut Trial,
    (frames, budget): (u64, u64),
    mut work: impl FnMut(
        &mut Trial,
        &[TrialGuest<'_>],
        usize,
        &[FrameIndex],
        &mut Outcomes,
    ) -> Result<(), E>,
) -> Result<(), E> {
    let mut selected = Vec::new();
    let mut outcomes: Outcomes = vec![Vec::new(); guests.len()];
    // No frame is selected twice, so a selector that exceeds this count is faulty; without the
    // limit the loop would not end.
    let mut left_to_select: u64 =
        guests.iter().map(|guest| u64::from(guest.locality.frames())).sum();
    loop {
        outcomes.iter_mut().for_each(Vec::clear);
        for index in 0..guests.len() {
            let left = budget.saturating_sub(trial.total().hashed);
            let room = usize::try_from(frames.min(left)).unwrap_or(usize::MAX);
            let Some(guest) = guests.get_mut(index).filter(|_| room > 0) else { continue };
            selected.clear();
            guest.selector.select(room, &mut selected);
            selected.truncate(usize::try_from(left_to_select).unwrap_or(usize::MAX));
            left_to_select -= u64::try_from(selected.len()).unwrap_or(left_to_select);
            if !selected.is_empty() {
                work(trial, guests, index, &selected, &mut outcomes)?;
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

/// Adds an outcome for the selector of a guest.
fn push_outcome(
    outcomes: &mut Outcomes,
    index: usize,
    frame: FrameIndex,
    outcome: SelectionOutcome,
) {
    if let Some(outcomes) = outcomes.get_mut(index) {
        outcomes.push((frame, outcome));
    }
}

/// Adds the outcomes for a frame with this many copies. At the second copy, the first frame becomes
/// shared too.
fn push_copies(
    guests: &[TrialGuest<'_>],
    outcomes: &mut Outcomes,
    (index, frame): (usize, FrameIndex),
    copies: u32,
    first: (GuestNumber, FrameIndex),
) {
    if copies < 2 {
        return push_outcome(outcomes, index, frame, SelectionOutcome::Alone);
    }
    push_outcome(outcomes, index, frame, SelectionOutcome::Shared { copies });
    if copies == 2
        && let Some(at) = guests.iter().position(|guest| guest.number == first.0)
    {
        push_outcome(outcomes, at, first.1, SelectionOutcome::Shared { copies });
    }
}

/// Records the contents of frames of one guest. `count` counts a page and returns its copies so far
/// and the first of them.
fn record<H>(
    sharing: &mut SharingStatistics,
    guests: &[TrialGuest<'_>],
    index: usize,
    contents: impl Iterator<Item = (FrameIndex, Content<H>)>,
    outcomes: &mut Outcomes,
    mut count: impl FnMut(
        &mut SharingStatistics,
        &TrialGuest<'_>,
        FrameIndex,
        H,
    ) -> (u32, (GuestNumber, FrameIndex)),
) {
    let Some(guest) = guests.get(index) else { return };
    for (frame, content) in contents {
        match content {
            Content::Page(page) => {
                let (copies, first) = count(sharing, guest, frame, page);
                push_copies(guests, outcomes, (index, frame), copies, first);
            }
            Content::Zero => {
                sharing.add_zero(guest.locality.color(frame));
                push_outcome(outcomes, index, frame, SelectionOutcome::Skipped);
            }
            Content::Missing => push_outcome(outcomes, index, frame, SelectionOutcome::Skipped),
        }
    }
}

/// Counts a frame hashed in full.
fn hashed(
    sharing: &mut SharingStatistics,
    guest: &TrialGuest<'_>,
    frame: FrameIndex,
    page: Fingerprint,
) -> (u32, (GuestNumber, FrameIndex)) {
    let is_written = (guest.is_written)(frame);
    sharing.add((guest.number, frame), guest.locality.color(frame), page, is_written)
}
