//! A clone's network, which comes up under a new address.

use super::{CloneHook, Guest, HookError};
use crate::clone::CloneId;

/// A clone's network as its VMM has it, and how the guest is told its address: by an agent, a
/// console, a management interface.
pub trait Network: Send + Sync {
    /// Cuts a clone off: no packet of it passes, in or out; its guest finds the cable pulled. The
    /// clone has not run.
    ///
    /// # Errors
    /// [`HookError`] when it may still be reached: the clone then never runs.
    fn disconnect(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError>;

    /// Has the guest, which runs, take on an address of its own; returns when it has, or fails
    /// within a bounded time.
    ///
    /// # Errors
    /// [`HookError`] when it has not: the clone then stays cut off.
    fn readdress(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError>;

    /// Connects a clone that has an address of its own.
    ///
    /// # Errors
    /// [`HookError`].
    fn connect(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError>;
}

/// Has a clone's network come up only under its new address: under its parent's, no packet ever
/// passes. Connections that the parent had die on the clone, and live on in the parent, whose
/// network nobody touches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewAddress<N>(pub N);

impl<N: Network> CloneHook for NewAddress<N> {
    fn before_resume(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError> {
        self.0.disconnect(clone, id)
    }

    fn after_resume(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError> {
        self.0.readdress(clone, id)?;
        self.0.connect(clone, id)
    }
}
