//! Tunes on all guests and, for cross-validation, on all guests but those of one kernel release.

use super::guests::Guest;
use crate::progress::Bar;
use kaleidoscope_core::prefetch::Settings;
use kaleidoscope_core::tune::{Judge, Score, TracedGuest, Tuner, touched, tune};
use std::num::NonZero;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The tuned settings and their scores.
#[derive(Debug)]
pub(super) struct Tuned {
    pub(super) settings: Settings,
    /// Score of the initial settings on all guests.
    pub(super) start: Score,
    /// Score of `settings` on each guest. They were tuned on that guest, too.
    pub(super) in_sample: Vec<Score>,
    /// Score on each guest of settings that were tuned only on guests with other kernels. Empty
    /// unless cross-validated.
    pub(super) held_out: Vec<Score>,
}

/// Tunes. The folds of the cross-validation run in parallel on all cores. The result is
/// deterministic.
pub(super) fn run(
    guests: &[Guest],
    start: &Settings,
    tuner: &Tuner,
    cross_validate: bool,
) -> Tuned {
    // `None` holds no kernel out. It is the longest job and comes first.
    let mut jobs = vec![None];
    if cross_validate {
        jobs.extend(kernels(guests).into_iter().map(Some));
    }
    let rounds = usize::try_from(tuner.rounds).unwrap_or(usize::MAX);
    let steps =
        |job: &Option<&str>| touched(training_guests(guests, *job)).len().saturating_mul(rounds);
    let bar = Bar::new("tuning", jobs.iter().map(steps).sum());
    let results: Vec<OnceLock<Settings>> = jobs.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let (Some(job), Some(result)) = (jobs.get(at), results.get(at)) else { return };
            let mut left = steps(job);
            let settings =
                tune(training_guests(guests, *job), start.clone(), tuner, &mut |_, _, _| {
                    left = left.saturating_sub(1);
                    bar.advance();
                });
            // Tuning may stop before the last round.
            (0..left).for_each(|_| bar.advance());
            // Cannot fail: each result is set once, by one thread.
            let _ = result.set(settings);
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(jobs.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    bar.finish();
    let mut tuned = results.into_iter().filter_map(OnceLock::into_inner);
    let settings = tuned.next().unwrap_or_else(|| start.clone());
    let judge = |guest: &Guest, settings| score([&guest.traced], settings);
    let folds: Vec<_> = kernels(guests).into_iter().zip(tuned).collect();
    let of_fold = |guest: &Guest| {
        let fold = folds.iter().find(|(kernel, _)| *kernel == guest.kernel);
        fold.map(|(_, settings)| judge(guest, settings))
    };
    Tuned {
        start: score(training_guests(guests, None), start),
        in_sample: guests.iter().map(|guest| judge(guest, &settings)).collect(),
        held_out: guests.iter().filter_map(of_fold).collect(),
        settings,
    }
}

/// The guests to train on: all but those of the held-out kernel.
fn training_guests<'a>(
    guests: &'a [Guest],
    held_out: Option<&'a str>,
) -> impl Iterator<Item = &'a TracedGuest> {
    let kept = guests.iter().filter(move |guest| Some(guest.kernel.as_str()) != held_out);
    kept.map(|guest| &guest.traced)
}

fn score<'a>(subjects: impl IntoIterator<Item = &'a TracedGuest>, settings: &Settings) -> Score {
    Judge::new(subjects).score(settings)
}

/// The guests' kernel releases, sorted and without duplicates.
pub(super) fn kernels(guests: &[Guest]) -> Vec<&str> {
    let mut kernels: Vec<&str> = guests.iter().map(|guest| guest.kernel.as_str()).collect();
    kernels.sort_unstable();
    kernels.dedup();
    kernels
}

/// The mean over all traces of all guests. Each score is a guest's mean over its own traces.
pub(super) fn mean(guests: &[Guest], scores: &[Score]) -> Score {
    let traces = |guest: &Guest| f64::from(u32::try_from(guest.traces()).unwrap_or(u32::MAX));
    let all: f64 = guests.iter().map(traces).sum();
    let mean = |figure: fn(&Score) -> f64| {
        let sum = guests.iter().zip(scores).map(|(guest, score)| traces(guest) * figure(score));
        sum.sum::<f64>() / all.max(1.0)
    };
    Score {
        faults: mean(|score| score.faults),
        waste: mean(|score| score.waste),
        coverage: mean(|score| score.coverage),
        accuracy: mean(|score| score.accuracy),
    }
}
