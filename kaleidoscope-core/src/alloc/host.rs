//! A host's memory for its clones.

use super::account::Account;
use super::deliveries::Deliveries;
use super::pressure::{Marks, Pressure};
use super::{CHUNK_FRAMES, CloneLimits, HostLimits, Reservation};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use thiserror::Error;

/// The host admits no clone because its pressure is [`Pressure::RefuseClones`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "no new clone: {clones} clones hold {granted} of the {frames} frames that this host has for \
     them, and from {refused_from} on new ones are refused"
)]
pub struct Refused {
    /// Frames granted to clones.
    pub granted: u64,
    /// The host's limit, in frames.
    pub frames: u64,
    /// Number of granted frames from which clones are refused.
    pub refused_from: u64,
    /// Number of clones.
    pub clones: usize,
}

/// A snapshot of a host's accounts. All amounts are in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostStatistics {
    /// Clones that hold a reservation.
    pub clones: usize,
    /// Clones refused so far.
    pub refused: u64,
    /// Frames granted to clones, in whole chunks.
    pub granted: u64,
    /// Frames that clones use.
    pub used: u64,
    /// Maximum of `granted` so far.
    pub peak: u64,
    /// Granted frames beyond the limit, because of faults.
    pub overdraft: u64,
    /// The pressure.
    pub pressure: Pressure,
}

/// A host's memory for clones: grants chunks to reservations and computes the pressure.
#[derive(Debug)]
pub struct Host {
    limits: HostLimits,
    marks: Marks,
    state: Mutex<State>,
    /// Copy of `state.granted` for reads without the lock; `level` likewise.
    granted: AtomicU64,
    level: AtomicU8,
    pub(super) deliveries: Deliveries,
}

#[derive(Debug, Default)]
struct State {
    granted: u64,
    peak: u64,
    level: Pressure,
    accounts: HashMap<u64, Arc<Account>>,
    next_serial: u64,
    refused: u64,
}

impl Host {
    /// A host without clones.
    #[must_use]
    pub fn new(limits: HostLimits) -> Arc<Self> {
        let marks = limits.marks();
        // A mark at 0 is reached from the start.
        let level = marks.level(Pressure::None, 0);
        Arc::new(Self {
            limits,
            marks,
            state: Mutex::new(State { level, ..State::default() }),
            granted: AtomicU64::new(0),
            level: AtomicU8::new(level as u8),
            deliveries: Deliveries::default(),
        })
    }

    /// Admits a clone, whose reservation starts empty.
    ///
    /// # Errors
    /// [`Refused`] at [`Pressure::RefuseClones`].
    pub fn admit(self: &Arc<Self>, limits: CloneLimits) -> Result<Reservation, Refused> {
        let mut state = self.state.lock();
        if state.level >= Pressure::RefuseClones {
            state.refused = state.refused.saturating_add(1);
            return Err(Refused {
                granted: state.granted,
                frames: self.limits.frames,
                refused_from: self.limits.refuse_clones_at,
                clones: state.accounts.len(),
            });
        }
        let serial = state.next_serial;
        state.next_serial = serial.wrapping_add(1);
        let account = Arc::new(Account::new(serial, limits));
        state.accounts.insert(serial, Arc::clone(&account));
        drop(state);
        account.refresh(|| self.pressure());
        Ok(Reservation::new(Arc::clone(self), account))
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> HostLimits {
        self.limits
    }

    /// The current pressure. One atomic load.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        Pressure::from_u8(self.level.load(Ordering::Acquire))
    }

    /// Frames that clones hold: a multiple of [`CHUNK_FRAMES`].
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.granted.load(Ordering::Acquire)
    }

    /// Granted frames beyond the limit, because of faults.
    #[must_use]
    pub fn overdraft(&self) -> u64 {
        self.granted().saturating_sub(self.limits.frames)
    }

    /// Frames that clones use: a sum over all accounts.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// The statistics.
    #[must_use]
    pub fn statistics(&self) -> HostStatistics {
        let state = self.state.lock();
        HostStatistics {
            clones: state.accounts.len(),
            refused: state.refused,
            granted: state.granted,
            used: state.used(),
            peak: state.peak,
            overdraft: state.granted.saturating_sub(self.limits.frames),
            pressure: state.level,
        }
    }

    /// Grants chunks, beyond the limit if necessary.
    pub(super) fn grant_for_fault(&self, chunks: u64) {
        let changed = self.update(|state| {
            state.granted = state.granted.saturating_add(chunks.saturating_mul(CHUNK_FRAMES));
        });
        self.propagate_if(changed);
    }

    /// Grants up to `chunks` chunks; returns how many.
    pub(super) fn grant_for_prefetch(&self, chunks: u64) -> u64 {
        let limit = self.limits.frames.saturating_sub(self.limits.reserve);
        let mut granted = 0;
        let changed = self.update(|state| {
            if state.level == Pressure::None {
                granted = (limit.saturating_sub(state.granted) / CHUNK_FRAMES).min(chunks);
                state.granted += granted * CHUNK_FRAMES;
            }
        });
        self.propagate_if(changed);
        granted
    }

    /// Takes back frames of whole chunks.
    pub(super) fn return_frames(&self, frames: u64) {
        if frames > 0 {
            let changed = self.update(|state| state.granted = state.granted.saturating_sub(frames));
            self.propagate_if(changed);
        }
    }

    /// Removes a clone and takes back its chunks.
    pub(super) fn close(&self, account: &Account) {
        let mut closed = None;
        let changed = self.update(|state| {
            let mut frames = 0;
            account.balance.change(|balance| {
                frames = balance.granted();
                Some(super::balance::Balance { chunks: 0, used: 0 })
            });
            state.granted = state.granted.saturating_sub(frames);
            closed = state.accounts.remove(&account.serial);
        });
        drop(closed);
        self.propagate_if(changed);
    }

    /// Changes the state; returns whether the level changed.
    fn update(&self, change: impl FnOnce(&mut State)) -> bool {
        let mut state = self.state.lock();
        change(&mut state);
        state.peak = state.peak.max(state.granted);
        let before = state.level;
        state.level = self.marks.level(before, state.granted);
        self.granted.store(state.granted, Ordering::Release);
        self.level.store(state.level as u8, Ordering::Release);
        state.level != before
    }

    /// After a change of the host's level: recomputes every clone's level, takes back spare chunks
    /// under [`Pressure::Reclaim`], and notifies the clones. Call it without a lock.
    fn propagate_if(&self, changed: bool) {
        let mut is_done = !changed;
        while !is_done {
            let accounts: Vec<_> = self.state.lock().accounts.values().cloned().collect();
            for account in &accounts {
                self.refresh(account);
            }
            let mut surplus = 0;
            if self.pressure() >= Pressure::Reclaim {
                surplus = accounts.iter().map(|account| account.take_surplus(0)).sum();
            }
            let take_back =
                |state: &mut State| state.granted = state.granted.saturating_sub(surplus);
            is_done = surplus == 0 || !self.update(take_back);
        }
        self.deliveries.run();
    }

    /// Recomputes a clone's level, and queues the clone if the level changed.
    pub(super) fn refresh(&self, account: &Arc<Account>) {
        if account.refresh(|| self.pressure()) {
            self.deliveries.push(account);
        }
    }
}

impl State {
    fn used(&self) -> u64 {
        self.accounts.values().map(|account| account.balance.get().used).sum()
    }
}
