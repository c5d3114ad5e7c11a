//! One host's memory for clones.

use super::account::Account;
use super::deliveries::Deliveries;
use super::pressure::{Marks, Pressure};
use super::{CHUNK_FRAMES, CloneLimits, HostLimits, Reservation};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use thiserror::Error;

/// Why a clone is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "no new clone: {clones} clones hold {granted} of the {frames} frames that this host has for them, and from {refused_from} on new ones are refused"
)]
pub struct Refused {
    /// Frames that clones hold.
    pub granted: u64,
    /// Frames that the host has for clones.
    pub frames: u64,
    /// From how many granted frames on clones are refused.
    pub refused_from: u64,
    /// Clones that there are.
    pub clones: usize,
}

/// A host's accounts at an instant. All amounts are in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostStatistics {
    /// Clones that hold a reservation.
    pub clones: usize,
    /// Clones that were refused so far.
    pub refused: u64,
    /// Frames that clones hold, whole chunks.
    pub granted: u64,
    /// Frames that clones use.
    pub used: u64,
    /// Most frames that clones held at once.
    pub peak: u64,
    /// Frames that clones hold beyond the limit, because of faults.
    pub overdraft: u64,
    /// How scarce memory is.
    pub pressure: Pressure,
}

/// One host's memory for clones: gives chunks to reservations and says how scarce it is.
#[derive(Debug)]
pub struct Host {
    limits: HostLimits,
    marks: Marks,
    state: Mutex<State>,
    /// The state's, to be read without its lock.
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
        // A mark at 0 holds from the start.
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

    /// Admits a clone. It holds nothing yet.
    ///
    /// # Errors
    /// [`Refused`] under the highest pressure.
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

    /// How scarce memory is. One atomic load.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        Pressure::from_u8(self.level.load(Ordering::Acquire))
    }

    /// Frames that clones hold: a multiple of [`CHUNK_FRAMES`].
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.granted.load(Ordering::Acquire)
    }

    /// Frames that clones hold beyond the limit, because of faults.
    #[must_use]
    pub fn overdraft(&self) -> u64 {
        self.granted().saturating_sub(self.limits.frames)
    }

    /// Frames that clones use. Asks every clone's account.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// All accounts.
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

    /// Gives chunks, beyond the limit if need be.
    pub(super) fn draw_for_fault(&self, chunks: u64) {
        let changed = self.book(|state| {
            state.granted = state.granted.saturating_add(chunks.saturating_mul(CHUNK_FRAMES));
        });
        self.settle_if(changed);
    }

    /// Gives up to this many chunks; returns how many.
    pub(super) fn draw_for_prefetch(&self, chunks: u64) -> u64 {
        let most = self.limits.frames.saturating_sub(self.limits.reserve);
        let mut given = 0;
        let changed = self.book(|state| {
            if state.level == Pressure::None {
                given = (most.saturating_sub(state.granted) / CHUNK_FRAMES).min(chunks);
                state.granted += given * CHUNK_FRAMES;
            }
        });
        self.settle_if(changed);
        given
    }

    /// Takes chunks back.
    pub(super) fn put_back(&self, frames: u64) {
        if frames > 0 {
            let changed = self.book(|state| state.granted = state.granted.saturating_sub(frames));
            self.settle_if(changed);
        }
    }

    /// A clone ends; takes back what it held.
    pub(super) fn close(&self, account: &Account) {
        let mut closed = None;
        let changed = self.book(|state| {
            let mut frames = 0;
            account.balance.change(|balance| {
                frames = balance.granted();
                Some(super::balance::Balance { chunks: 0, used: 0 })
            });
            state.granted = state.granted.saturating_sub(frames);
            closed = state.accounts.remove(&account.serial);
        });
        drop(closed);
        self.settle_if(changed);
    }

    /// Changes the accounts; returns whether the level changed.
    fn book(&self, change: impl FnOnce(&mut State)) -> bool {
        let mut state = self.state.lock();
        change(&mut state);
        state.peak = state.peak.max(state.granted);
        let before = state.level;
        state.level = self.marks.level(before, state.granted);
        self.granted.store(state.granted, Ordering::Release);
        self.level.store(state.level as u8, Ordering::Release);
        state.level != before
    }

    /// The host's level is another one: gives every clone its new level, takes spare chunks back
    /// when they are wanted, and tells the clones. Call it without a lock.
    fn settle_if(&self, changed: bool) {
        let mut is_settled = !changed;
        while !is_settled {
            let accounts: Vec<_> = self.state.lock().accounts.values().cloned().collect();
            for account in &accounts {
                self.refresh(account);
            }
            let mut surplus = 0;
            if self.pressure() >= Pressure::Reclaim {
                surplus = accounts.iter().map(|account| account.take_surplus(0)).sum();
            }
            let give = |state: &mut State| state.granted = state.granted.saturating_sub(surplus);
            is_settled = surplus == 0 || !self.book(give);
        }
        self.deliveries.run();
    }

    /// Computes a clone's level anew, and notes that it is to be told.
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
