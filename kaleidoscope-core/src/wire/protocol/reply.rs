//! The parts of a server's replies.

use super::fields::{Fields, Writer, cut};
use super::{Codec, MAX_TEXT};
use crate::addr::{FRAME_BYTES, FrameIndex};
use std::fmt;
use twox_hash::XxHash3_64;

/// Bytes of a reply's head.
pub const REPLY_BYTES: usize = 8;

/// Bytes of a page's entry.
pub const ENTRY_BYTES: usize = 16;

/// Bytes of the head of a reply with a chunk of the descriptor.
pub(super) const DESCRIPTOR_BYTES: usize = 24;

pub(super) const PAGES: u8 = 1;
pub(super) const DESCRIPTOR: u8 = 2;
pub(super) const ERROR: u8 = 3;

/// Encoding of a page's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stored {
    /// Uncompressed.
    Raw,
    /// No bytes: the page is zeros.
    Zero,
    /// Compressed.
    Compressed(Codec),
    /// No bytes: the image does not hold the frame.
    Unavailable,
}

impl Stored {
    fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zero => 1,
            Self::Compressed(Codec::Lz4) => 2,
            Self::Compressed(Codec::Zstd) => 3,
            Self::Unavailable => 4,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        let known = [
            Self::Raw,
            Self::Zero,
            Self::Compressed(Codec::Lz4),
            Self::Compressed(Codec::Zstd),
            Self::Unavailable,
        ];
        known.get(usize::from(code)).copied()
    }

    /// Whether `bytes` is a valid length for this encoding.
    pub(super) fn allows(self, bytes: usize) -> bool {
        match self {
            Self::Raw => bytes == FRAME_BYTES,
            Self::Zero | Self::Unavailable => bytes == 0,
            Self::Compressed(_) => bytes > 0 && bytes < FRAME_BYTES,
        }
    }
}

/// Description of one page of a reply. All entries precede the pages' bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The frame.
    pub frame: FrameIndex,
    /// Encoding of its bytes.
    pub stored: Stored,
    /// Number of bytes sent.
    pub bytes: u16,
    /// [`checksum`](super::checksum) of the page, or 0 if checksums are off.
    pub checksum: u64,
}

impl Entry {
    /// Encodes the entry.
    #[inline]
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        Writer::new()
            .put(self.frame.0.to_le_bytes())
            .put([self.stored.code(), 0])
            .put(self.bytes.to_le_bytes())
            .put(self.checksum.to_le_bytes())
            .finish()
    }
}

/// The head of a reply with pages; their entries follow, then their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagesHead {
    /// Number of pages, 1 to [`MAX_BATCH`](super::MAX_BATCH).
    pub pages: u16,
    /// Number of bytes after the head.
    pub bytes: u32,
}

impl PagesHead {
    /// Encodes the head.
    #[must_use]
    pub fn encode(&self) -> [u8; REPLY_BYTES] {
        head(PAGES, self.pages, self.bytes)
    }
}

fn head(kind: u8, count: u16, bytes: u32) -> [u8; REPLY_BYTES] {
    Writer::new().put([kind, 0]).put(count.to_le_bytes()).put(bytes.to_le_bytes()).finish()
}

/// The head of a reply with a chunk of the descriptor, whose bytes follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DescriptorHead {
    /// Byte offset of the chunk in the descriptor.
    pub offset: u32,
    /// XXH3-64 of the bytes with the offset as the seed.
    pub checksum: u64,
}

impl DescriptorHead {
    /// The head for a chunk of the descriptor at `offset`.
    #[must_use]
    pub fn new(offset: u32, bytes: &[u8]) -> Self {
        Self { offset, checksum: XxHash3_64::oneshot_with_seed(offset.into(), bytes) }
    }

    /// Encodes the head for a chunk of `bytes` bytes.
    #[must_use]
    pub fn encode(&self, bytes: usize) -> [u8; DESCRIPTOR_BYTES] {
        let bytes = u32::try_from(bytes.saturating_add(DESCRIPTOR_BYTES - REPLY_BYTES));
        Writer::new()
            .put(head(DESCRIPTOR, 0, bytes.unwrap_or(u32::MAX)))
            .put(self.offset.to_le_bytes())
            .put([0; 4])
            .put(self.checksum.to_le_bytes())
            .finish()
    }
}

/// Why a server ends a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The client broke the protocol.
    Malformed,
    /// The client has more frames unanswered than allowed.
    TooMuch,
    /// The image can no longer be read.
    Image,
    /// The server is being stopped.
    Stopping,
    /// The client requested nothing for a long time.
    Idle,
    /// A reason that this version does not define.
    Other(u16),
}

impl ErrorCode {
    fn code(self) -> u16 {
        match self {
            Self::Malformed => 1,
            Self::TooMuch => 2,
            Self::Image => 3,
            Self::Stopping => 4,
            Self::Idle => 5,
            Self::Other(code) => code,
        }
    }

    pub(super) fn from_code(code: u16) -> Self {
        match code {
            1 => Self::Malformed,
            2 => Self::TooMuch,
            3 => Self::Image,
            4 => Self::Stopping,
            5 => Self::Idle,
            code => Self::Other(code),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("the protocol was broken"),
            Self::TooMuch => f.write_str("too many frames unanswered"),
            Self::Image => f.write_str("the image cannot be read"),
            Self::Stopping => f.write_str("the server is being stopped"),
            Self::Idle => f.write_str("no request for a long time"),
            Self::Other(code) => write!(f, "reason {code}"),
        }
    }
}

/// Encodes a server's last message, with a text for humans, truncated to [`MAX_TEXT`] bytes.
#[must_use]
pub fn error_message(code: ErrorCode, text: &str) -> Vec<u8> {
    let text = cut(text, MAX_TEXT);
    let head = head(ERROR, code.code(), u32::try_from(text.len()).unwrap_or(0));
    [&head, text.as_bytes()].concat()
}

/// Splits a head into type, flags, count and bytes.
pub(super) fn split_head(bytes: &[u8; REPLY_BYTES]) -> (u8, u8, u16, u32) {
    let mut fields = Fields(bytes);
    (fields.u8(), fields.u8(), fields.u16(), fields.u32())
}
