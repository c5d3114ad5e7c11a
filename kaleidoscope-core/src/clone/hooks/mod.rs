//! What makes a clone a machine of its own: hooks around a freeze and a clone's start.
//!
//! A clone wakes up believing that it is its parent: it has the parent's address, its random
//! numbers, its half-finished requests. What tells it otherwise are hooks. They run at four
//! instants, in the order in which they are given:
//!
//! ```text
//!  parent:  before_freeze ─► (stands still, is snapshot, goes on) ─► after_freeze
//!  clone:   (is made) ─► before_resume ─► (runs) ─► after_resume
//! ```
//!
//! What a clone's guest must find from its first instruction on belongs before its start; what it
//! has to be told by an interrupt, and what happens outside, after it; a network is cut before and
//! connected after ([`NewAddress`]). Requests in flight are the parent's: a VMM's devices begin
//! empty in a clone, unless a hook carries them over.

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
    /// A failure, in words.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), source: None }
    }

    /// A failure that another one caused.
    #[must_use]
    pub fn caused_by(
        reason: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let source = source.into();
        Self { reason: format!("{}: {source}", reason.into()), source: Some(source) }
    }
}

/// A machine, as hooks may touch it.
pub trait Guest {
    /// Copies bytes of its memory, which it may be writing if it runs.
    ///
    /// # Errors
    /// [`HookError`] when the range is not RAM.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), HookError>;

    /// Overwrites bytes of its memory.
    ///
    /// # Errors
    /// [`HookError`] when the range is not RAM.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HookError>;

    /// Interrupts one of its vCPUs, with a vector that the guest has for this.
    ///
    /// # Errors
    /// [`HookError`] when there is no such vCPU, or it takes no interrupts.
    fn interrupt(&self, vcpu: u32, vector: u8) -> Result<(), HookError>;
}

/// Does something around freezes and starts of clones. One hook serves any number of them, also at
/// once. A panic of one is an error of it.
pub trait CloneHook: Send + Sync {
    /// The parent runs, and is about to be snapshot. An error prevents it.
    ///
    /// # Errors
    /// [`HookError`], as for all of these.
    fn before_freeze(&self, parent: &dyn Guest) -> Result<(), HookError> {
        let _ = parent;
        Ok(())
    }

    /// The parent was snapshot, and runs again. Called for every hook whose `before_freeze` was,
    /// also when freezing failed.
    ///
    /// # Errors
    /// [`HookError`].
    fn after_freeze(&self, parent: &dyn Guest) -> Result<(), HookError> {
        let _ = parent;
        Ok(())
    }

    /// A clone is made, and has not run. An error prevents that it ever does.
    ///
    /// # Errors
    /// [`HookError`].
    fn before_resume(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError> {
        let _ = (clone, id);
        Ok(())
    }

    /// A clone runs.
    ///
    /// # Errors
    /// [`HookError`].
    fn after_resume(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError> {
        let _ = (clone, id);
        Ok(())
    }
}

/// Hooks, in the order in which they are called.
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

    /// These, and one more.
    #[must_use]
    pub fn and(mut self, hook: impl CloneHook + 'static) -> Self {
        self.0.push(Arc::new(hook));
        self
    }

    /// Freezes a parent between its hooks. When one of them fails the parent is not snapshot, or
    /// what was snapshot is dropped; each that was called before is called after.
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
            whole(|| hook.before_freeze(parent))
        });
        // Should freezing panic, the hooks are called after it nevertheless.
        let snapshot = before.and_then(|()| Ok(contained("a freeze", freeze)?));
        let mut after = Ok(());
        // The last one first, as scopes end.
        for hook in self.0.iter().take(called).rev() {
            after = after.and(whole(|| hook.after_freeze(parent)));
        }
        let snapshot = snapshot??;
        after?;
        Ok(snapshot)
    }

    /// Starts a clone between its hooks.
    ///
    /// # Errors
    /// The first failure, of a hook or of `resume`. The clone may run then, if a hook failed that
    /// is called after its start: it is the caller's to stop.
    pub fn around_resume<G: Guest, E: From<HookError>>(
        &self,
        clone: &mut G,
        id: CloneId,
        resume: impl FnOnce(&mut G) -> Result<(), E>,
    ) -> Result<(), E> {
        self.0.iter().try_for_each(|hook| whole(|| hook.before_resume(clone, id)))?;
        contained("a start", || resume(clone)).map_err(HookError::from)??;
        Ok(self.0.iter().try_for_each(|hook| whole(|| hook.after_resume(clone, id)))?)
    }
}

/// Calls a hook; its panic is a failure.
fn whole(hook: impl FnOnce() -> Result<(), HookError>) -> Result<(), HookError> {
    contained("a hook", hook).unwrap_or_else(|panicked| Err(panicked.into()))
}

impl From<Panicked> for HookError {
    fn from(panicked: Panicked) -> Self {
        Self { reason: panicked.to_string(), source: None }
    }
}

#[cfg(test)]
mod tests;
