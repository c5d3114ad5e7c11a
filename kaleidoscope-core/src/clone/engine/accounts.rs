//! What a clone's memory takes: its share of the host, and what it holds, by color, now and over
//! time.

use crate::alloc::{ByColor, Footprint, FootprintHistory, FootprintSample, Pressure, Reservation};
use crate::color::Color;
use parking_lot::Mutex;
// Nothing is synchronized through these: a model checker need not try their interleavings.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Samples of the footprint over time.
const MAX_SAMPLES: usize = 256;

/// Time between them at first.
const FIRST_INTERVAL: Duration = Duration::from_millis(2);

/// A clone's accounts.
///
/// A frame is taken from the reservation when it is asked for, or filled, and given back when it
/// leaves the clone's memory, or never gets there. Whoever changes its state keeps the account.
#[derive(Debug)]
pub(super) struct Accounts {
    reservation: Option<Reservation>,
    footprint: Footprint,
    history: Mutex<FootprintHistory>,
    /// When the next sample is wanted, in nanoseconds.
    due: AtomicU64,
    /// The clone is to give memory back.
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

    /// A frame is needed now.
    pub(super) fn take_for_fault(&self) {
        if let Some(reservation) = &self.reservation {
            reservation.take_for_fault(1);
        }
    }

    /// Up to `frames` would be good to have; returns how many may be.
    pub(super) fn take_for_prefetch(&self, frames: usize) -> usize {
        let Some(reservation) = &self.reservation else { return frames };
        let taken = reservation.take_for_prefetch(u32::try_from(frames).unwrap_or(u32::MAX));
        usize::try_from(taken).unwrap_or(frames)
    }

    /// So many frames are not needed any more.
    pub(super) fn give_back(&self, frames: usize) {
        if let Some(reservation) = self.reservation.as_ref().filter(|_| frames > 0) {
            reservation.give_back(u32::try_from(frames).unwrap_or(u32::MAX));
        }
    }

    /// The clone is to give memory back.
    pub(super) fn request_reclaim(&self) {
        self.reclaim_requested.store(true, Ordering::Release);
    }

    /// Whether the clone is to give memory back; asked once for each time.
    pub(super) fn take_reclaim_request(&self) -> bool {
        self.reclaim_requested.swap(false, Ordering::AcqRel) && self.is_under_pressure()
    }

    /// Whether giving back still helps.
    pub(super) fn is_under_pressure(&self) -> bool {
        self.reservation
            .as_ref()
            .is_some_and(|reservation| reservation.pressure() >= Pressure::Reclaim)
    }

    /// A frame entered the clone's memory.
    pub(super) fn add_resident(&self, color: Color) {
        self.footprint.add(color, 1);
    }

    /// A frame left the clone's memory.
    pub(super) fn remove_resident(&self, color: Color) {
        self.footprint.remove(color, 1);
        self.give_back(1);
    }

    pub(super) fn footprint(&self) -> ByColor {
        self.footprint.now()
    }

    /// Takes a sample when one is wanted.
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

    /// The samples, with one of now.
    pub(super) fn history(&self, now: Duration) -> Vec<FootprintSample> {
        let mut history = self.history.lock();
        history.record(now, self.footprint.now());
        history.samples().collect()
    }
}
