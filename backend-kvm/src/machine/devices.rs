//! What is on a machine's buses.

/// Answers what a guest does on its buses, beside interrupt controllers and timer. Called by the
/// vCPUs' threads, at once. A panic in here ends the
/// machine ([`Machine::ended`](super::Machine::ended) says so).
pub trait Devices: Send + Sync {
    /// The guest writes to a port.
    fn port_write(&self, vcpu: usize, port: u16, bytes: &[u8]) {
        let _ = (vcpu, port, bytes);
    }

    /// The guest reads from a port; what nobody answers reads as ones.
    fn port_read(&self, vcpu: usize, port: u16, bytes: &mut [u8]) {
        let _ = (vcpu, port);
        bytes.fill(0xff);
    }

    /// The guest writes to an address that is not RAM.
    fn memory_write(&self, vcpu: usize, gpa: u64, bytes: &[u8]) {
        let _ = (vcpu, gpa, bytes);
    }

    /// The guest reads from an address that is not RAM.
    fn memory_read(&self, vcpu: usize, gpa: u64, bytes: &mut [u8]) {
        let _ = (vcpu, gpa);
        bytes.fill(0xff);
    }

    /// What the devices of a clone begin with. Called when the machine is snapshot and no vCPU
    /// runs; whatever else acts on the devices has to wait for this. Requests in flight are the
    /// parent's: they are not part of it.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// Nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoDevices;

impl Devices for NoDevices {}
