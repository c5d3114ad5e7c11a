//! Tests with a small driver, and with malicious guests.

#![expect(clippy::cast_possible_truncation, reason = "tests know their numbers")]

use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::io::Write;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_FLUSH;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

/// Addresses of the driver's rings and buffers.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x4000;
const RAM: usize = 0x4_0000;

const SECTORS: u64 = 64;

struct Ram(RefCell<Vec<u8>>);

impl Ram {
    fn new() -> Self {
        Self(RefCell::new(vec![0xee; RAM]))
    }

    fn set(&self, gpa: u64, bytes: &[u8]) {
        self.write(gpa, bytes).unwrap();
    }

    fn get<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(gpa, &mut bytes).unwrap();
        bytes
    }

    fn range(&self, gpa: u64, len: usize) -> Result<Range<usize>, QueueError> {
        let end = gpa.checked_add(len as u64).filter(|end| *end <= RAM as u64);
        let end = end.ok_or_else(|| QueueError(format!("no RAM at {gpa:#x}")))? as usize;
        Ok(end - len..end)
    }
}

impl Memory for Ram {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), QueueError> {
        buf.copy_from_slice(&self.0.borrow()[self.range(gpa, buf.len())?]);
        Ok(())
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), QueueError> {
        let range = self.range(gpa, bytes.len())?;
        self.0.borrow_mut()[range].copy_from_slice(bytes);
        Ok(())
    }
}

/// A driver with a queue of `size` entries, and its device. Each byte of the disk is the number of
/// its sector.
struct Driver {
    device: BlockDevice,
    ram: Ram,
    size: u16,
    next_available: u16,
}

fn disk() -> Disk {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; SECTOR as usize]).unwrap();
    }
    Disk::open(file.path()).unwrap()
}

impl Driver {
    fn new(size: u16) -> Self {
        let device = BlockDevice::new(disk(), Registers::default());
        let mut driver = Self { device, ram: Ram::new(), size, next_available: 0 };
        driver.ram.set(AVAILABLE, &[0; 4]);
        driver.ram.set(USED, &[0; 4]);
        driver.write_register(mmio::VIRTIO_MMIO_STATUS, 3);
        driver.write_register(mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        driver.write_register(mmio::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        driver.write_register(mmio::VIRTIO_MMIO_STATUS, 11);
        assert_eq!(
            driver.read_register(mmio::VIRTIO_MMIO_STATUS),
            11,
            "the features are agreed on"
        );
        driver.write_register(mmio::VIRTIO_MMIO_QUEUE_NUM, size.into());
        for (register, address) in [
            (mmio::VIRTIO_MMIO_QUEUE_DESC_LOW, DESCRIPTORS),
            (mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAILABLE),
            (mmio::VIRTIO_MMIO_QUEUE_USED_LOW, USED),
        ] {
            driver.write_register(register, address as u32);
            driver.write_register(register + 4, 0);
        }
        driver.write_register(mmio::VIRTIO_MMIO_QUEUE_READY, 1);
        driver.write_register(mmio::VIRTIO_MMIO_STATUS, 15);
        driver
    }

    fn read_register(&self, register: u32) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(register.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write_register(&mut self, register: u32, value: u32) -> bool {
        self.device.write(register.into(), &value.to_le_bytes(), &self.ram)
    }

    fn descriptor(&self, number: u16, gpa: u64, len: u32, flags: u32, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&(flags as u16).to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.ram.set(DESCRIPTORS + 16 * u64::from(number), &bytes);
    }

    /// Makes the chain with this first descriptor available.
    fn make_available(&mut self, head: u16) -> bool {
        let slot = u64::from(self.next_available % self.size);
        self.ram.set(AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        self.next_available = self.next_available.wrapping_add(1);
        self.ram.set(AVAILABLE + 2, &self.next_available.to_le_bytes());
        self.write_register(mmio::VIRTIO_MMIO_QUEUE_NOTIFY, 0)
    }

    /// Submits a request with a header, a buffer of `len` bytes, and a status byte. Returns the
    /// status, and the written length in the used ring.
    fn request(&mut self, kind: u32, sector: u64, len: u32) -> (u8, u32) {
        let data = BUFFERS + 0x100;
        let answer = data + u64::from(len);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.ram.set(BUFFERS, &header);
        self.ram.set(answer, &[0x77]);
        let to_guest = if kind == VIRTIO_BLK_T_OUT { 0 } else { VRING_DESC_F_WRITE };
        self.descriptor(2, BUFFERS, 16, VRING_DESC_F_NEXT, 0);
        self.descriptor(0, data, len, VRING_DESC_F_NEXT | to_guest, 1);
        self.descriptor(1, answer, 1, VRING_DESC_F_WRITE, 0);
        assert!(self.make_available(2), "the guest is told");
        assert_eq!(
            self.read_register(mmio::VIRTIO_MMIO_INTERRUPT_STATUS),
            mmio::VIRTIO_MMIO_INT_VRING
        );
        self.write_register(mmio::VIRTIO_MMIO_INTERRUPT_ACK, mmio::VIRTIO_MMIO_INT_VRING);
        assert_eq!(self.read_register(mmio::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        assert_eq!(u16::from_le_bytes(self.ram.get(USED + 2)), self.next_available);
        let slot = u64::from(self.next_available.wrapping_sub(1) % self.size);
        let [h0, h1, h2, h3, w0, w1, w2, w3] = self.ram.get(USED + 4 + 8 * slot);
        assert_eq!([h0, h1, h2, h3], [2, 0, 0, 0], "the chain");
        let [answer] = self.ram.get(answer);
        (answer, u32::from_le_bytes([w0, w1, w2, w3]))
    }

    fn is_broken(&self) -> bool {
        self.read_register(mmio::VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }
}

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const FAILED: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNKNOWN: u8 = VIRTIO_BLK_S_UNSUPP as u8;

#[test]
fn a_driver_finds_a_disk() {
    let driver = Driver::new(8);
    assert_eq!(driver.read_register(mmio::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read_register(mmio::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read_register(mmio::VIRTIO_MMIO_DEVICE_ID), 2);
    assert_eq!(driver.read_register(mmio::VIRTIO_MMIO_CONFIG), SECTORS as u32);
    let mut bytes = [9; 8];
    driver.device.read(0x100, &mut bytes);
    assert_eq!(u64::from_le_bytes(bytes), SECTORS);
    driver.device.read(0x106, &mut bytes);
    assert_eq!(bytes, [0; 8], "nothing else is configured");
    // Reads that are too narrow or of no register.
    let mut byte = [9];
    driver.device.read(0, &mut byte);
    assert_eq!(byte, [9]);
    assert_eq!(driver.read_register(0xfc0), 0);
}

#[test]
fn an_old_driver_is_refused() {
    let mut device = BlockDevice::new(disk(), Registers::default());
    let ram = Ram::new();
    for status in [1u32, 3, 11] {
        device.write(mmio::VIRTIO_MMIO_STATUS.into(), &status.to_le_bytes(), &ram);
    }
    let mut status = [0; 4];
    device.read(mmio::VIRTIO_MMIO_STATUS.into(), &mut status);
    assert_eq!(u32::from_le_bytes(status), 3, "the features are not agreed on");
}

#[test]
fn written_data_is_read_back() {
    let mut driver = Driver::new(4);
    // More requests in a row than the ring has entries.
    for round in 0..10u8 {
        assert_eq!(driver.request(VIRTIO_BLK_T_IN, 5, 1024), (OK, 1025));
        let before = if round == 0 { 5 } else { 0x40 + round - 1 };
        assert_eq!(driver.ram.get(BUFFERS + 0x100), [before; 512]);
        assert_eq!(driver.ram.get(BUFFERS + 0x300), [6; 512]);
        driver.ram.set(BUFFERS + 0x100, &[0x40 + round; 512]);
        assert_eq!(driver.request(VIRTIO_BLK_T_OUT, 5, 512), (OK, 1));
    }
    // Longer than a piece.
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 0, 64 * 512), (OK, 64 * 512 + 1));
    assert_eq!(driver.ram.get(BUFFERS + 0x100 + 63 * 512), [63; 512]);
    assert_eq!(driver.request(VIRTIO_BLK_T_GET_ID, 0, 20), (OK, 21));
    assert_eq!(&driver.ram.get::<20>(BUFFERS + 0x100), NAME);
}

#[test]
fn invalid_requests_are_refused() {
    let mut driver = Driver::new(8);
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, SECTORS - 1, 1024), (FAILED, 1));
    assert_eq!(driver.request(VIRTIO_BLK_T_OUT, u64::MAX, 512), (FAILED, 1));
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 0, 100), (FAILED, 1), "no whole sector");
    assert_eq!(driver.request(VIRTIO_BLK_T_FLUSH, 0, 0), (UNKNOWN, 1), "it was not offered");
    assert_eq!(driver.request(VIRTIO_BLK_T_IN, 1, 512), (OK, 513), "and the disk goes on");
}

#[test]
fn a_clone_s_device_goes_on_where_its_parent_s_was() {
    let mut parent = Driver::new(4);
    parent.ram.set(BUFFERS + 0x100, &[0xaa; 512]);
    parent.request(VIRTIO_BLK_T_OUT, 1, 512);
    let saved = serde_json::to_vec(&parent.device.registers).unwrap();
    let device =
        BlockDevice::new(parent.device.disk.clone(), serde_json::from_slice(&saved).unwrap());
    let ram = Ram(RefCell::new(parent.ram.0.borrow().clone()));
    let mut clone = Driver { device, ram, ..parent };
    parent = Driver { device: parent.device, ram: parent.ram, size: 4, next_available: 1 };
    parent.ram.set(BUFFERS + 0x100, &[0xbb; 512]);
    assert_eq!(parent.request(VIRTIO_BLK_T_OUT, 1, 512), (OK, 1));
    assert_eq!(clone.request(VIRTIO_BLK_T_IN, 1, 512), (OK, 513));
    assert_eq!(clone.ram.get(BUFFERS + 0x100), [0xaa; 512]);
}

/// A description of an invalid queue, and a function that makes the queue so.
type Corruption<'a> = (&'a str, &'a dyn Fn(&Driver));

#[test]
fn a_queue_that_cannot_be_is_not_followed() {
    let corruptions: [Corruption<'_>; 7] = [
        ("nowhere", &|d| d.descriptor(2, 1 << 40, 16, VRING_DESC_F_NEXT, 0)),
        ("past the end", &|d| d.descriptor(2, u64::MAX - 4, 16, VRING_DESC_F_NEXT, 0)),
        ("a circle", &|d| d.descriptor(0, BUFFERS, 1, VRING_DESC_F_NEXT, 2)),
        ("not in the table", &|d| d.descriptor(2, BUFFERS, 16, VRING_DESC_F_NEXT, 8)),
        ("indirect", &|d| d.descriptor(2, BUFFERS, 16, VRING_DESC_F_INDIRECT, 0)),
        ("no answer", &|d| d.descriptor(2, BUFFERS, 16, 0, 0)),
        ("out of order", &|d| {
            d.descriptor(2, BUFFERS, 16, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 0)
        }),
    ];
    for (what, corrupt) in corruptions {
        let mut driver = Driver::new(8);
        driver.request(VIRTIO_BLK_T_OUT, 0, 512);
        corrupt(&driver);
        assert!(driver.make_available(2), "{what}: the guest is told");
        assert!(driver.is_broken(), "{what}");
        assert_eq!(
            driver.read_register(mmio::VIRTIO_MMIO_INTERRUPT_STATUS),
            mmio::VIRTIO_MMIO_INT_CONFIG
        );
        assert!(!driver.make_available(2), "{what}: nothing more is done");
        driver.write_register(mmio::VIRTIO_MMIO_STATUS, 0);
        assert!(!driver.is_broken(), "{what}: it was reset");
    }
    let mut driver = Driver::new(8);
    driver.ram.set(AVAILABLE + 2, &9u16.to_le_bytes());
    driver.write_register(mmio::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert!(driver.is_broken(), "more than the ring holds");
}

#[test]
fn a_guest_that_wants_no_interrupt_gets_none() {
    let mut driver = Driver::new(8);
    driver.request(VIRTIO_BLK_T_IN, 0, 512);
    driver.ram.set(AVAILABLE, &(VRING_AVAIL_F_NO_INTERRUPT as u16).to_le_bytes());
    assert!(!driver.make_available(2));
    assert_eq!(driver.read_register(mmio::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert_eq!(u16::from_le_bytes(driver.ram.get(USED + 2)), 2, "it was done");
}

proptest! {
    /// With arbitrary memory and registers, the device neither panics nor loops forever.
    #[test]
    fn malicious_guests_do_no_harm(
        words in proptest::collection::vec((0..RAM as u64 / 2 - 1, any::<u16>()), 0..200),
        registers in proptest::collection::vec((0..0x200u32, any::<u32>(), any::<bool>()), 0..40),
    ) {
        let mut driver = Driver::new(8);
        driver.request(VIRTIO_BLK_T_IN, 0, 512);
        for (at, word) in words {
            // Most words are written to the rings.
            let at = if at % 4 == 0 { at * 2 } else { DESCRIPTORS + at % 0x1800 * 2 };
            driver.ram.set(at, &(word % 300).to_le_bytes());
        }
        for (register, value, is_small) in registers {
            let value = if is_small { value % 64 } else { value };
            driver.write_register(register & !3, value);
            driver.write_register(mmio::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            driver.read_register(register);
        }
        driver.write_register(mmio::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }
}
