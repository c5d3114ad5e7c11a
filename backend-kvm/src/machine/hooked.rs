//! Freezes and resumes between hooks.

use super::{Machine, Snapshot};
use crate::error::{Asked, Error};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::clone::CloneId;
use kaleidoscope_core::clone::hooks::{Guest, HookError, Hooks};
use kvm_bindings::kvm_msi;

/// Base address of message-signaled interrupts (Intel SDM vol. 3, 11.11.1). The destination's local
/// APIC id goes into bits 12 to 19.
const MSI_BASE: u32 = 0xfee0_0000;

impl Guest for Machine {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), HookError> {
        Machine::read(self, gpa, buf).map_err(|e| HookError::caused_by("reading the guest", e))
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HookError> {
        Machine::write(self, gpa, bytes).map_err(|e| HookError::caused_by("writing the guest", e))
    }

    fn interrupt(&self, vcpu: u32, vector: u8) -> Result<(), HookError> {
        Machine::interrupt(self, vcpu, vector)
            .map_err(|e| HookError::caused_by("interrupting the guest", e))
    }
}

impl Machine {
    /// Sends a fixed interrupt to a vCPU. The guest handles it once it has interrupts enabled.
    ///
    /// # Errors
    /// [`Error`] when there is no such vCPU, or its local APIC is disabled.
    pub fn interrupt(&self, vcpu: u32, vector: u8) -> Result<(), Error> {
        let number = usize::try_from(vcpu).unwrap_or(usize::MAX);
        if number >= self.vcpus.len() || vcpu > 0xff {
            return Err(Error::input(format!("there is no vCPU {vcpu}")));
        }
        let message = kvm_msi {
            address_lo: MSI_BASE | vcpu << 12,
            data: vector.into(),
            ..kvm_msi::default()
        };
        match self.vm.signal_msi(message).asked("sending an interrupt")? {
            0 => Err(Error::state(format!("vCPU {vcpu} takes no interrupts"))),
            _ => Ok(()),
        }
    }

    /// As [`Machine::freeze`], with hooks called before and after.
    ///
    /// # Errors
    /// As for [`Machine::freeze`], and [`ErrorKind::Hook`](crate::ErrorKind::Hook).
    pub fn freeze_with(&self, hooks: &Hooks) -> Result<Snapshot, Error> {
        hooks.around_freeze(self, || self.freeze())
    }

    /// Resumes a clone under its own identity, with hooks called before and after. When a hook
    /// fails, the clone is left paused.
    ///
    /// # Errors
    /// As for [`Machine::resume`], and [`ErrorKind::Hook`](crate::ErrorKind::Hook).
    pub fn resume_as(&mut self, id: CloneId, hooks: &Hooks) -> Result<(), Error> {
        let resumed = hooks.around_resume(self, id, Machine::resume);
        if resumed.is_err() {
            // Pausing also fails when the guest itself has ended; it does not run then either.
            let _ = self.pause();
        }
        resumed
    }
}
