//! The page server's protocol: bytes in, messages out, and the other way round. No sockets, no
//! clocks.
//!
//! A client says hello, the server welcomes or refuses it; then requests go one way and replies the
//! other, each stream on its own. `docs/formats.md` has every byte. Both readers take what the
//! other side sends as hostile: lengths are checked before they are used, nothing is allocated that
//! the other side can size, and every error names the byte where it was found.

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

/// Version of the protocol. A new number only when old programs would go wrong; what they can
/// ignore is a feature.
pub const VERSION: u32 = 1;

/// Most pages in one reply.
pub const MAX_BATCH: usize = 64;

/// Most runs in one request.
pub const MAX_RUNS: usize = 1024;

/// Most bytes of a descriptor in one reply.
pub const MAX_CHUNK: usize = 64 << 10;

/// Most bytes of text in a refusal or an error message.
pub const MAX_TEXT: usize = 512;

/// Most frames that a client may keep unanswered on one connection, whatever a server offers.
pub const MAX_PENDING: u32 = 1 << 20;

/// Most bytes of a descriptor: servers refuse to start with a larger one, and clients take none
/// unless told so.
pub const MAX_DESCRIPTOR: u32 = 1 << 30;
