//! Violations of the protocol by the peer.

use crate::addr::FrameIndex;
use thiserror::Error;

/// A message that violates the protocol, or arrived damaged.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("byte {offset} of the stream: {violation}")]
pub struct ProtocolError {
    /// Byte offset in the peer's stream on this connection.
    pub offset: u64,
    /// The violation.
    pub violation: Violation,
}

/// How a message violates the protocol.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum Violation {
    /// The stream does not start with the protocol's magic bytes.
    #[error("this is not the page server's protocol")]
    Magic,
    /// The peer uses another version.
    #[error("version {found} of the protocol instead of {}", super::VERSION)]
    Version {
        /// The peer's version.
        found: u32,
    },
    /// An unknown message type.
    #[error("message of unknown type {found}")]
    Type {
        /// The type.
        found: u8,
    },
    /// A value that its field does not allow.
    #[error("{field} is {found}, which is not allowed")]
    Value {
        /// The field's name in the description of the protocol.
        field: &'static str,
        /// The value.
        found: u64,
    },
    /// A value above its limit.
    #[error("{field} is {found}, more than {most}")]
    TooLarge {
        /// The field's name in the description of the protocol.
        field: &'static str,
        /// The value.
        found: u64,
        /// The limit, inclusive.
        most: u64,
    },
    /// A run that is not inside the image.
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
        /// The stated length in bytes.
        found: u64,
        /// The sum of its parts in bytes.
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
    /// The checksum of a chunk of the descriptor does not match.
    #[error("the checksum of the descriptor's chunk is wrong")]
    DescriptorChecksum,
    /// A page that was not requested on this connection.
    #[error("frame {frame} was not requested")]
    NotAskedFor {
        /// The frame.
        frame: FrameIndex,
    },
    /// More second copies of pages than there were second requests.
    #[error("frame {frame} arrived more often than it was requested")]
    Repeated {
        /// The frame.
        frame: FrameIndex,
    },
    /// A reply of a type that was not requested.
    #[error("an unrequested reply")]
    Unexpected,
}
