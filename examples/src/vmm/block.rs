//! A virtio block device (virtio 1.2, sections 4.2 and 5.2): registers in memory, and requests that
//! are done as they come.
//!
//! A request is done by the vCPU's thread before the guest goes on, so that a freeze finds none
//! half done.

use super::disk::{Disk, SECTOR};
use super::virtqueue::{Broken, Buffer, Chain, MOST, Memory, Queue};
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

/// Where its registers are: above all RAM below 4 GiB.
pub(super) const REGISTERS: Range<u64> = 0xd000_0000..0xd000_1000;

/// The input of the interrupt controllers that it raises.
pub(super) const LINE: u32 = 5;

/// "virt", and the version of the registers (section 4.2.2).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;

/// What can be had of it: the specification's first version, and nothing besides.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1;

/// Bytes that are copied in one go.
const PIECE: u32 = 64 << 10;

/// Bytes of a request's header: kind, a word that is not used, sector.
const HEADER: u32 = 16;

/// What it is called.
const NAME: &[u8; VIRTIO_BLK_ID_BYTES as usize] = b"kaleidoscope\0\0\0\0\0\0\0\0";

/// What the guest has set: the device's whole state, beside what is on the disk.
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

/// Why a request was not done.
enum End {
    /// The disk has no such bytes, or does not give them: the guest is told.
    Failed,
    /// There is no such request: the guest is told.
    Unsupported,
    /// The queue cannot be used any more.
    Broken(Broken),
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl BlockDevice {
    /// A device with this on it, in this state.
    pub(super) fn new(disk: Disk, registers: Registers) -> Self {
        Self { disk, registers }
    }

    /// The guest reads at this distance from the first register.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) {
        let config = u64::from(mmio::VIRTIO_MMIO_CONFIG);
        if let Some(from) = offset.checked_sub(config) {
            // The disk's size is all that there is to configure; what follows is of features that
            // were not offered.
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
            mmio::VIRTIO_MMIO_QUEUE_NUM_MAX if is_there => MOST.into(),
            mmio::VIRTIO_MMIO_QUEUE_READY if is_there => r.queue.is_ready.into(),
            mmio::VIRTIO_MMIO_INTERRUPT_STATUS => r.interrupts,
            mmio::VIRTIO_MMIO_STATUS => r.status,
            // There is no shared memory (section 4.2.2): its length is all ones.
            mmio::VIRTIO_MMIO_SHM_LEN_LOW | mmio::VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => 0,
        }
    }

    /// The guest writes at this distance from the first register; says whether it is to be
    /// interrupted.
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
            // Rings stay where they are while they are used.
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
        // A driver that wants what was not offered, or is older than the specification, is told by
        // the bit that it does not find set.
        let refuses = self.registers.driver_features != FEATURES;
        let value = if refuses { value & !VIRTIO_CONFIG_S_FEATURES_OK } else { value };
        self.registers.status = value | self.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET;
    }

    /// Does what the guest has asked for; says whether it is to be interrupted.
    fn serve(&mut self, memory: &dyn Memory) -> bool {
        if self.registers.status & VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
            return false;
        }
        let (which, told) = match self.serve_all(memory) {
            Ok(told) => (mmio::VIRTIO_MMIO_INT_VRING, told),
            Err(_broken) => {
                self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
                (mmio::VIRTIO_MMIO_INT_CONFIG, true)
            }
        };
        if told {
            self.registers.interrupts |= which;
        }
        told
    }

    fn serve_all(&mut self, memory: &dyn Memory) -> Result<bool, Broken> {
        let mut is_any = false;
        // No more than fit into the rings: another vCPU may go on asking.
        for _ in 0..MOST {
            let Some(chain) = self.registers.queue.take(memory)? else { break };
            let written = self.answer(&chain, memory)?;
            self.registers.queue.give_back(memory, chain.head, written)?;
            is_any = true;
        }
        Ok(is_any && self.registers.queue.wants_interrupt(memory)?)
    }

    /// Does a request, and says how many bytes of its buffers were written.
    fn answer(&mut self, chain: &Chain, memory: &dyn Memory) -> Result<u32, Broken> {
        let (header, from_guest) = split(&chain.readable, HEADER.into());
        let length = total(&chain.writable);
        let room = length.checked_sub(1).ok_or_else(|| Broken("no room for an answer".into()))?;
        let (to_guest, status) = split(&chain.writable, room);
        let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = gather(&header, memory)?;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let done = match kind {
            VIRTIO_BLK_T_IN => self.read_disk(sector, &to_guest, memory),
            VIRTIO_BLK_T_OUT => self.write_disk(sector, &from_guest, memory),
            VIRTIO_BLK_T_GET_ID => scatter(&to_guest, NAME, memory).map_err(End::from),
            _ => Err(End::Unsupported),
        };
        let (answer, written) = match done {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(End::Failed) => (VIRTIO_BLK_S_IOERR, 0),
            Err(End::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(End::Broken(broken)) => return Err(broken),
        };
        scatter(&status, &answer.to_le_bytes()[..1], memory)?;
        Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }

    /// The first byte of a request on the disk.
    fn place(&self, sector: u64, buffers: &[Buffer]) -> Result<u64, End> {
        let bytes = total(buffers);
        let offset = sector.checked_mul(SECTOR).filter(|_| bytes.is_multiple_of(SECTOR));
        offset.filter(|offset| self.disk.has(*offset, bytes)).ok_or(End::Failed)
    }

    fn read_disk(&self, sector: u64, to: &[Buffer], memory: &dyn Memory) -> Result<u64, End> {
        let mut offset = self.place(sector, to)?;
        let mut bytes = Vec::new();
        for piece in pieces(to) {
            bytes.resize(piece.len as usize, 0);
            self.disk.read(offset, &mut bytes).map_err(|_| End::Failed)?;
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
    ) -> Result<u64, End> {
        let mut offset = self.place(sector, from)?;
        let mut bytes = Vec::new();
        for piece in pieces(from) {
            bytes.resize(piece.len as usize, 0);
            memory.read(piece.gpa, &mut bytes)?;
            self.disk.write(offset, &bytes).map_err(|_| End::Failed)?;
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
    // No more than a ring has, of 32 bits each.
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}

/// The first bytes of some buffers, and the others.
fn split(buffers: &[Buffer], first: u64) -> (Vec<Buffer>, Vec<Buffer>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut left = first;
    for buffer in buffers {
        let len = u32::try_from(left.min(buffer.len.into())).unwrap_or(buffer.len);
        left -= u64::from(len);
        before.push(Buffer { len, ..*buffer });
        // An address that is too large is no RAM, before and after.
        let gpa = buffer.gpa.saturating_add(len.into());
        after.push(Buffer { gpa, len: buffer.len - len });
    }
    let is_there = |buffer: &Buffer| buffer.len > 0;
    before.retain(is_there);
    after.retain(is_there);
    (before, after)
}

/// Buffers in pieces that are small enough to be copied.
fn pieces(buffers: &[Buffer]) -> impl Iterator<Item = Buffer> + '_ {
    buffers.iter().flat_map(|buffer| {
        (0..buffer.len).step_by(PIECE as usize).map(|start| Buffer {
            gpa: buffer.gpa.saturating_add(start.into()),
            len: PIECE.min(buffer.len - start),
        })
    })
}

/// The bytes of a request's header.
fn gather(buffers: &[Buffer], memory: &dyn Memory) -> Result<[u8; HEADER as usize], Broken> {
    let mut header = [0; HEADER as usize];
    if total(buffers) != u64::from(HEADER) {
        return Err(Broken("a request without a header".into()));
    }
    let mut rest = &mut header[..];
    for buffer in buffers {
        let (part, after) = rest.split_at_mut((buffer.len as usize).min(rest.len()));
        memory.read(buffer.gpa, part)?;
        rest = after;
    }
    Ok(header)
}

/// Writes bytes to buffers, as many as there is room for, and says how many.
fn scatter(buffers: &[Buffer], bytes: &[u8], memory: &dyn Memory) -> Result<u64, Broken> {
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
