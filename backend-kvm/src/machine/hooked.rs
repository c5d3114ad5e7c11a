//! Freezes and starts with hooks around them.

use super::{Machine, Snapshot};
use crate::error::{Asked, KvmError};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::clone::CloneId;
use kaleidoscope_core::clone::hooks::{Guest, HookError, Hooks};
use kvm_bindings::kvm_msi;

/// Where messages that are interrupts are sent (Intel SDM vol. 3, 11.11.1); the local interrupt
/// controller's number goes into bits 12 to 19.
const MESSAGES: u32 = 0xfee0_0000;

impl Guest for Machine {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), HookError> {
        Machine::read(self, gpa, buf).map_err(|e| HookError::caused_by("reading the guest", e))
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HookError> {
        Machine::write(self, gpa, bytes).map_err(|e| HookError::caused_by("telling the guest", e))
    }

    fn interrupt(&self, vcpu: u32, vector: u8) -> Result<(), HookError> {
        Machine::interrupt(self, vcpu, vector)
            .map_err(|e| HookError::caused_by("interrupting the guest", e))
    }
}

impl Machine {
    /// Interrupts a vCPU. The guest gets to it when it takes interrupts.
    ///
    /// # Errors
    /// [`KvmError`] when there is no such vCPU, or its interrupt controller is off.
    pub fn interrupt(&self, vcpu: u32, vector: u8) -> Result<(), KvmError> {
        let number = usize::try_from(vcpu).unwrap_or(usize::MAX);
        if number >= self.vcpus.len() || vcpu > 0xff {
            return Err(KvmError::State(format!("there is no vCPU {vcpu}")));
        }
        let message = kvm_msi {
            address_lo: MESSAGES | vcpu << 12,
            data: vector.into(),
            ..kvm_msi::default()
        };
        match self.vm.signal_msi(message).asked("sending an interrupt")? {
            0 => Err(KvmError::State(format!("vCPU {vcpu} takes no interrupts"))),
            _ => Ok(()),
        }
    }

    /// As [`Machine::freeze`], between hooks.
    ///
    /// # Errors
    /// As for [`Machine::freeze`], and [`KvmError::Hook`].
    pub fn freeze_with(&self, hooks: &Hooks) -> Result<Snapshot, KvmError> {
        hooks.around_freeze(self, || self.freeze())
    }

    /// Starts a clone under an identity of its own, between hooks. When one fails the clone does
    /// not run.
    ///
    /// # Errors
    /// As for [`Machine::resume`], and [`KvmError::Hook`].
    pub fn resume_as(&mut self, id: CloneId, hooks: &Hooks) -> Result<(), KvmError> {
        let resumed = hooks.around_resume(self, id, Machine::resume);
        if resumed.is_err() {
            // Also when its guest is what failed: then it does not run anyway.
            let _ = self.pause();
        }
        resumed
    }
}
