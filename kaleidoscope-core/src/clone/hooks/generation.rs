//! The VM generation id.

use super::{CloneHook, Guest, HookError};
use crate::addr::Gpa;
use crate::clone::CloneId;

/// An interrupt that notifies a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notice {
    /// The vCPU to interrupt.
    pub vcpu: u32,
    /// The vector, which the guest has set up for this.
    pub vector: u8,
}

/// Changes the VM generation id, by which guests detect that they were cloned and must renew random
/// numbers and unique ids.
///
/// The new id is the clone's: 16 bytes at an address that is a multiple of 8, as announced by the
/// guest's firmware ("Virtual Machine Generation ID", Microsoft, 2012). It is written before the
/// clone runs; the notification follows when it runs. The firmware defines the notification: with
/// ACPI it is an event that the VMM's device raises; any other interrupt is configured here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GenerationId {
    /// Guest-physical address of the id.
    pub gpa: Gpa,
    /// The notification; `None` for guests that poll the id.
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
