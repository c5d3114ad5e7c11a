//! Stores the clone's id where its guest can read it.

use super::{CloneHook, Guest, HookError};
use crate::addr::Gpa;
use crate::clone::CloneId;

/// Writes the clone's id (16 bytes) to an address that the guest has reserved for it, before the
/// clone runs. The parent's memory stays as it is, for example zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdentityInMemory {
    /// Guest-physical address of the id.
    pub gpa: Gpa,
}

impl CloneHook for IdentityInMemory {
    fn before_resume(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError> {
        clone.write(self.gpa, &id.0)
    }
}
