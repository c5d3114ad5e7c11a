//! What a machine is beside its memory.

mod cpu;
mod vm_state;

pub(crate) use cpu::{CpuState, registers};
pub(crate) use vm_state::{VmState, make_board};

use crate::error::KvmError;
use kaleidoscope_core::registers::VcpuRegisters;
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

/// First bytes of saved state: name and version.
const MAGIC: [u8; 8] = *b"KSKVM\0\0\x02";

/// Most bytes of saved state that are looked at: a vCPU takes some 10 KiB.
const MOST: usize = 64 << 20;

/// The state of a machine's vCPUs, interrupt controllers, timer, clock and devices at one instant.
/// Its RAM is elsewhere.
///
/// Goes into a clone's descriptor as opaque bytes. What the bytes say is checked by KVM when it is
/// loaded: a state that is wrong makes a guest that is wrong, and no more.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    pub(crate) vm_state: VmState,
    pub(crate) cpus: Vec<CpuState>,
    pub(crate) devices: Vec<u8>,
}

impl MachineState {
    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.cpus.len()
    }

    /// What [`Devices::save`](crate::machine::Devices::save) said: a clone's devices are made from
    /// it. The bytes are as trustworthy as where they come from.
    #[must_use]
    pub fn devices(&self) -> &[u8] {
        &self.devices
    }

    /// What the vCPUs' registers say of the guest's memory, for coloring it.
    #[must_use]
    pub fn registers(&self) -> Vec<VcpuRegisters> {
        self.cpus.iter().enumerate().map(|(cpu, state)| state.registers(cpu)).collect()
    }

    /// Loads the state into a VM that never ran.
    pub(crate) fn load<'v>(
        &self,
        vm: &VmFd,
        vcpus: impl Iterator<Item = impl std::ops::Deref<Target = VcpuFd> + 'v>,
    ) -> Result<(), KvmError> {
        self.vm_state.load(vm)?;
        vcpus.zip(&self.cpus).try_for_each(|(vcpu, state)| state.load(&vcpu))
    }

    /// The state as bytes.
    ///
    /// # Errors
    /// [`KvmError::State`] when there is no memory for them.
    pub fn to_bytes(&self) -> Result<Vec<u8>, KvmError> {
        let bytes = postcard::to_extend(self, MAGIC.to_vec());
        bytes.map_err(|error| KvmError::State(error.to_string()))
    }

    /// The state in these bytes.
    ///
    /// # Errors
    /// [`KvmError::State`] when they are of another version, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KvmError> {
        if bytes.len() > MOST {
            return Err(KvmError::State(format!("{} bytes, more than {MOST}", bytes.len())));
        }
        let rest = bytes.strip_prefix(&MAGIC);
        let rest = rest.ok_or_else(|| KvmError::State("of another version, or no state".into()))?;
        match postcard::take_from_bytes(rest) {
            Ok((state, [])) => Ok(state),
            Ok((_, surplus)) => Err(KvmError::State(format!("{} surplus bytes", surplus.len()))),
            Err(error) => Err(KvmError::State(error.to_string())),
        }
    }
}
