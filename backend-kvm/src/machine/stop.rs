//! Work that is done while a machine is paused for a freeze.

use super::run_state::{RunState, Stopped};
use super::{Devices, Host};
use crate::error::Error;
use crate::memory::{GuestRam, Prepared};
use crate::state::{CpuState, MachineState, VmState};
use crate::sys::{VcpuHandle, VmHandle};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;

/// The parts of a machine that a freeze needs, owned by the thread that performs it.
pub(super) struct Stop {
    pub(super) host: Arc<Host>,
    pub(super) vm: Arc<VmHandle>,
    pub(super) vcpus: Vec<Arc<Mutex<VcpuHandle>>>,
    pub(super) devices: Arc<dyn Devices>,
    pub(super) ram: Arc<RwLock<GuestRam>>,
    pub(super) run_state: Arc<RunState>,
}

impl Stop {
    /// Saves all state except the RAM, then freezes the RAM. No vCPU may run.
    pub(super) fn freeze(&self, prepared: &mut Prepared) -> Result<MachineState, Error> {
        let state = self.save()?;
        let mut ram = self.ram.write();
        let snapshot = ram.freeze(prepared).inspect_err(|error| {
            if ram.is_lost() {
                self.run_state.end(Stopped::Ended(format!("its memory is lost: {error}")));
            }
        });
        snapshot.map(|()| state)
    }

    fn save(&self) -> Result<MachineState, Error> {
        let cpus = self.vcpus.iter().map(|vcpu| CpuState::save(&vcpu.lock(), self.host.msrs()));
        Ok(MachineState {
            cpus: cpus.collect::<Result<_, _>>()?,
            vm_state: VmState::save(&self.vm)?,
            devices: self.devices.save(),
        })
    }
}
