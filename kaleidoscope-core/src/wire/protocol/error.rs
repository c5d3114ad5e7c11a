//! What can be wrong with what the other side sent.

use crate::addr::FrameIndex;
use thiserror::Error;

/// A message that breaks the protocol, or arrived damaged.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("byte {offset} of the stream: {violation}")]
pub struct ProtocolError {
    /// Where: bytes from the start of what the other side sent on this connection.
    pub offset: u64,
    /// What is wrong.
    pub violation: Violation,
}

/// How a message breaks the protocol.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum Violation {
    /// The first bytes are those of another protocol.
    #[error("this is not the page server's protocol")]
    Magic,
    /// The other side speaks another version.
    #[error("version {found} of the protocol instead of {}", super::VERSION)]
    Version {
        /// The other side's version.
        found: u32,
    },
    /// A type of message that does not exist.
    #[error("message of unknown type {found}")]
    Type {
        /// The type.
        found: u8,
    },
    /// A number that is not allowed in its place.
    #[error("{field} is {found}, which is not allowed")]
    Value {
        /// The field's name in the description of the protocol.
        field: &'static str,
        /// What it holds.
        found: u64,
    },
    /// A number above its bound.
    #[error("{field} is {found}, more than {most}")]
    TooLarge {
        /// The field's name in the description of the protocol.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// The bound.
        most: u64,
    },
    /// Frames outside the image.
    #[error("frames {first}..+{frames} are not all in the image of {image} frames")]
    OutsideImage {
        /// First frame.
        first: u32,
        /// Number of frames.
        frames: u32,
        /// Frames of the image.
        image: u32,
    },
    /// A message's length is not the sum of its parts.
    #[error("the message has {found} bytes where its parts have {expected}")]
    Length {
        /// The length that it states.
        found: u64,
        /// The length of its parts.
        expected: u64,
    },
    /// A compressed page does not expand to 4096 bytes.
    #[error("the compressed bytes of frame {frame} are damaged")]
    Compression {
        /// The frame.
        frame: FrameIndex,
    },
    /// A checksum does not match.
    #[error("the checksum of frame {frame} is wrong")]
    Checksum {
        /// The frame.
        frame: FrameIndex,
    },
    /// The checksum of a part of the descriptor does not match.
    #[error("the checksum of the descriptor's part is wrong")]
    DescriptorChecksum,
    /// A page that nobody asked for on this connection.
    #[error("frame {frame} was not asked for")]
    NotAskedFor {
        /// The frame.
        frame: FrameIndex,
    },
    /// More second copies of pages than there were second requests.
    #[error("frame {frame} came more often than it was asked for")]
    Repeated {
        /// The frame.
        frame: FrameIndex,
    },
    /// A reply that does not belong here.
    #[error("a reply that nobody asked for")]
    Unexpected,
}
