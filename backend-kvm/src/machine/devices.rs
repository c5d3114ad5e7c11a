//! Devices on a machine's buses.

/// Emulates the devices on a guest's buses, except the interrupt controllers and the timer, which
/// KVM emulates. The vCPUs' threads call it concurrently. A panic ends the machine
/// ([`Machine::ended`](super::Machine::ended) reports it).
pub trait Devices: Send + Sync {
    /// The guest writes to a port.
    fn port_write(&self, vcpu: usize, port: u16, bytes: &[u8]) {
        let _ = (vcpu, port, bytes);
    }

    /// The guest reads from a port; a port without a device reads as ones.
    fn port_read(&self, vcpu: usize, port: u16, bytes: &mut [u8]) {
        let _ = (vcpu, port);
        bytes.fill(0xff);
    }

    /// The guest writes to a guest-physical address that is not RAM.
    fn memory_write(&self, vcpu: usize, gpa: u64, bytes: &[u8]) {
        let _ = (vcpu, gpa, bytes);
    }

    /// The guest reads from a guest-physical address that is not RAM; an address without a device
    /// reads as ones.
    fn memory_read(&self, vcpu: usize, gpa: u64, bytes: &mut [u8]) {
        let _ = (vcpu, gpa);
        bytes.fill(0xff);
    }

    /// The device state that a clone starts with. Called during a freeze, while no vCPU runs;
    /// device threads have to be quiescent until it returns. Requests in flight belong to the
    /// parent and are not part of the state.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// No devices: writes are ignored, and reads return ones.
#[derive(Clone, Copy, Debug)]
pub struct NoDevices;

impl Devices for NoDevices {}
