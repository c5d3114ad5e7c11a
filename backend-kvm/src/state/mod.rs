//! State of a machine other than its memory.

mod cpu;
mod vm_state;

pub(crate) use cpu::{CpuState, registers};
pub(crate) use vm_state::{VmState, create_interrupt_chips};

use crate::error::{Error, ErrorKind};
use crate::sys::VcpuHandle;
use kaleidoscope_core::registers::VcpuRegisters;
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// First bytes of serialized state: name and version.
const MAGIC: [u8; 8] = *b"KSKVM\0\0\x02";

/// Maximum size in bytes of serialized state that is accepted. A vCPU takes some 10 KiB.
const MAX_BYTES: usize = 64 << 20;

/// State of a machine's vCPUs, interrupt controllers, timer, clock and devices at one instant; its
/// RAM is stored separately.
///
/// A clone's descriptor holds it as opaque bytes. KVM checks their contents when the state is
/// loaded; wrong state can only produce a misbehaving guest.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    pub(crate) vm_state: VmState,
    pub(crate) cpus: Vec<CpuState>,
    pub(crate) devices: Vec<u8>,
}

/// Saved state is not what it has to be.
fn damaged(why: impl std::fmt::Display) -> Error {
    Error::input(format!("saved machine state: {why}"))
}

impl MachineState {
    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.cpus.len()
    }

    /// The bytes that [`Devices::save`](crate::machine::Devices::save) returned, from which a
    /// clone's devices are made. They are as trustworthy as the source of this state.
    #[must_use]
    pub fn devices(&self) -> &[u8] {
        &self.devices
    }

    /// Each vCPU's registers that describe the guest's address space, for coloring its memory.
    #[must_use]
    pub fn registers(&self) -> Vec<VcpuRegisters> {
        self.cpus.iter().enumerate().map(|(cpu, state)| state.registers(cpu)).collect()
    }

    /// Loads the state into a VM that has never run.
    pub(crate) fn load<'v>(
        &self,
        vm: &VmFd,
        vcpus: impl Iterator<Item = impl std::ops::Deref<Target = VcpuHandle> + 'v>,
    ) -> Result<(), Error> {
        self.vm_state.load(vm)?;
        vcpus.zip(&self.cpus).try_for_each(|(vcpu, state)| state.load(&vcpu))
    }

    /// Serializes the state.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when memory is exhausted.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let bytes = postcard::to_extend(self, MAGIC.to_vec());
        bytes.map_err(|error| Error::caused_by(ErrorKind::Refused, "saving machine state", error))
    }

    /// Deserializes the state.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the bytes have another version, or are damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_BYTES {
            return Err(damaged(format!("{} bytes, more than {MAX_BYTES}", bytes.len())));
        }
        let rest = bytes.strip_prefix(&MAGIC);
        let rest = rest.ok_or_else(|| damaged("of another version, or not saved state"))?;
        match postcard::take_from_bytes(rest) {
            Ok((state, [])) => Ok(state),
            Ok((_, surplus)) => Err(damaged(format!("{} surplus bytes", surplus.len()))),
            Err(error) => Err(damaged(error)),
        }
    }
}
