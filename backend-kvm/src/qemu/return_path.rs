//! What the destination of a postcopy migration sends back.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::wire::{message, ping};
use crate::error::Error;
use kaleidoscope_core::addr::FRAME_SIZE;

/// A message of the destination that means something to a source of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Wanted {
    /// The guest waits for these bytes of the RAM block: whole 4 KiB pages.
    Pages {
        /// Where they begin in the block, in bytes.
        offset: u64,
        /// Their length in bytes.
        bytes: u64,
    },
    /// The destination has followed all commands before the first ping of
    /// [`PostcopySource`](super::PostcopySource): postcopy is possible there.
    Ready,
    /// The destination has followed all commands before the second ping: it has loaded the devices,
    /// and its guest runs next.
    Loaded,
    /// The migration has ended. Zero for success; a destination that fails sends another value.
    End(u32),
}

/// Parses the return path. Bytes go in as they arrive, messages come out when they are whole.
#[derive(Debug)]
pub struct ReturnPath {
    ram: String,
    ram_bytes: u64,
    /// Whether the block of the last request is the RAM.
    is_ram: Option<bool>,
    bytes: Vec<u8>,
}

/// Length of a message's type and length.
const HEAD: usize = 4;

impl ReturnPath {
    /// A return path on which pages of the RAM block `ram`, of `ram_bytes` bytes, are asked for.
    #[must_use]
    pub fn new(ram: &str, ram_bytes: u64) -> Self {
        Self { ram: ram.to_owned(), ram_bytes, is_ram: None, bytes: Vec::new() }
    }

    /// Takes bytes that arrived. Parse all messages before the next call: what is kept is then less
    /// than one message, 64 KiB.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// The next message that is whole. Requests for other blocks are passed over: their pages are
    /// sent before the guest runs.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) that names what the message
    /// lacks, and for messages that a destination of this kind of migration does not send.
    pub fn next_wanted(&mut self) -> Result<Option<Wanted>, Error> {
        while let Some((kind, length)) = self.head() {
            let Some(body) = self.bytes.get(HEAD..).and_then(|rest| rest.get(..length)) else {
                return Ok(None);
            };
            let body = body.to_vec();
            self.bytes.drain(..HEAD.saturating_add(length));
            let wanted = self.message(kind, &body).ok_or_else(|| {
                Error::input(format!(
                    "the destination sent message {kind} with {length} bytes, which is malformed"
                ))
            })??;
            if wanted.is_some() {
                return Ok(wanted);
            }
        }
        Ok(None)
    }

    /// Type and length of the first message.
    fn head(&self) -> Option<(u16, usize)> {
        let kind = u16::from_be_bytes(*self.bytes.first_chunk()?);
        let length = u16::from_be_bytes(*self.bytes.get(2..)?.first_chunk()?);
        Some((kind, usize::from(length)))
    }

    /// `None` for a body of another form.
    fn message(&mut self, kind: u16, body: &[u8]) -> Option<Result<Option<Wanted>, Error>> {
        match kind {
            message::SHUT => {
                let value = u32::from_be_bytes(body.try_into().ok()?);
                Some(Ok(Some(Wanted::End(value))))
            }
            message::PONG => match u32::from_be_bytes(body.try_into().ok()?) {
                ping::READY => Some(Ok(Some(Wanted::Ready))),
                ping::LOADED => Some(Ok(Some(Wanted::Loaded))),
                _ => None,
            },
            // Capabilities that this source does not offer would answer with the others.
            message::SWITCHOVER_ACK => body.is_empty().then_some(Ok(None)),
            message::REQ_PAGES | message::REQ_PAGES_ID => {
                let (offset, rest) = body.split_first_chunk()?;
                let (length, name) = rest.split_first_chunk()?;
                if kind == message::REQ_PAGES_ID {
                    let (count, name) = name.split_first()?;
                    (usize::from(*count) == name.len()).then_some(())?;
                    self.is_ram = Some(name == self.ram.as_bytes());
                } else {
                    name.is_empty().then_some(())?;
                }
                let (offset, length) = (u64::from_be_bytes(*offset), u32::from_be_bytes(*length));
                Some(self.pages(offset, u64::from(length)))
            }
            message::RECV_BITMAP | message::RESUME_ACK => Some(Err(Error::input(
                "the destination wants to recover a migration that was interrupted",
            ))),
            _ => Some(Err(Error::input(format!(
                "the destination sent message {kind}, which is not known"
            )))),
        }
    }

    fn pages(&self, offset: u64, bytes: u64) -> Result<Option<Wanted>, Error> {
        match self.is_ram {
            Some(true) => {}
            Some(false) => return Ok(None),
            None => return Err(Error::input("the destination's first request names no block")),
        }
        let end = offset.checked_add(bytes).filter(|end| *end <= self.ram_bytes);
        let is_whole = offset.is_multiple_of(FRAME_SIZE) && bytes.is_multiple_of(FRAME_SIZE);
        if end.is_none() || !is_whole || bytes == 0 {
            return Err(Error::input(format!(
                "the destination asks for {bytes:#x} bytes at {offset:#x} of {:#x} bytes of RAM",
                self.ram_bytes
            )));
        }
        Ok(Some(Wanted::Pages { offset, bytes }))
    }
}
