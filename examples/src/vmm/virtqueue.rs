//! A virtqueue: rings in the guest's memory, through which it hands buffers to a device (virtio
//! 1.2, section 2.7, split virtqueues).
//!
//! The guest's memory is read and written through the kernel and not by pointers, as other
//! virtqueues do it: where a on_demand clone's page ceases to come that is an error, and not a
//! signal. All that is read is bounded: a guest that lies gets a device that wants to be reset.

use kaleidoscope_core::addr::Gpa;
use kaleidoscope_kvm::machine::DeviceMemory;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

/// Most buffers that wait at once.
pub(super) const MOST: u16 = 128;

/// What is wrong with a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Broken(pub(super) String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A guest's memory.
pub(super) trait Memory {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Broken>;
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Broken>;
}

impl Memory for DeviceMemory {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Broken> {
        Self::read(self, Gpa(gpa), buf).map_err(|error| Broken(error.to_string()))
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Broken> {
        Self::write(self, Gpa(gpa), bytes).map_err(|error| Broken(error.to_string()))
    }
}

/// Part of the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Buffer {
    pub(super) gpa: u64,
    pub(super) len: u32,
}

/// What the guest hands over at once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Chain {
    /// By which the guest knows it.
    pub(super) head: u16,
    /// For the device to read.
    pub(super) readable: Vec<Buffer>,
    /// For the device to write to.
    pub(super) writable: Vec<Buffer>,
}

/// Where the rings are, and how far both sides have come.
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

fn at(base: u64, offset: u64) -> Result<u64, Broken> {
    base.checked_add(offset).ok_or_else(|| Broken(format!("no ring is at {base:#x}")))
}

fn read<const N: usize>(memory: &dyn Memory, base: u64, offset: u64) -> Result<[u8; N], Broken> {
    let mut bytes = [0; N];
    memory.read(at(base, offset)?, &mut bytes)?;
    Ok(bytes)
}

impl Queue {
    /// Whether rings have a size that a device can have: a power of two (section 2.7).
    fn check(&self) -> Result<(), Broken> {
        let is_good = self.is_ready && self.size.is_power_of_two() && self.size <= MOST;
        is_good.then_some(()).ok_or_else(|| Broken(format!("a ring of {} entries", self.size)))
    }

    /// The next buffers that the guest has handed over.
    pub(super) fn take(&mut self, memory: &dyn Memory) -> Result<Option<Chain>, Broken> {
        self.check()?;
        let filled = u16::from_le_bytes(read(memory, self.available, 2)?);
        let waiting = filled.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(Broken(format!("{waiting} buffers in a ring of {}", self.size)));
        }
        if waiting == 0 {
            return Ok(None);
        }
        // What the guest wrote before it said so.
        fence(Ordering::Acquire);
        let slot = u64::from(self.next_available % self.size);
        let head = u16::from_le_bytes(read(memory, self.available, 4 + 2 * slot)?);
        let chain = self.chain(memory, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    fn chain(&self, memory: &dyn Memory, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain { head, ..Chain::default() };
        let mut next = Some(head);
        for _ in 0..self.size {
            let Some(number) = next.take() else { break };
            if number >= self.size {
                return Err(Broken(format!("buffer {number} in a table of {}", self.size)));
            }
            let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] =
                read(memory, self.descriptors, 16 * u64::from(number))?;
            let gpa = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let len = u32::from_le_bytes([l0, l1, l2, l3]);
            let flags = u32::from(u16::from_le_bytes([f0, f1]));
            if flags & VRING_DESC_F_INDIRECT != 0 {
                return Err(Broken("a table of buffers, which was not offered".into()));
            }
            let is_writable = flags & VRING_DESC_F_WRITE != 0;
            if !is_writable && !chain.writable.is_empty() {
                return Err(Broken("a buffer to read after one to write to".into()));
            }
            let to = if is_writable { &mut chain.writable } else { &mut chain.readable };
            to.push(Buffer { gpa, len });
            next = (flags & VRING_DESC_F_NEXT != 0).then(|| u16::from_le_bytes([n0, n1]));
        }
        match next {
            None => Ok(chain),
            Some(_) => Err(Broken(format!("more than {} buffers in a chain", self.size))),
        }
    }

    /// Gives buffers back, of which so many bytes were written.
    pub(super) fn give_back(
        &mut self,
        memory: &dyn Memory,
        head: u16,
        written: u32,
    ) -> Result<(), Broken> {
        let slot = u64::from(self.next_used % self.size);
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        entry[4..].copy_from_slice(&written.to_le_bytes());
        memory.write(at(self.used, 4 + 8 * slot)?, &entry)?;
        self.next_used = self.next_used.wrapping_add(1);
        // The guest reads the entry after it has seen that it is there.
        fence(Ordering::Release);
        memory.write(at(self.used, 2)?, &self.next_used.to_le_bytes())
    }

    /// Whether the guest wants to be told of what it was given back.
    pub(super) fn wants_interrupt(&self, memory: &dyn Memory) -> Result<bool, Broken> {
        fence(Ordering::SeqCst);
        let flags = u16::from_le_bytes(read(memory, self.available, 0)?);
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
