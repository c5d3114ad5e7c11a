//! A virtio block device over MMIO (virtio 1.2, sections 4.2 and 5.2) that processes requests
//! synchronously.
//!
//! The vCPU's thread completes a request before the guest resumes. A freeze therefore finds no
//! request in flight.

use super::disk::{Disk, SECTOR};
use super::virtqueue::{Buffer, Chain, MAX_QUEUE_SIZE, Memory, Queue, QueueError};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_mmio as mmio;

/// Guest-physical addresses of the registers, above all RAM below 4 GiB.
pub(super) const REGISTERS: Range<u64> = 0xd000_0000..0xd000_1000;

/// The device's global system interrupt (GSI).
pub(super) const LINE: u32 = 5;

/// "virt", and the version of the register layout (section 4.2.2).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;

/// Offered features: `VIRTIO_F_VERSION_1` only.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1;

/// Most bytes per copy.
const PIECE: u32 = 64 << 10;

/// Bytes of a request's header: type, a reserved word, sector (section 5.2.6).
const HEADER: u32 = 16;

/// The device's ID string.
const NAME: &[u8; VIRTIO_BLK_ID_BYTES as usize] = b"kaleidoscope\0\0\0\0\0\0\0\0";

/// The device's complete state except the contents of the disk.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Registers {
    features_word: u32,
    driver_word: u32,
    driver_features: u64,
    queue_number: u32,
    queue: Queue,
    pub(super) interrupts: u32,
    status: u32,
}

/// The device.
#[derive(Debug)]
pub(super) struct BlockDevice {
    pub(super) disk: Disk,
    pub(super) registers: Registers,
}

/// Why a request failed.
enum RequestError {
    /// The range is not on the disk, or reading the disk failed. Reported to the guest.
    Failed,
    /// Unknown request type. Reported to the guest.
    Unsupported,
    /// The queue is invalid: the device needs a reset.
    Queue(QueueError),
}

impl From<QueueError> for RequestError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl BlockDevice {
    /// A device with this disk, in this state.
    pub(super) fn new(disk: Disk, registers: Registers) -> Self {
        Self { disk, registers }
    }

    /// The guest reads `offset` bytes after the first register.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) {
        let config = u64::from(mmio::VIRTIO_MMIO_CONFIG);
        if let Some(from) = offset.checked_sub(config) {
            // The capacity is the only configuration field. The fields after it belong to
            // features that are not offered.
            let size = self.disk.sectors().to_le_bytes();
            let rest = size.iter().skip(usize::try_from(from).unwrap_or(usize::MAX));
            let given = rest.copied().chain(std::iter::repeat(0));
            bytes.iter_mut().zip(given).for_each(|(to, from)| *to = from);
        } else if let Ok(to) = <&mut [u8; 4]>::try_from(bytes) {
            *to = self.register(u32::try_from(offset).unwrap_or(u32::MAX)).to_le_bytes();
        }
    }

    fn register(&self, offset: u32) -> u32 {
        let r = &self.registers;
        let word = |number: u32, of: u64| match number {
            0 => low(of),
            1 => low(of >> 32),
            _ => 0,
        };
        let is_there = r.queue_number == 0;
        match offset {
            mmio::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            mmio::VIRTIO_MMIO_VERSION => VERSION,
            mmio::VIRTIO_MMIO_DEVICE_ID => VIRTIO_ID_BLOCK,
            mmio::VIRTIO_MMIO_DEVICE_FEATURES => word(r.features_word, FEATURES),
            mmio::VIRTIO_MMIO_QUEUE_NUM_MAX if is_there => MAX_QUEUE_SIZE.into(),
            mmio::VIRTIO_MMIO_QUEUE_READY if is_there => r.queue.is_ready.into(),
            mmio::VIRTIO_MMIO_INTERRUPT_STATUS => r.interrupts,
            mmio::VIRTIO_MMIO_STATUS => r.status,
            // No shared memory region: its length reads as all ones (section 4.2.2).
            mmio::VIRTIO_MMIO_SHM_LEN_LOW | mmio::VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => 0,
        }
    }

    /// The guest writes `offset` bytes after the first register. Returns whether to interrupt the
    /// guest.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], memory: &dyn Memory) -> bool {
        let (Ok(bytes), Ok(offset)) = (<[u8; 4]>::try_from(bytes), u32::try_from(offset)) else {
            return false;
        };
        let value = u32::from_le_bytes(bytes);
        let r = &mut self.registers;
        let is_there = r.queue_number == 0;
        match offset {
            mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL => r.features_word = value,
            mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL => r.driver_word = value,
            mmio::VIRTIO_MMIO_DRIVER_FEATURES => match r.driver_word {
                0 => set_low(&mut r.driver_features, value),
                1 => set_high(&mut r.driver_features, value),
                _ => {}
            },
            mmio::VIRTIO_MMIO_QUEUE_SEL => r.queue_number = value,
            mmio::VIRTIO_MMIO_INTERRUPT_ACK => r.interrupts &= !value,
            mmio::VIRTIO_MMIO_STATUS => self.set_status(value),
            mmio::VIRTIO_MMIO_QUEUE_NOTIFY if value == 0 => return self.serve(memory),
            mmio::VIRTIO_MMIO_QUEUE_READY if is_there => r.queue.is_ready = value == 1,
            // The rings cannot be moved or resized while the queue is ready.
            _ if !is_there || r.queue.is_ready => {}
            mmio::VIRTIO_MMIO_QUEUE_NUM => r.queue.size = u16::try_from(value).unwrap_or(0),
            mmio::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut r.queue.descriptors, value),
            mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut r.queue.descriptors, value),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut r.queue.available, value),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut r.queue.available, value),
            mmio::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut r.queue.used, value),
            mmio::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut r.queue.used, value),
            _ => {}
        }
        false
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.registers = Registers::default();
            return;
        }
        // FEATURES_OK stays clear if the driver accepts a feature that was not offered, or is a
        // legacy driver (section 3.1.1).
        let refuses = self.registers.driver_features != FEATURES;
        let value = if refuses { value & !VIRTIO_CONFIG_S_FEATURES_OK } else { value };
        self.registers.status = value | self.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET;
    }

    /// Processes the queue. Returns whether to interrupt the guest.
    fn serve(&mut self, memory: &dyn Memory) -> bool {
        if self.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
            return false;
        }
        let (cause, must_interrupt) = match self.serve_all(memory) {
            Ok(must_interrupt) => (mmio::VIRTIO_MMIO_INT_VRING, must_interrupt),
            Err(_) => {
                self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
                (mmio::VIRTIO_MMIO_INT_CONFIG, true)
            }
        };
        if must_interrupt {
            self.registers.interrupts |= cause;
        }
        must_interrupt
    }

    fn serve_all(&mut self, memory: &dyn Memory) -> Result<bool, QueueError> {
        let mut is_any = false;
        // Bounded by the size of a ring, because another vCPU may keep adding requests.
        for _ in 0..MAX_QUEUE_SIZE {
            let Some(chain) = self.registers.queue.pop_available(memory)? else { break };
            let written = self.handle_request(&chain, memory)?;
            self.registers.queue.push_used(memory, chain.head, written)?;
            is_any = true;
        }
        Ok(is_any && self.registers.queue.wants_interrupt(memory)?)
    }

    /// Processes a request. Returns how many bytes of its buffers were written.
    fn handle_request(&mut self, chain: &Chain, memory: &dyn Memory) -> Result<u32, QueueError> {
        let (header, from_guest) = split(&chain.readable, HEADER.into());
        let length = total(&chain.writable);
        let room =
            length.checked_sub(1).ok_or_else(|| QueueError("no room for an answer".into()))?;
        let (to_guest, status) = split(&chain.writable, room);
        let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = gather(&header, memory)?;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let done = match kind {
            VIRTIO_BLK_T_IN => self.read_disk(sector, &to_guest, memory),
            VIRTIO_BLK_T_OUT => self.write_disk(sector, &from_guest, memory),
            VIRTIO_BLK_T_GET_ID => scatter(&to_guest, NAME, memory).map_err(RequestError::from),
            _ => Err(RequestError::Unsupported),
        };
        let (answer, written) = match done {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(RequestError::Failed) => (VIRTIO_BLK_S_IOERR, 0),
            Err(RequestError::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(RequestError::Queue(error)) => return Err(error),
        };
        scatter(&status, &answer.to_le_bytes()[..1], memory)?;
        Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }

    /// The offset of a request on the disk, in bytes.
    fn disk_offset(&self, sector: u64, buffers: &[Buffer]) -> Result<u64, RequestError> {
        let bytes = total(buffers);
        let offset = sector.checked_mul(SECTOR).filter(|_| bytes.is_multiple_of(SECTOR));
        offset.filter(|offset| self.disk.has(*offset, bytes)).ok_or(RequestError::Failed)
    }

    fn read_disk(
        &self,
        sector: u64,
        to: &[Buffer],
        memory: &dyn Memory,
    ) -> Result<u64, RequestError> {
        let mut offset = self.disk_offset(sector, to)?;
        let mut bytes = Vec::new();
        for piece in pieces(to) {
            bytes.resize(piece.len as usize, 0);
            self.disk.read(offset, &mut bytes).map_err(|_| RequestError::Failed)?;
            memory.write(piece.gpa, &bytes)?;
            offset += u64::from(piece.len);
        }
        Ok(total(to))
    }

    fn write_disk(
        &mut self,
        sector: u64,
        from: &[Buffer],
        memory: &dyn Memory,
    ) -> Result<u64, RequestError> {
        let mut offset = self.disk_offset(sector, from)?;
        let mut bytes = Vec::new();
        for piece in pieces(from) {
            bytes.resize(piece.len as usize, 0);
            memory.read(piece.gpa, &mut bytes)?;
            self.disk.write(offset, &bytes).map_err(|_| RequestError::Failed)?;
            offset += u64::from(piece.len);
        }
        Ok(0)
    }
}

fn low(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0)
}

fn set_low(word: &mut u64, value: u32) {
    *word = *word >> 32 << 32 | u64::from(value);
}

fn set_high(word: &mut u64, value: u32) {
    *word = u64::from(value) << 32 | u64::from(low(*word));
}

fn total(buffers: &[Buffer]) -> u64 {
    // Cannot overflow: at most `MAX_QUEUE_SIZE` buffers, each with a 32-bit length.
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}

/// Splits buffers after the first `first` bytes.
fn split(buffers: &[Buffer], first: u64) -> (Vec<Buffer>, Vec<Buffer>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut left = first;
    for buffer in buffers {
        let len = u32::try_from(left.min(buffer.len.into())).unwrap_or(buffer.len);
        left -= u64::from(len);
        before.push(Buffer { len, ..*buffer });
        // A saturated address is outside RAM, so that accesses to it still fail.
        let gpa = buffer.gpa.saturating_add(len.into());
        after.push(Buffer { gpa, len: buffer.len - len });
    }
    let is_there = |buffer: &Buffer| buffer.len > 0;
    before.retain(is_there);
    after.retain(is_there);
    (before, after)
}

/// Splits buffers into pieces of at most `PIECE` bytes.
fn pieces(buffers: &[Buffer]) -> impl Iterator<Item = Buffer> + '_ {
    buffers.iter().flat_map(|buffer| {
        (0..buffer.len).step_by(PIECE as usize).map(|start| Buffer {
            gpa: buffer.gpa.saturating_add(start.into()),
            len: PIECE.min(buffer.len - start),
        })
    })
}

/// Reads a request's header.
fn gather(buffers: &[Buffer], memory: &dyn Memory) -> Result<[u8; HEADER as usize], QueueError> {
    let mut header = [0; HEADER as usize];
    if total(buffers) != u64::from(HEADER) {
        return Err(QueueError("a request without a header".into()));
    }
    let mut rest = &mut header[..];
    for buffer in buffers {
        let (part, after) = rest.split_at_mut((buffer.len as usize).min(rest.len()));
        memory.read(buffer.gpa, part)?;
        rest = after;
    }
    Ok(header)
}

/// Writes as many bytes to the buffers as fit. Returns how many were written.
fn scatter(buffers: &[Buffer], bytes: &[u8], memory: &dyn Memory) -> Result<u64, QueueError> {
    let mut rest = bytes;
    for buffer in buffers {
        let (part, after) = rest.split_at((buffer.len as usize).min(rest.len()));
        memory.write(buffer.gpa, part)?;
        rest = after;
    }
    Ok((bytes.len() - rest.len()) as u64)
}

#[cfg(test)]
mod tests;
