//! A clone's network, which is connected under a new address.

use super::{CloneHook, Guest, HookError};
use crate::clone::CloneId;

/// The network of a clone in its VMM, and the way to change the guest's address: an agent, a
/// console, a management interface.
pub trait Network: Send + Sync {
    /// Disconnects a clone that has not run: no packet passes in either direction, and the guest
    /// sees the link down.
    ///
    /// # Errors
    /// [`HookError`] if the clone may still be reachable. The clone then never runs.
    fn disconnect(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError>;

    /// Changes the address of the running guest. Returns once the guest uses the new address, or
    /// fails within a bounded time.
    ///
    /// # Errors
    /// [`HookError`] if the address did not change. The clone then stays disconnected.
    fn readdress(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError>;

    /// Connects a clone that has its own address.
    ///
    /// # Errors
    /// [`HookError`] if connecting fails.
    fn connect(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError>;
}

/// Connects a clone's network only under its new address; no packet passes under its parent's
/// address. The parent's connections break in the clone and continue in the parent, whose network
/// is not changed.
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
