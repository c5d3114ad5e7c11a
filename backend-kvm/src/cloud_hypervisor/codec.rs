//! Messages of cloud-hypervisor's migration protocol, version 0, as bytes. No I/O.
//!
//! All numbers are little endian. A request has a header of 16 bytes and may have a payload; each
//! is answered by a response, of 16 bytes and perhaps a payload.
//!
//! ```text
//! request   u16 command  u16 version (Start)  4 bytes unused  u64 length of the payload
//! response  u16 status   6 bytes unused                       u64 length of the payload
//! ```

use crate::error::{Error, ErrorKind};
use kaleidoscope_core::addr::{FRAME_SIZE, Gpa};

/// Bytes of a request without its payload, and of a response without its payload.
pub const HEADER: usize = 16;

/// Bytes of the payload of [`Command::PageFault`].
pub const FAULT: usize = 16;

/// Bytes of the payload of [`Command::MemoryFd`]: the number of the memory slot.
pub const SLOT: usize = 4;

/// The first bytes of a connection for page faults.
pub const FAULT_ROLE: [u8; 2] = 2_u16.to_le_bytes();

/// Version of the protocol.
pub const VERSION: u16 = 0;

/// Largest page that is asked for, in bytes: a huge page of x86.
pub const MAX_PAGE: u64 = 2 << 20;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Command {
    /// Begins a migration.
    Start,
    /// The VM's configuration, as JSON.
    Config,
    /// The state of devices and vCPUs, as JSON.
    State,
    /// Contents of memory.
    Memory,
    /// The VM runs on at the receiver.
    Complete,
    /// The migration is given up.
    Abandon,
    /// A file of memory, beside the message.
    MemoryFd,
    /// The VM is left paused at the receiver.
    CompletePaused,
    /// A page that the receiver needs.
    PageFault,
}

/// Commands by their numbers, from 1 on.
const COMMANDS: [Command; 9] = [
    Command::Start,
    Command::Config,
    Command::State,
    Command::Memory,
    Command::Complete,
    Command::Abandon,
    Command::MemoryFd,
    Command::CompletePaused,
    Command::PageFault,
];

impl Command {
    /// Its number.
    fn number(self) -> u16 {
        let at = COMMANDS.iter().position(|command| *command == self);
        at.and_then(|at| u16::try_from(at + 1).ok()).unwrap_or(0)
    }

    /// The command of a number.
    fn of(number: u16) -> Option<Self> {
        COMMANDS.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// The header of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "the fields are those of the protocol")]
pub struct Request {
    /// What it asks for.
    pub command: Command,
    /// Version of the sender's protocol, of [`Command::Start`]. 0 in others.
    pub version: u16,
    /// Bytes of the payload.
    pub length: u64,
}

impl Request {
    /// A request with a payload of `length` bytes.
    #[must_use]
    pub fn new(command: Command, length: u64) -> Self {
        Self { command, version: VERSION, length }
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let [command, version] = [self.command.number(), self.version].map(u16::to_le_bytes);
        header(command, version, self.length)
    }

    /// Parses a header.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an unknown command, and for a Start of another version.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, Error> {
        let (number, version, length) = fields(bytes);
        let command = Command::of(number).ok_or_else(|| {
            let what = format!("a request has the command {number}, which is not known");
            Error::new(ErrorKind::Unsupported, what)
        })?;
        // The unused bytes of other commands mean nothing.
        if command == Command::Start && version != VERSION {
            let what = format!("version {version} of the migration protocol is not known");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        Ok(Self { command, version: VERSION, length })
    }

    /// Checks that the payload has this length.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names both lengths.
    pub fn check_length(&self, expected: usize) -> Result<(), Error> {
        if usize::try_from(self.length) == Ok(expected) {
            return Ok(());
        }
        let Self { command, length, .. } = self;
        Err(Error::input(format!("{command:?} has {length} bytes, and {expected} were expected")))
    }

    /// Checks that the payload has at least one byte, and at most `most`; returns its length.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names both lengths.
    pub fn bounded_length(&self, most: usize) -> Result<usize, Error> {
        let Self { command, length, .. } = self;
        match usize::try_from(*length) {
            Ok(length) if (1..=most).contains(&length) => Ok(length),
            Ok(_) | Err(_) => {
                Err(Error::input(format!("{command:?} has {length} bytes; at most {most}")))
            }
        }
    }
}

/// The header of a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "the fields are those of the protocol")]
pub struct Response {
    /// Whether the request succeeded.
    pub is_ok: bool,
    /// Bytes of the payload.
    pub length: u64,
}

impl Response {
    /// The request succeeded.
    pub const OK: Self = Self { is_ok: true, length: 0 };

    /// The request failed.
    pub const ERROR: Self = Self { is_ok: false, length: 0 };

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER] {
        let status: u16 = if self.is_ok { 1 } else { 2 };
        header(status.to_le_bytes(), [0; 2], self.length)
    }

    /// Parses a header.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an unknown status.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, Error> {
        let (status, _, length) = fields(bytes);
        match status {
            1 => Ok(Self { is_ok: true, length }),
            2 => Ok(Self { is_ok: false, length }),
            _ => Err(Error::input(format!("a response has the status {status}, which is unknown"))),
        }
    }
}

/// The payload of [`Command::PageFault`]: guest memory that the receiver needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "the fields are those of the protocol")]
pub struct Fault {
    /// Guest-physical address of the first byte.
    pub gpa: Gpa,
    /// Length in bytes.
    pub length: u64,
}

impl Fault {
    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; FAULT] {
        let [gpa, length] = [self.gpa.0, self.length].map(u64::to_le_bytes);
        let mut bytes = [0; FAULT];
        bytes.iter_mut().zip(gpa.into_iter().chain(length)).for_each(|(to, from)| *to = from);
        bytes
    }

    /// Parses a payload. The range is of whole frames, ends in the address space, and is no larger
    /// than [`MAX_PAGE`]; whether the guest has RAM there is for the caller to check.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names the range.
    pub fn parse(bytes: &[u8; FAULT]) -> Result<Self, Error> {
        let (words, _) = bytes.as_chunks();
        let word = |n: usize| words.get(n).map_or(0, |word: &[u8; 8]| u64::from_le_bytes(*word));
        let (gpa, length) = (Gpa(word(0)), word(1));
        let is_whole = gpa.0.is_multiple_of(FRAME_SIZE) && length.is_multiple_of(FRAME_SIZE);
        let is_bounded = (1..=MAX_PAGE).contains(&length) && gpa.0.checked_add(length).is_some();
        if is_whole && is_bounded {
            return Ok(Self { gpa, length });
        }
        Err(Error::input(format!(
            "{length:#x} bytes at {gpa} were asked for: no page of at most {MAX_PAGE:#x} bytes"
        )))
    }
}

/// A header: a number, a version, unused bytes, and a length.
fn header(number: [u8; 2], version: [u8; 2], length: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let fields = number.into_iter().chain(version).chain([0; 4]).chain(length.to_le_bytes());
    bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    bytes
}

/// The number, the version and the length of a header.
fn fields(bytes: &[u8; HEADER]) -> (u16, u16, u64) {
    let [a, b, c, d, _, _, _, _, length @ ..] = *bytes;
    (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]), u64::from_le_bytes(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_are_those_of_the_protocol() {
        let start = Request::new(Command::Start, 0).to_bytes();
        assert_eq!(start, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let fault = Request::new(Command::PageFault, 16).to_bytes();
        assert_eq!(fault, [9, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0]);
        let page = Response { is_ok: true, length: 0x1000 }.to_bytes();
        assert_eq!(page, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Response::ERROR.to_bytes(), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let range = Fault { gpa: Gpa(0x1_0000_3000), length: 0x1000 }.to_bytes();
        assert_eq!(range, [0, 0x30, 0, 0, 1, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!(FAULT_ROLE, [2, 0]);
    }

    #[test]
    fn what_is_written_is_read() {
        for (number, command) in (1_u16..).zip(COMMANDS) {
            let request = Request::new(command, 7);
            assert_eq!(Request::parse(&request.to_bytes()).unwrap(), request);
            assert_eq!(command.number(), number);
        }
        for response in [Response::OK, Response::ERROR, Response { is_ok: true, length: 9 }] {
            assert_eq!(Response::parse(&response.to_bytes()).unwrap(), response);
        }
    }

    #[test]
    fn wrong_messages_are_errors() {
        let error = |bytes: &[u8; HEADER]| Request::parse(bytes).unwrap_err();
        for number in [0, 10] {
            let mut bytes = [0; HEADER];
            bytes[0] = number;
            assert_eq!(error(&bytes).kind(), ErrorKind::Unsupported);
        }
        let later = Request { command: Command::Start, version: 1, length: 0 };
        assert!(error(&later.to_bytes()).to_string().contains("version 1"));
        for status in [0, 3] {
            let mut bytes = [0; HEADER];
            bytes[0] = status;
            assert!(Response::parse(&bytes).unwrap_err().to_string().contains("status"));
        }
        let request = Request::new(Command::State, u64::MAX);
        assert!(request.bounded_length(100).is_err() && request.check_length(4).is_err());
        assert_eq!(Request::new(Command::State, 100).bounded_length(100).unwrap(), 100);
        assert!(Request::new(Command::State, 0).bounded_length(100).is_err());
        for (gpa, length) in [
            (1, 0x1000),
            (0x1000, 0),
            (0x1000, 0x800),
            (0, MAX_PAGE + 0x1000),
            (u64::MAX - 0xfff, 0x1000),
            (0, u64::MAX - 0xfff),
        ] {
            let bytes = Fault { gpa: Gpa(gpa), length }.to_bytes();
            let error = Fault::parse(&bytes).unwrap_err().to_string();
            assert!(error.contains("were asked for"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in any::<[u8; HEADER]>()) {
            if let Ok(request) = Request::parse(&bytes) {
                prop_assert_eq!(Request::parse(&request.to_bytes()).unwrap(), request);
            }
            if let Ok(response) = Response::parse(&bytes) {
                prop_assert_eq!(Response::parse(&response.to_bytes()).unwrap(), response);
            }
            if let Ok(fault) = Fault::parse(&bytes) {
                prop_assert_eq!(fault.to_bytes(), bytes);
            }
        }
    }
}
