//! The background fill: requests every frame, frames that are more likely to be used first.

use super::super::options::FreeFrames;
use super::state::CloneState;
use crate::addr::FrameIndex;
use crate::prefetch::Position;
use std::time::Duration;

/// Reciprocal of the largest burst of a throttled fill, in seconds: a tenth of a second's pages may
/// accumulate while faults and prefetches use the connection.
const BURSTS_PER_SECOND: u32 = 10;

/// A pass over all frames, which requests those of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pass {
    /// Frames with signs of recent use.
    Hot,
    /// All other frames that are not free.
    Used,
    /// Free frames, for clones that fetch them.
    Free,
    /// All passes are over.
    Done,
}

impl Pass {
    fn next(self) -> Self {
        match self {
            Self::Hot => Self::Used,
            Self::Used => Self::Free,
            Self::Free | Self::Done => Self::Done,
        }
    }
}

/// Visits all frames in locality order, so that related frames are requested together.
#[derive(Debug)]
pub(super) struct BackgroundFill {
    pass: Pass,
    next: Position,
    throttle: Option<Throttle>,
}

/// A token bucket, in pages.
#[derive(Debug)]
struct Throttle {
    pages_per_second: u32,
    /// When tokens were last added.
    filled_at: Option<Duration>,
    tokens: f64,
}

impl Throttle {
    /// Adds the tokens since the last call; returns how many pages may be requested now.
    fn allowed(&mut self, now: Duration) -> usize {
        let rate = f64::from(self.pages_per_second);
        let since = now.saturating_sub(self.filled_at.unwrap_or(now));
        self.filled_at = Some(now);
        self.tokens = (self.tokens + since.as_secs_f64() * rate)
            .min((rate / f64::from(BURSTS_PER_SECOND)).max(1.0));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 2^32"
        )]
        let whole = self.tokens.max(0.0) as usize;
        whole
    }

    fn consume(&mut self, pages: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a batch")]
        let pages = pages as f64;
        self.tokens -= pages;
    }
}

impl BackgroundFill {
    /// A fill at the given rate in pages per second; `None` for as fast as the source delivers.
    pub(super) fn new(pages_per_second: Option<u32>) -> Self {
        let throttle = pages_per_second.map(|pages_per_second| Throttle {
            pages_per_second,
            filled_at: None,
            tokens: 0.0,
        });
        Self { pass: Pass::Hot, next: 0, throttle }
    }

    /// Moves absent frames to requested and writes them to `batch`; returns their number.
    pub(super) fn next(&mut self, batch: &mut [FrameIndex], clone: &CloneState) -> usize {
        let allowed = match &mut self.throttle {
            None => batch.len(),
            Some(throttle) => throttle.allowed(clone.clock.now()).min(batch.len()),
        };
        let mut n = 0;
        while n < allowed && self.pass != Pass::Done {
            let Some(frame) = clone.locality.at(self.next) else {
                self.pass = self.pass.next();
                if self.pass == Pass::Free && clone.options.free_frames == FreeFrames::Zero {
                    self.pass = Pass::Done;
                }
                self.next = 0;
                continue;
            };
            self.next += 1;
            let is_free = clone.locality.is_free(frame);
            let is_its_turn = match self.pass {
                Pass::Hot => !is_free && clone.locality.is_hot(frame),
                Pass::Used => !is_free,
                Pass::Free => is_free,
                Pass::Done => false,
            };
            if is_its_turn
                && clone.frames.request_fill(frame)
                && let Some(slot) = batch.get_mut(n)
            {
                *slot = frame;
                n += 1;
            }
        }
        if let Some(throttle) = &mut self.throttle {
            throttle.consume(n);
        }
        n
    }

    /// Whether every pass is over.
    pub(super) fn is_done(&self) -> bool {
        self.pass == Pass::Done
    }

    /// Starts over, for frames that were dropped since they were filled.
    pub(super) fn restart(&mut self) {
        self.pass = Pass::Used;
        self.next = 0;
    }

    /// Time until a throttled fill may go on; `None` when the fill need not wait, or is over.
    pub(super) fn next_in(&self, now: Duration) -> Option<Duration> {
        let throttle = self.throttle.as_ref().filter(|_| !self.is_done())?;
        let rate = f64::from(throttle.pages_per_second);
        if rate <= 0.0 {
            return None;
        }
        let since = now.saturating_sub(throttle.filled_at.unwrap_or(now)).as_secs_f64();
        let missing = 1.0 - throttle.tokens - since * rate;
        Some(Duration::from_secs_f64((missing / rate).clamp(1e-4, 1.0)))
    }
}
