//! State that all vCPUs of a VM share: interrupt controllers, timer, clock.

use crate::error::{Asked, Error};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    kvm_clock_data, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::{Cap, VmFd};
use serde::{Deserialize, Serialize};

/// Guest-physical address of three pages that KVM reserves on Intel processors, in the hole below 4
/// GiB, where no RAM or device is.
const TSS: usize = 0xfffb_d000;

/// State that all vCPUs of a VM share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VmState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    /// `None` on hosts without it.
    pit: Option<kvm_pit_state2>,
    clock: Option<kvm_clock_data>,
}

/// Creates the interrupt controllers and the timer, in a VM that has no vCPU yet.
pub(crate) fn create_interrupt_chips(vm: &VmFd) -> Result<(), Error> {
    vm.set_tss_address(TSS).asked("reserving KVM's own pages")?;
    vm.create_irq_chip().asked("creating interrupt controllers")?;
    if vm.check_extension(Cap::PitState2) {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(config).asked("creating a timer")?;
    }
    Ok(())
}

fn chip(vm: &VmFd, id: u32) -> Result<kvm_irqchip, Error> {
    let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
    vm.get_irqchip(&mut chip).asked("saving an interrupt controller")?;
    Ok(chip)
}

impl VmState {
    /// Saves the state. No vCPU may run.
    pub(crate) fn save(vm: &VmFd) -> Result<Self, Error> {
        let has = |cap| vm.check_extension(cap);
        let pit = has(Cap::PitState2).then(|| vm.get_pit2().asked("saving the timer"));
        let clock = has(Cap::AdjustClock).then(|| vm.get_clock().asked("saving the clock"));
        Ok(Self {
            pic_master: chip(vm, KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(vm, KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(vm, KVM_IRQCHIP_IOAPIC)?,
            pit: pit.transpose()?,
            clock: clock.transpose()?,
        })
    }

    /// Loads the state. Call this before loading the state of the vCPUs.
    pub(crate) fn load(&self, vm: &VmFd) -> Result<(), Error> {
        for chip in [&self.pic_master, &self.pic_slave, &self.ioapic] {
            vm.set_irqchip(chip).asked("loading an interrupt controller")?;
        }
        if let Some(pit) = self.pit.as_ref().filter(|_| vm.check_extension(Cap::PitState2)) {
            vm.set_pit2(pit).asked("loading the timer")?;
        }
        if let Some(clock) = self.clock.filter(|_| vm.check_extension(Cap::AdjustClock)) {
            // Without flags: the guest's time resumes where it stopped, like its time stamp
            // counter.
            let clock = kvm_clock_data { clock: clock.clock, ..Default::default() };
            vm.set_clock(&clock).asked("loading the clock")?;
        }
        Ok(())
    }
}
