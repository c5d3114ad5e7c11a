//! The page server's protocol as a pure codec between bytes and messages, without sockets or
//! clocks.
//!
//! A client sends a hello, and the server welcomes or refuses it. Then requests flow one way and
//! replies the other, as independent streams. `docs/formats.md` describes every byte. Both readers
//! treat their input as hostile: lengths are checked before use, no allocation has a size that the
//! peer chooses, and every error states the byte offset at which it was found.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[cfg(test)]
mod doc_example;
mod error;
mod features;
mod fields;
mod hello;
mod inbox;
mod page;
mod reply;
mod reply_reader;
mod request;
#[cfg(test)]
mod tests;

pub use error::{ProtocolError, Violation};
pub use features::{Codec, Codecs, Features};
pub use hello::{HELLO_BYTES, Hello, Refusal, WELCOME_BYTES, Welcome, WelcomeHead};
pub use inbox::Inbox;
pub use page::{PageDecoder, PageEncoder, checksum};
pub use reply::{
    DescriptorHead, ENTRY_BYTES, Entry, ErrorCode, PagesHead, REPLY_BYTES, Stored, error_message,
};
pub use reply_reader::{Reply, ReplyLimits, ReplyReader};
pub use request::{
    FetchEncoder, REQUEST_BYTES, Request, RequestLimits, RequestReader, Run, Runs,
    descriptor_request,
};

/// Version of the protocol. Incremented only for changes that break old programs; anything that
/// they can ignore is a feature.
pub const VERSION: u32 = 1;

/// Most pages in one reply.
pub const MAX_BATCH: usize = 64;

/// Most runs in one request.
pub const MAX_RUNS: usize = 1024;

/// Most bytes of a descriptor in one reply.
pub const MAX_CHUNK: usize = 64 << 10;

/// Most bytes of text in a refusal or an error message.
pub const MAX_TEXT: usize = 512;

/// Most frames that a client may have unanswered on one connection, whatever a server offers.
pub const MAX_PENDING: u32 = 1 << 20;

/// Most bytes of a descriptor: servers refuse to start with a larger one, and clients accept none
/// unless configured to.
pub const MAX_DESCRIPTOR: u32 = 1 << 30;
