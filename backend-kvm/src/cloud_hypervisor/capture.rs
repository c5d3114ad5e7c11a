//! A running VM as an image: the receiver of a local migration that copies the memory.

use super::channel::Channel;
use super::codec::{Command, HEADER, Request, Response, SLOT};
use super::guest_ram::{GuestRam, MAX_SLOTS, RamSlot};
use crate::error::{Asked, Error, ErrorKind};
use crate::memory::{TMPFS, file_system};
use crate::uffd::receive;
use kaleidoscope_core::memory::{MemoryLayout, Page, is_zero};
use rustix::fs::{FileType, SeekFrom, fstat, seek};
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Most bytes of a VM's configuration.
const MAX_CONFIG: usize = 16 << 20;

/// Most bytes of a VM's state.
const MAX_STATE: usize = 64 << 20;

/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// File system types of memory (the second is HUGETLBFS_MAGIC): reading other files may wait for
/// ever.
const MEMORY: [i64; 2] = [TMPFS, 0x9584_58f6];

/// Why no memory files come.
const NOT_LOCAL: &str = "cloud-hypervisor sends no memory files: `send-migration` needs local=on, \
     and the VM shared memory (`--memory size=...,shared=on`)";

/// A VM whose memory has been copied, and that still waits: [acknowledge](Self::acknowledge) it
/// when all that it consists of is saved. If the value is dropped instead, the VMM is told that the
/// migration failed, and keeps its VM.
#[derive(Debug)]
#[must_use = "the VM stays paused, and keeps waiting, until its capture is acknowledged"]
pub struct Capture {
    channel: Channel,
    ram: GuestRam,
    config: Vec<u8>,
    state: Vec<u8>,
    was_running: bool,
    is_answered: bool,
}

/// Captures a VM that a cloud-hypervisor sends with `send-migration
/// destination_url=unix:SOCKET,local=on,preserve_source=on` to a socket where `stream` was
/// accepted. Copies all of its RAM to `memory`, which becomes the packed image: all RAM in the order
/// of guest-physical addresses, without the holes between; pages of zeros are holes of the file.
/// What was in `memory` before is lost. The file is not synchronized with its disk.
///
/// The VM is paused from its configuration on. Every wait for the VMM ends after `timeout`.
///
/// # Errors
/// - [`ErrorKind::Unsupported`] when the VM is not sent with `local=on`, or not by version 0 of the
///   protocol
/// - [`ErrorKind::InvalidInput`] when the VMM breaks the protocol, and when its memory files are no
///   memory files, or smaller than the configuration says
/// - [`ErrorKind::Ended`] when the VMM abandons the migration or closes the connection,
///   [`ErrorKind::Timeout`] when it sends nothing
/// - [`ErrorKind::Refused`] when the image cannot be written
///
/// The VMM is told, and keeps its VM.
pub fn capture(stream: UnixStream, memory: &File, timeout: Duration) -> Result<Capture, Error> {
    let channel = Channel::of(stream, timeout)?;
    let captured = walk(&channel, memory);
    match captured {
        Ok((ram, config, state, was_running)) => {
            Ok(Capture { channel, ram, config, state, was_running, is_answered: false })
        }
        Err(error) => {
            // If it cannot be told, it finds the connection closed.
            let _ = channel.send(&Response::ERROR.to_bytes(), "telling of a failure");
            Err(error)
        }
    }
}

impl Capture {
    /// The memory slots, by ascending guest-physical address.
    #[must_use]
    pub fn slots(&self) -> &[RamSlot] {
        self.ram.slots()
    }

    /// The layout of the image.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        self.ram.layout()
    }

    /// The configuration (JSON), for [`Session::builder`](super::Session::builder).
    #[must_use]
    pub fn config(&self) -> &[u8] {
        &self.config
    }

    /// The state of devices and vCPUs (JSON), for [`Session::builder`](super::Session::builder).
    #[must_use]
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// Whether the VM ran, and was paused for the capture.
    #[must_use]
    pub fn was_running(&self) -> bool {
        self.was_running
    }

    /// Tells the VMM that the VM has arrived. With `preserve_source=on` the VMM keeps the VM, paused;
    /// without it, and in 53.0, which does not have it, the VMM ends its VM.
    ///
    /// # Errors
    /// [`ErrorKind::Ended`] or [`ErrorKind::Timeout`] when the VMM cannot be told.
    pub fn acknowledge(mut self) -> Result<(), Error> {
        self.is_answered = true;
        self.channel.send(&Response::OK.to_bytes(), "acknowledging a capture")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !self.is_answered {
            let _ = self.channel.send(&Response::ERROR.to_bytes(), "giving up a capture");
        }
    }
}

/// What comes next.
fn next(channel: &Channel) -> Result<Request, Error> {
    let mut header = [0; HEADER];
    channel.receive(&mut header, "a step of a migration")?;
    let request = Request::parse(&header)?;
    if request.command == Command::Abandon {
        return Err(Error::new(ErrorKind::Ended, "cloud-hypervisor gave up the migration"));
    }
    Ok(request)
}

fn unexpected(request: Request, place: &str) -> Error {
    if request.command == Command::Memory {
        return Error::new(ErrorKind::Unsupported, NOT_LOCAL);
    }
    Error::input(format!("{:?} came {place}", request.command))
}

fn accept(channel: &Channel) -> Result<(), Error> {
    channel.send(&Response::OK.to_bytes(), "acknowledging a step of a migration")
}

/// The payload of a request.
fn payload(channel: &Channel, request: Request, most: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let length = request.bounded_length(most)?;
    // Memory is taken as bytes come, not as a length says.
    while bytes.len() < length {
        let start = bytes.len();
        bytes.resize(length.min(start.saturating_add(CHUNK)), 0);
        let rest = bytes.get_mut(start..).unwrap_or_default();
        channel.receive(rest, "the contents of a step of a migration")?;
    }
    Ok(bytes)
}

/// All steps but the last answer.
fn walk(channel: &Channel, memory: &File) -> Result<(GuestRam, Vec<u8>, Vec<u8>, bool), Error> {
    let request = next(channel)?;
    if request.command != Command::Start {
        return Err(unexpected(request, "before Start"));
    }
    request.check_length(0)?;
    accept(channel)?;

    let mut files: Vec<(u32, OwnedFd)> = Vec::new();
    let request = loop {
        let request = next(channel)?;
        if request.command != Command::MemoryFd {
            break request;
        }
        if files.len() >= MAX_SLOTS {
            return Err(Error::input(format!("more than {MAX_SLOTS} memory files came")));
        }
        request.check_length(SLOT)?;
        let (slot, file) = memory_file(channel)?;
        if files.iter().any(|(known, _)| *known == slot) {
            return Err(Error::input(format!("memory slot {slot} came twice")));
        }
        files.push((slot, file));
        accept(channel)?;
    };

    if request.command != Command::Config {
        return Err(unexpected(request, "where the configuration should"));
    }
    let config = payload(channel, request, MAX_CONFIG)?;
    let ram = GuestRam::parse(&config)?;
    if files.is_empty() {
        return Err(Error::new(ErrorKind::Unsupported, NOT_LOCAL));
    }
    let files = in_order(&ram, files)?;
    accept(channel)?;

    let request = next(channel)?;
    if request.command != Command::State {
        return Err(unexpected(request, "where the state should"));
    }
    let state = payload(channel, request, MAX_STATE)?;
    accept(channel)?;

    // From here on the VM does not run: devices and vCPUs have stopped.
    let request = next(channel)?;
    let was_running = request.command == Command::Complete;
    if !was_running && request.command != Command::CompletePaused {
        return Err(unexpected(request, "where the end should"));
    }
    request.check_length(0)?;
    memory.set_len(0).asked("emptying the image")?;
    memory.set_len(ram.bytes()).asked("sizing the image")?;
    let mut at = 0_u64;
    for (slot, file) in ram.slots().iter().zip(files) {
        copy(slot, &File::from(file), memory, at)?;
        at = at.saturating_add(slot.bytes);
    }
    Ok((ram, config, state, was_running))
}

/// A memory file, and the number of its slot.
fn memory_file(channel: &Channel) -> Result<(u32, OwnedFd), Error> {
    let end = channel.deadline();
    let hello = loop {
        match receive(channel.stream()) {
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => {
                if end.is_some_and(|end| std::time::Instant::now() >= end) {
                    return Err(Error::new(ErrorKind::Timeout, "a memory file did not come"));
                }
            }
            received => break received?,
        }
    };
    let slot = <[u8; SLOT]>::try_from(hello.message.as_slice());
    let slot = slot.map_err(|_| Error::input("a memory file came without its slot"))?;
    let count = hello.descriptors.len();
    let [file] = <[OwnedFd; 1]>::try_from(hello.descriptors)
        .map_err(|_| Error::input(format!("{count} descriptors came for a slot, not one")))?;
    Ok((u32::from_le_bytes(slot), file))
}

/// The files in the order of the slots, after they were looked at.
fn in_order(ram: &GuestRam, mut files: Vec<(u32, OwnedFd)>) -> Result<Vec<OwnedFd>, Error> {
    let mut all = Vec::with_capacity(files.len());
    for slot in ram.slots() {
        let number = slot.slot;
        let at = files.iter().position(|(known, _)| *known == number);
        let at =
            at.ok_or_else(|| Error::input(format!("memory slot {number} came without a file")))?;
        let (_, file) = files.swap_remove(at);
        let what = "looking at a memory file";
        let kind = file_system(&file).asked(what)?;
        let status = fstat(&file).asked(what)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile
            || !MEMORY.contains(&kind)
        {
            return Err(Error::input(format!("the file of memory slot {number} is not in memory")));
        }
        let size = u64::try_from(status.st_size).unwrap_or(0);
        let end = slot.file_offset.saturating_add(slot.bytes);
        if size < end {
            return Err(Error::input(format!(
                "the file of memory slot {number} has {size:#x} bytes, and {end:#x} are its memory"
            )));
        }
        all.push(file);
    }
    match files.first() {
        Some((number, _)) => Err(Error::input(format!("memory slot {number} is not configured"))),
        None => Ok(all),
    }
}

/// Copies a slot's memory to the image, at an offset. Holes and zeros stay holes.
fn copy(slot: &RamSlot, file: &File, memory: &File, at: u64) -> Result<(), Error> {
    let (reading, writing) = ("reading a VM's memory", "writing the image");
    let (mut from, end) = (slot.file_offset, slot.file_offset.saturating_add(slot.bytes));
    let mut buffer = vec![0; CHUNK];
    while from < end {
        // Where holes are not told (hugetlbfs), all is data.
        from = match seek(file, SeekFrom::Data(from)) {
            Ok(data) => data & !(size_of::<Page>() as u64 - 1),
            Err(Errno::NXIO) => break,
            Err(_) => from,
        };
        let hole = seek(file, SeekFrom::Hole(from)).unwrap_or(end);
        let hole = hole.next_multiple_of(size_of::<Page>() as u64).min(end);
        while from < hole {
            let left = usize::try_from(hole.saturating_sub(from)).unwrap_or(CHUNK).min(CHUNK);
            let bytes = buffer.get_mut(..left).unwrap_or_default();
            file.read_exact_at(bytes, from).asked(reading)?;
            let to = at.saturating_add(from.saturating_sub(slot.file_offset));
            write(bytes, memory, to).asked(writing)?;
            from = from.saturating_add(left as u64);
        }
    }
    Ok(())
}

/// Writes whole pages that are not zeros, adjacent ones at once.
fn write(bytes: &[u8], memory: &File, to: u64) -> std::io::Result<()> {
    let (pages, _) = bytes.as_chunks();
    let is_data = |page: &Page| !is_zero(page);
    let mut at = to;
    for run in pages.chunk_by(|a, b| is_data(a) == is_data(b)) {
        if run.first().is_some_and(is_data) {
            memory.write_all_at(run.as_flattened(), at)?;
        }
        at = at.saturating_add(run.as_flattened().len() as u64);
    }
    Ok(())
}
