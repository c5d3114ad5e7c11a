//! The memory that a clone uses: its reservation on the host, and its resident frames by color, now
//! and over time.

use crate::alloc::{ByColor, Footprint, FootprintHistory, FootprintSample, Pressure, Reservation};
use crate::color::Color;
use parking_lot::Mutex;
// `std`'s atomics, because they synchronize nothing: loom need not explore their interleavings.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Maximum samples in the footprint history.
const MAX_SAMPLES: usize = 256;

/// Time between the first samples.
const FIRST_INTERVAL: Duration = Duration::from_millis(2);

/// A clone's accounts.
///
/// A frame is charged to the reservation when it is requested or zeroed. It is uncharged when it
/// leaves the clone's memory, or does not become resident. The thread that changes the frame's
/// state also updates the account.
#[derive(Debug)]
pub(super) struct Accounts {
    reservation: Option<Reservation>,
    footprint: Footprint,
    history: Mutex<FootprintHistory>,
    /// When the next sample is due, in nanoseconds on the engine's clock.
    due: AtomicU64,
    /// The host has asked the clone to free memory.
    reclaim_requested: AtomicBool,
}

impl Accounts {
    pub(super) fn new(reservation: Option<Reservation>) -> Self {
        Self {
            reservation,
            footprint: Footprint::new(),
            history: Mutex::new(FootprintHistory::new(MAX_SAMPLES, FIRST_INTERVAL)),
            due: AtomicU64::new(0),
            reclaim_requested: AtomicBool::new(false),
        }
    }

    pub(super) fn on_pressure(&self, callback: impl Fn(Pressure) + Send + Sync + 'static) {
        if let Some(reservation) = &self.reservation {
            reservation.on_pressure(Box::new(callback));
        }
    }

    /// Charges one frame that a fault needs. Always succeeds, even beyond the clone's limit.
    pub(super) fn take_for_fault(&self) {
        if let Some(reservation) = &self.reservation {
            reservation.take_for_fault(1);
        }
    }

    /// Charges up to `frames` frames for prefetching. Returns the number of frames charged.
    pub(super) fn take_for_prefetch(&self, frames: usize) -> usize {
        let Some(reservation) = &self.reservation else { return frames };
        let taken = reservation.take_for_prefetch(u32::try_from(frames).unwrap_or(u32::MAX));
        usize::try_from(taken).unwrap_or(frames)
    }

    /// Uncharges frames.
    pub(super) fn give_back(&self, frames: usize) {
        if let Some(reservation) = self.reservation.as_ref().filter(|_| frames > 0) {
            reservation.give_back(u32::try_from(frames).unwrap_or(u32::MAX));
        }
    }

    /// Asks the streaming thread to free memory.
    pub(super) fn request_reclaim(&self) {
        self.reclaim_requested.store(true, Ordering::Release);
    }

    /// Whether the clone still has to free memory. Clears the request.
    pub(super) fn take_reclaim_request(&self) -> bool {
        self.reclaim_requested.swap(false, Ordering::AcqRel) && self.is_under_pressure()
    }

    /// Whether the host's memory is under pressure.
    pub(super) fn is_under_pressure(&self) -> bool {
        self.reservation
            .as_ref()
            .is_some_and(|reservation| reservation.pressure() >= Pressure::Reclaim)
    }

    /// A frame became resident.
    pub(super) fn add_resident(&self, color: Color) {
        self.footprint.add(color, 1);
    }

    /// A resident frame left the clone's memory: uncharges it, too.
    pub(super) fn remove_resident(&self, color: Color) {
        self.footprint.remove(color, 1);
        self.give_back(1);
    }

    pub(super) fn footprint(&self) -> ByColor {
        self.footprint.now()
    }

    /// Takes a sample if one is due.
    pub(super) fn sample(&self, now: Duration) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if nanos(now) < self.due.load(Ordering::Relaxed) {
            return;
        }
        if let Some(mut history) = self.history.try_lock() {
            history.record(now, self.footprint.now());
            self.due.store(nanos(history.due()), Ordering::Relaxed);
        }
    }

    /// The samples, and one for `now`.
    pub(super) fn history(&self, now: Duration) -> Vec<FootprintSample> {
        let mut history = self.history.lock();
        history.record(now, self.footprint.now());
        history.samples().collect()
    }
}
