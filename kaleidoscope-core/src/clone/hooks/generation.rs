//! The VM generation id.

use super::{CloneHook, Guest, HookError};
use crate::addr::Gpa;
use crate::clone::CloneId;

/// An interrupt that tells a guest of something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notice {
    /// The vCPU that is interrupted.
    pub vcpu: u32,
    /// The vector, which the guest has for this.
    pub vector: u8,
}

/// Changes the VM generation id, from which guests know that they were cloned: their random numbers
/// and unique ids must be new.
///
/// The id is the clone's: 16 bytes at an address that is a multiple of 8, where the guest's
/// firmware says that it is ("Virtual Machine Generation ID", Microsoft, 2012). It is there before
/// the clone runs; the notice comes when it runs. How a guest is told is its firmware's choice:
/// with ACPI it is an event, which the VMM's device raises; any other interrupt is given here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GenerationId {
    /// Where the id is.
    pub gpa: Gpa,
    /// How the guest is told; `None` for guests that look.
    pub notice: Option<Notice>,
}

impl CloneHook for GenerationId {
    fn before_resume(&self, clone: &dyn Guest, id: CloneId) -> Result<(), HookError> {
        if !self.gpa.0.is_multiple_of(8) {
            return Err(HookError::new(format!("no generation id can be at {}", self.gpa)));
        }
        clone.write(self.gpa, &id.0)
    }

    fn after_resume(&self, clone: &dyn Guest, _id: CloneId) -> Result<(), HookError> {
        self.notice.map_or(Ok(()), |notice| clone.interrupt(notice.vcpu, notice.vector))
    }
}
