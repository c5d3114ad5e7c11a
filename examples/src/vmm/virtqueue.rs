//! A split virtqueue: rings in the guest's memory, through which the guest hands buffers to a
//! device (virtio 1.2, section 2.7).
//!
//! Unlike other virtqueues, this one accesses the guest's memory through system calls, not
//! pointers: a page of an on-demand clone that cannot be fetched is an error, not a signal. All
//! values that the guest provides are checked. After an invalid one the device needs a reset.

use kaleidoscope_core::addr::Gpa;
use kaleidoscope_kvm::machine::DeviceMemory;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

/// Largest queue size, in entries.
pub(super) const MAX_QUEUE_SIZE: u16 = 128;

/// Why a queue is invalid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct QueueError(pub(super) String);

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Access to a guest's memory, by guest-physical address.
pub(super) trait Memory {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), QueueError>;
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), QueueError>;
}

impl Memory for DeviceMemory {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), QueueError> {
        Self::read(self, Gpa(gpa), buf).map_err(|error| QueueError(error.to_string()))
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), QueueError> {
        Self::write(self, Gpa(gpa), bytes).map_err(|error| QueueError(error.to_string()))
    }
}

/// A range of the guest's memory; `len` in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Buffer {
    pub(super) gpa: u64,
    pub(super) len: u32,
}

/// A descriptor chain: the buffers of one request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Chain {
    /// Index of the first descriptor, which identifies the chain in the used ring.
    pub(super) head: u16,
    /// For the device to read.
    pub(super) readable: Vec<Buffer>,
    /// For the device to write to.
    pub(super) writable: Vec<Buffer>,
}

/// Addresses of the rings, and the device's positions in them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Queue {
    pub(super) size: u16,
    pub(super) is_ready: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    next_available: u16,
    next_used: u16,
}

fn at(base: u64, offset: u64) -> Result<u64, QueueError> {
    base.checked_add(offset).ok_or_else(|| QueueError(format!("no ring is at {base:#x}")))
}

fn read<const N: usize>(
    memory: &dyn Memory,
    base: u64,
    offset: u64,
) -> Result<[u8; N], QueueError> {
    let mut bytes = [0; N];
    memory.read(at(base, offset)?, &mut bytes)?;
    Ok(bytes)
}

impl Queue {
    /// Checks that the queue is ready and its size is a power of two (section 2.7).
    fn check(&self) -> Result<(), QueueError> {
        let is_good = self.is_ready && self.size.is_power_of_two() && self.size <= MAX_QUEUE_SIZE;
        is_good.then_some(()).ok_or_else(|| QueueError(format!("a ring of {} entries", self.size)))
    }

    /// Takes the next available descriptor chain.
    pub(super) fn pop_available(
        &mut self,
        memory: &dyn Memory,
    ) -> Result<Option<Chain>, QueueError> {
        self.check()?;
        let filled = u16::from_le_bytes(read(memory, self.available, 2)?);
        let waiting = filled.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(QueueError(format!("{waiting} buffers in a ring of {}", self.size)));
        }
        if waiting == 0 {
            return Ok(None);
        }
        // Pairs with the driver's barrier before its index update: the ring entry and the
        // descriptors are read after the index.
        fence(Ordering::Acquire);
        let slot = u64::from(self.next_available % self.size);
        let head = u16::from_le_bytes(read(memory, self.available, 4 + 2 * slot)?);
        let chain = self.chain(memory, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    fn chain(&self, memory: &dyn Memory, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain { head, ..Chain::default() };
        let mut next = Some(head);
        for _ in 0..self.size {
            let Some(number) = next.take() else { break };
            if number >= self.size {
                return Err(QueueError(format!("buffer {number} in a table of {}", self.size)));
            }
            let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] =
                read(memory, self.descriptors, 16 * u64::from(number))?;
            let gpa = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let len = u32::from_le_bytes([l0, l1, l2, l3]);
            let flags = u32::from(u16::from_le_bytes([f0, f1]));
            if flags & VRING_DESC_F_INDIRECT != 0 {
                return Err(QueueError("a table of buffers, which was not offered".into()));
            }
            let is_writable = flags & VRING_DESC_F_WRITE != 0;
            if !is_writable && !chain.writable.is_empty() {
                return Err(QueueError("a buffer to read after one to write to".into()));
            }
            let to = if is_writable { &mut chain.writable } else { &mut chain.readable };
            to.push(Buffer { gpa, len });
            next = (flags & VRING_DESC_F_NEXT != 0).then(|| u16::from_le_bytes([n0, n1]));
        }
        match next {
            None => Ok(chain),
            Some(_) => Err(QueueError(format!("more than {} buffers in a chain", self.size))),
        }
    }

    /// Returns a chain to the guest. `written` counts the bytes written to its buffers.
    pub(super) fn push_used(
        &mut self,
        memory: &dyn Memory,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        let slot = u64::from(self.next_used % self.size);
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        entry[4..].copy_from_slice(&written.to_le_bytes());
        memory.write(at(self.used, 4 + 8 * slot)?, &entry)?;
        self.next_used = self.next_used.wrapping_add(1);
        // The entry must be visible before the index.
        fence(Ordering::Release);
        memory.write(at(self.used, 2)?, &self.next_used.to_le_bytes())
    }

    /// Whether the guest wants an interrupt for returned chains.
    pub(super) fn wants_interrupt(&self, memory: &dyn Memory) -> Result<bool, QueueError> {
        fence(Ordering::SeqCst);
        let flags = u16::from_le_bytes(read(memory, self.available, 0)?);
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
