//! The machine's devices: a serial line, a disk, and a window to the host.

use super::block::{self, BlockDevice, Registers};
use super::console::Console;
use super::disk::Disk;
use super::platform::ADAPTERS;
use crate::vm::Outcome;
use kaleidoscope_kvm::machine::{DeviceMemory, Devices, Machine};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A PC's first serial line: ports, and its interrupt.
const SERIAL: Range<u16> = 0x3f8..0x400;
const SERIAL_LINE: u32 = 4;

/// The host receives what the guest writes to this page. The guest needs no driver: it maps the
/// page through `/dev/mem`.
const WINDOW: Range<u64> = 0xd_0000..0xd_1000;
const _: () = assert!(ADAPTERS.start <= WINDOW.start && WINDOW.end <= ADAPTERS.end);

/// Most bytes of pending console input.
const MAX_INPUT_BYTES: usize = 64 << 10;

/// Raises the serial line's interrupt.
struct InterruptTrigger(EventFd);

impl Trigger for InterruptTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Writes the serial line's output to the console.
struct ConsoleWriter(Arc<Console>);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A serial line, and input that waits for room in its receive FIFO.
struct SerialPort {
    uart: Serial<InterruptTrigger, NoEvents, ConsoleWriter>,
    input: std::collections::VecDeque<u8>,
}

impl SerialPort {
    /// Moves as much input to the receive FIFO as fits.
    fn feed(&mut self) {
        let room = self.uart.fifo_capacity().min(self.input.len());
        let bytes: Vec<u8> = self.input.iter().copied().take(room).collect();
        if let Ok(taken) = self.uart.enqueue_raw_bytes(&bytes) {
            self.input.drain(..taken.min(room));
        }
    }
}

/// A disk, and its interrupt.
struct Storage {
    device: Mutex<BlockDevice>,
    interrupt: EventFd,
    /// The disk's contents at the last freeze.
    snapshot: Mutex<Option<Disk>>,
}

impl Storage {
    fn new(disk: Disk, registers: Registers) -> io::Result<Self> {
        let interrupt = EventFd::new(EFD_NONBLOCK)?;
        // As for the serial line, the interrupt may have been pending at the freeze.
        if registers.interrupts != 0 {
            interrupt.write(1)?;
        }
        let device = Mutex::new(BlockDevice::new(disk, registers));
        Ok(Self { device, interrupt, snapshot: Mutex::new(None) })
    }
}

/// All devices.
pub(crate) struct Platform {
    port: Mutex<SerialPort>,
    console: Arc<Console>,
    interrupt: EventFd,
    storage: Option<Storage>,
    /// The guest's memory; set by `connect`.
    memory: OnceLock<DeviceMemory>,
}

/// The bit of the interrupt identification register for "received data available" (PC16550D data
/// sheet, table 4).
const HAS_INPUT: u8 = 0x4;

/// Registers of the serial line and of the disk. Pending console input is not saved, because it
/// was sent to the parent.
#[derive(Serialize, Deserialize)]
struct SavedRegisters {
    storage: Option<Registers>,
    baud: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    modem: [u8; 2],
    scratch: u8,
}

impl Platform {
    /// Devices after power-on.
    pub(super) fn new(console: Arc<Console>, disk: Option<Disk>) -> Outcome<Self> {
        let storage = disk.map(|disk| Storage::new(disk, Registers::default())).transpose()?;
        Self::with(&SerialState::default(), console, storage)
    }

    /// Devices of a clone, from the saved state and the disk of a snapshot.
    pub(super) fn restored(
        saved: &[u8],
        disk: Option<Disk>,
        console: Arc<Console>,
    ) -> Outcome<Self> {
        let saved: SavedRegisters = serde_json::from_slice(saved)
            .map_err(|error| format!("the devices' saved state: {error}"))?;
        let storage = match (saved.storage, disk) {
            (Some(registers), Some(disk)) => Some(Storage::new(disk, registers)?),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err("the devices' saved state: a disk is missing or unexpected".into());
            }
        };
        let state = SerialState {
            baud_divisor_low: saved.baud[0],
            baud_divisor_high: saved.baud[1],
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification & !HAS_INPUT,
            line_control: saved.line_control,
            modem_control: saved.modem[0],
            modem_status: saved.modem[1],
            scratch: saved.scratch,
            ..SerialState::default()
        };
        let devices = Self::with(&state, console, storage)?;
        // The state lacks an interrupt that was pending when the parent was frozen. A spurious
        // interrupt does no harm.
        devices.interrupt.write(1)?;
        Ok(devices)
    }

    fn with(state: &SerialState, console: Arc<Console>, storage: Option<Storage>) -> Outcome<Self> {
        let interrupt = EventFd::new(EFD_NONBLOCK)?;
        let (trigger, line) =
            (InterruptTrigger(interrupt.try_clone()?), ConsoleWriter(Arc::clone(&console)));
        let uart = Serial::from_state(state, trigger, NoEvents, line)
            .map_err(|error| format!("the serial line: {error:?}"))?;
        let port = Mutex::new(SerialPort { uart, input: std::collections::VecDeque::new() });
        Ok(Self { port, console, interrupt, storage, memory: OnceLock::new() })
    }

    /// Connects interrupts, and gives the devices the machine's memory.
    pub(super) fn connect(&self, machine: &Machine) -> Outcome<()> {
        // A second call sets the same memory.
        let _ = self.memory.set(machine.device_memory());
        machine.connect(&self.interrupt, SERIAL_LINE)?;
        if let Some(storage) = &self.storage {
            machine.connect(&storage.interrupt, block::LINE)?;
        }
        Ok(())
    }

    /// Takes the disk's contents at the last freeze; `None` without a disk or a freeze.
    pub(super) fn frozen_disk(&self) -> Option<Disk> {
        self.storage.as_ref()?.snapshot.lock().take()
    }

    fn storage_at(&self, gpa: u64) -> Option<(&Storage, u64)> {
        let storage = self.storage.as_ref().filter(|_| block::REGISTERS.contains(&gpa))?;
        Some((storage, gpa - block::REGISTERS.start))
    }

    /// The host's end of the serial line.
    pub(crate) fn console(&self) -> &Console {
        &self.console
    }

    /// Sends text to the guest's console. Fails if the guest has not read earlier input.
    pub(crate) fn say(&self, text: &str) -> Outcome<()> {
        let mut port = self.port.lock();
        if port.input.len() + text.len() > MAX_INPUT_BYTES {
            return Err("the guest does not read its console".into());
        }
        port.input.extend(text.bytes());
        port.feed();
        Ok(())
    }
}

impl Devices for Platform {
    fn port_write(&self, _vcpu: usize, port: u16, bytes: &[u8]) {
        if let ([byte], true) = (bytes, SERIAL.contains(&port)) {
            let offset = (port - SERIAL.start).to_le_bytes()[0];
            // The write fails only if writing to the console's file does. The guest goes on.
            let _ = self.port.lock().uart.write(offset, *byte);
        }
    }

    fn port_read(&self, _vcpu: usize, port: u16, bytes: &mut [u8]) {
        bytes.fill(0xff);
        if let ([byte], true) = (bytes, SERIAL.contains(&port)) {
            let offset = (port - SERIAL.start).to_le_bytes()[0];
            let mut port = self.port.lock();
            *byte = port.uart.read(offset);
            port.feed();
        }
    }

    fn memory_write(&self, _vcpu: usize, gpa: u64, bytes: &[u8]) {
        if WINDOW.contains(&gpa) {
            self.console.store(bytes);
        }
        if let Some((storage, offset)) = self.storage_at(gpa)
            && let Some(memory) = self.memory.get()
            && storage.device.lock().write(offset, bytes, memory)
        {
            // The write fails only if the counter is full, and then the event is signaled.
            let _ = storage.interrupt.write(1);
        }
    }

    fn memory_read(&self, _vcpu: usize, gpa: u64, bytes: &mut [u8]) {
        bytes.fill(0xff);
        if let Some((storage, offset)) = self.storage_at(gpa) {
            storage.device.lock().read(offset, bytes);
        }
    }

    fn save(&self) -> Vec<u8> {
        let state = self.port.lock().uart.state();
        let storage = self.storage.as_ref().map(|storage| {
            let device = storage.device.lock();
            *storage.snapshot.lock() = Some(device.disk.clone());
            device.registers.clone()
        });
        let saved = SavedRegisters {
            storage,
            baud: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            modem: [state.modem_control, state.modem_status],
            scratch: state.scratch,
        };
        // Serializing plain numbers cannot fail.
        serde_json::to_vec(&saved).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(platform: &Platform, port: u16) -> u8 {
        let mut byte = [0];
        platform.port_read(0, port, &mut byte);
        byte[0]
    }

    #[test]
    fn a_clone_s_serial_line_is_its_parent_s_without_what_was_under_way() {
        let (heard, other) = (Arc::new(Console::default()), Arc::new(Console::default()));
        let parent = Platform::new(Arc::clone(&heard), None).unwrap();
        // Enable the receive interrupt, set the scratch register, write a character.
        parent.port_write(0, 0x3f9, &[1]);
        parent.port_write(0, 0x3ff, &[0x5a]);
        parent.port_write(0, 0x3f8, b"p");
        parent.say("for the parent").unwrap();
        let clone = Platform::restored(&parent.save(), None, Arc::clone(&other)).unwrap();
        assert_eq!((read(&clone, 0x3f9), read(&clone, 0x3ff)), (1, 0x5a));
        assert_eq!(read(&clone, 0x3fd) & 1, 0, "no input");
        clone.port_write(0, 0x3f8, b"c");
        assert_eq!((heard.last_lines(1), other.last_lines(1)), ("p".into(), "c".into()));
        assert!(Platform::restored(b"damaged", None, other).is_err());
    }

    #[test]
    fn a_clone_has_a_disk_if_its_parent_has() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 1024]).unwrap();
        let disk = Disk::open(file.path()).unwrap();
        let parent = Platform::new(Arc::default(), Some(disk.clone())).unwrap();
        let magic = |platform: &Platform| {
            let mut bytes = [0; 4];
            platform.memory_read(0, block::REGISTERS.start, &mut bytes);
            bytes
        };
        assert!(parent.frozen_disk().is_none(), "no freeze yet");
        let saved = parent.save();
        let snapshot = parent.frozen_disk();
        assert!(snapshot.is_some());
        let clone = Platform::restored(&saved, snapshot, Arc::default()).unwrap();
        assert_eq!((&magic(&parent), &magic(&clone)), (b"virt", b"virt"));
        assert!(Platform::restored(&saved, None, Arc::default()).is_err());

        let without = Platform::new(Arc::default(), None).unwrap();
        assert_eq!(magic(&without), [0xff; 4]);
        assert!(Platform::restored(&without.save(), Some(disk), Arc::default()).is_err());
    }

    #[test]
    fn an_interrupt_on_its_way_reaches_the_clone() {
        let parent = Platform::new(Arc::default(), None).unwrap();
        // Enable the receive and the transmitter-empty interrupt.
        parent.port_write(0, 0x3f9, &[3]);
        parent.port_write(0, 0x3f8, b"p");
        parent.say("x").unwrap();
        let clone = Platform::restored(&parent.save(), None, Arc::default()).unwrap();
        assert!(clone.interrupt.read().is_ok(), "the guest is told");
        assert_eq!(read(&clone, 0x3fa) & 0xf, 2, "room for output, and no input");
    }

    #[test]
    fn input_comes_as_the_guest_has_room() {
        let platform = Platform::new(Arc::default(), None).unwrap();
        platform.port_write(0, 0x3f9, &[1]);
        let text = "words ".repeat(40);
        platform.say(&text).unwrap();
        assert_eq!(platform.interrupt.read().unwrap(), 1, "the guest is told");
        let mut taken = String::new();
        while read(&platform, 0x3fd) & 1 == 1 {
            taken.push(char::from(read(&platform, 0x3f8)));
        }
        assert_eq!(taken, text);
        assert!(platform.say(&"x".repeat(MAX_INPUT_BYTES + 1)).is_err());
    }

    #[test]
    fn unassigned_ports_read_as_ones() {
        let console = Arc::new(Console::default());
        let platform = Platform::new(Arc::clone(&console), None).unwrap();
        assert_eq!(read(&platform, 0x70), 0xff);
        platform.memory_write(0, 0xd_0ff8, &[1, 2, 3]);
        platform.memory_write(0, 0xd_1000, &[4]);
        assert_eq!(console.take_data(), [1, 2, 3]);
        assert!(console.take_data().is_empty());
    }
}
