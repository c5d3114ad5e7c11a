//! Hooks around a freeze and around a clone's start, which give each clone its own identity.
//!
//! A clone starts with its parent's state: its address, its random number generators, its requests
//! in flight. Hooks change that. They run at four points, in the order in which they are given:
//!
//! ```text
//!  parent:  before_freeze ─► (freeze, snapshot, continue) ─► after_freeze
//!  clone:   (is created) ─► before_resume ─► (runs) ─► after_resume
//! ```
//!
//! State that the clone's guest needs from its first instruction on belongs in `before_resume`.
//! Interrupts and actions outside the guest belong in `after_resume`. A network is disconnected
//! before and connected after ([`NewAddress`]). Requests in flight belong to the parent: a VMM's
//! devices start empty in a clone, unless a hook transfers them.

mod command;
mod generation;
mod identity;
mod network;

pub use command::Reconfigure;
pub use generation::{GenerationId, Notice};
pub use identity::IdentityInMemory;
pub use network::{Network, NewAddress};

use super::CloneId;
use crate::addr::Gpa;
use crate::service::{Panicked, contained};
use std::error::Error;
use std::sync::Arc;
use thiserror::Error;

/// Why a hook failed.
#[derive(Debug, Error)]
#[error("{reason}")]
pub struct HookError {
    reason: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl HookError {
    /// A failure with a description.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), source: None }
    }

    /// A failure with the error that caused it.
    #[must_use]
    pub fn caused_by(
        reason: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        Self { reason: format!("{}: {source}", reason.into()), source: Some(source) }
    }
}

/// A machine as hooks can access it.
pub trait Guest {
    /// Copies bytes of its memory. A running guest may write them at the same time.
    ///
    /// # Errors
    /// [`HookError`] if the range is not RAM.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), HookError>;

    /// Overwrites bytes of its memory.
    ///
    /// # Errors
    /// [`HookError`] if the range is not RAM.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HookError>;

    /// Interrupts one of its vCPUs, with a vector that the guest has set up for this.
    ///
    /// # Errors
    /// [`HookError`] if there is no such vCPU, or if it accepts no interrupts.
    fn interrupt(&self, vcpu: u32, vector: u8) -> Result<(), HookError>;
}

/// An action around freezes and starts of clones. One hook serves any number of them, also
/// concurrently. A panic in a hook counts as an error of that hook.
pub trait CloneHook: Send + Sync {
    /// Called while the parent runs, before it is frozen. An error prevents the freeze.
    ///
    /// # Errors
    /// [`HookError`] if the hook fails; the same applies to all hooks.
    fn before_freeze(&self, parent: &dyn Guest) -> Result<(), HookError> {
        let _ = parent;
        Ok(())
    }

    /// Called when the parent runs again after the freeze. Called for every hook whose
    /// `before_freeze` was called, even if the freeze failed.
    ///
    /// # Errors
    /// [`HookError`].
    fn after_freeze(&self, parent: &dyn Guest) -> Result<(), HookError> {
        let _ = parent;
        Ok(())
    }

    /// Called when a clone is created and has not run. An error prevents the clone from running.
    ///
    /// # Errors
    /// [`HookError`].
    fn before_resume(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError> {
        let _ = (clone, id);
        Ok(())
    }

    /// Called when a clone runs.
    ///
    /// # Errors
    /// [`HookError`].
    fn after_resume(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError> {
        let _ = (clone, id);
        Ok(())
    }
}

/// A list of hooks, in the order in which they are called.
#[derive(Clone, Default)]
pub struct Hooks(Vec<Arc<dyn CloneHook>>);

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hooks").field(&self.0.len()).finish()
    }
}

impl Hooks {
    /// No hooks.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Appends a hook.
    #[must_use]
    pub fn and(mut self, hook: impl CloneHook + 'static) -> Self {
        self.0.push(Arc::new(hook));
        self
    }

    /// Freezes a parent between its hooks. If a hook fails, the parent is not frozen, or its
    /// snapshot is dropped. Every hook that was called before is called after.
    ///
    /// # Errors
    /// The first failure, of a hook or of `freeze`.
    pub fn around_freeze<T, E: From<HookError>>(
        &self,
        parent: &dyn Guest,
        freeze: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut called = 0;
        let before = self.0.iter().try_for_each(|hook| {
            called += 1;
            call_hook(|| hook.before_freeze(parent))
        });
        // If the freeze panics, the hooks are still called after it.
        let snapshot = before.and_then(|()| Ok(contained("a freeze", freeze)?));
        let mut after = Ok(());
        // In reverse order, as scopes end.
        for hook in self.0.iter().take(called).rev() {
            after = after.and(call_hook(|| hook.after_freeze(parent)));
        }
        let snapshot = snapshot??;
        after?;
        Ok(snapshot)
    }

    /// Starts a clone between its hooks.
    ///
    /// # Errors
    /// The first failure, of a hook or of `resume`. If a hook after the start fails, the clone is
    /// already running, and the caller must stop it.
    pub fn around_resume<G: Guest, E: From<HookError>>(
        &self,
        clone: &mut G,
        id: CloneId,
        resume: impl FnOnce(&mut G) -> Result<(), E>,
    ) -> Result<(), E> {
        self.0.iter().try_for_each(|hook| call_hook(|| hook.before_resume(clone, id)))?;
        contained("a start", || resume(clone)).map_err(HookError::from)??;
        Ok(self.0.iter().try_for_each(|hook| call_hook(|| hook.after_resume(clone, id)))?)
    }
}

/// Calls a hook, and converts a panic to an error.
fn call_hook(hook: impl FnOnce() -> Result<(), HookError>) -> Result<(), HookError> {
    contained("a hook", hook).unwrap_or_else(|panicked| Err(panicked.into()))
}

impl From<Panicked> for HookError {
    fn from(panicked: Panicked) -> Self {
        Self { reason: panicked.to_string(), source: None }
    }
}

#[cfg(test)]
mod tests;
