//! The first message of each side: the hello, and the welcome or refusal.

use super::fields::{Fields, Writer, cut};
use super::{Features, MAX_BATCH, MAX_PENDING, MAX_TEXT, ProtocolError, VERSION, Violation};
use crate::clone::CloneId;
use std::fmt;
use std::num::NonZeroU32;

/// First bytes of both streams.
const MAGIC: [u8; 8] = *b"KSWIRE\r\n";

/// Bytes of a [`Hello`].
pub const HELLO_BYTES: usize = 72;

/// Bytes of a [`WelcomeHead`]; the text of a refusal follows.
pub const WELCOME_BYTES: usize = 72;

/// The client's first message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The requested features.
    pub features: Features,
    /// Digest of the wanted image; all zeros for the only image of the server.
    pub image: [u8; 32],
    /// Identity of the clone, for the server's records.
    pub clone: CloneId,
    /// Most pages that the client accepts in one reply, 1 to [`MAX_BATCH`].
    pub batch: u32,
}

/// The server's answer if it accepts the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The features of this connection, a subset of the requested ones.
    pub features: Features,
    /// Digest of the image.
    pub image: [u8; 32],
    /// Frames of the image.
    pub frames: NonZeroU32,
    /// Most frames that the client may have unanswered, 1 to [`MAX_PENDING`].
    pub pending: NonZeroU32,
    /// Most pages in one reply, 1 to [`MAX_BATCH`].
    pub batch: u32,
    /// Bytes of the descriptor; 0 if there is none.
    pub descriptor: u32,
}

/// Why a server refuses a client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// The hello is not understood.
    Malformed,
    /// The server does not support the client's version.
    Version,
    /// The server has no such image.
    Image,
    /// The client named no image, and the server has several.
    Ambiguous,
    /// The server, or the client's share of it, is full.
    Busy,
    /// A reason that this version does not define.
    Other(u32),
}

impl Refusal {
    fn code(self) -> u32 {
        match self {
            Self::Malformed => 1,
            Self::Version => 2,
            Self::Image => 3,
            Self::Ambiguous => 4,
            Self::Busy => 5,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Malformed,
            2 => Self::Version,
            3 => Self::Image,
            4 => Self::Ambiguous,
            5 => Self::Busy,
            code => Self::Other(code),
        }
    }

    /// Whether the same client would be refused again later.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Malformed | Self::Version | Self::Image | Self::Ambiguous => true,
            Self::Busy | Self::Other(_) => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("the hello is not understood"),
            Self::Version => f.write_str("other version of the protocol"),
            Self::Image => f.write_str("no such image"),
            Self::Ambiguous => f.write_str("several images, and none was named"),
            Self::Busy => f.write_str("busy"),
            Self::Other(code) => write!(f, "reason {code}"),
        }
    }
}

/// The fixed part of a server's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WelcomeHead {
    /// Welcome; nothing follows.
    Welcome(Welcome),
    /// A refusal; this many bytes of text follow, then the end of the stream.
    Refused(Refusal, usize),
}

fn at(offset: u64, violation: Violation) -> ProtocolError {
    ProtocolError { offset, violation }
}

/// Checks that a number is within 1 to `most`, inclusive.
fn within(offset: u64, field: &'static str, found: u32, most: u32) -> Result<u32, ProtocolError> {
    if found == 0 {
        return Err(at(offset, Violation::Value { field, found: 0 }));
    }
    if found > most {
        let (found, most) = (found.into(), most.into());
        return Err(at(offset, Violation::TooLarge { field, found, most }));
    }
    Ok(found)
}

/// [`MAX_BATCH`] in the type of the field.
fn max_batch() -> u32 {
    u32::try_from(MAX_BATCH).unwrap_or(u32::MAX)
}

impl Hello {
    /// Encodes the message.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        Writer::new()
            .put(MAGIC)
            .put(VERSION.to_le_bytes())
            .put(self.features.bits().to_le_bytes())
            .put(self.image)
            .put(self.clone.0)
            .put(self.batch.to_le_bytes())
            .put([0; 4])
            .finish()
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// [`ProtocolError`] if the protocol or version is another one, or a value is not allowed.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(bytes);
        check_start(&mut fields)?;
        let features = Features::from_bits(fields.u32());
        let image = fields.array();
        let clone = CloneId(fields.array());
        let batch = within(64, "batch", fields.u32(), u32::MAX)?.min(max_batch());
        Ok(Self { features, image, clone, batch })
    }
}

/// Checks magic and version.
fn check_start(fields: &mut Fields<'_>) -> Result<(), ProtocolError> {
    if fields.array() != MAGIC {
        return Err(at(0, Violation::Magic));
    }
    match fields.u32() {
        VERSION => Ok(()),
        found => Err(at(8, Violation::Version { found })),
    }
}

impl Welcome {
    /// Encodes the message.
    #[must_use]
    pub fn encode(&self) -> [u8; WELCOME_BYTES] {
        Writer::new()
            .put(MAGIC)
            .put(VERSION.to_le_bytes())
            .put([0; 4])
            .put(self.features.bits().to_le_bytes())
            .put(self.frames.get().to_le_bytes())
            .put(self.image)
            .put(self.pending.get().to_le_bytes())
            .put(self.batch.to_le_bytes())
            .put(self.descriptor.to_le_bytes())
            .put([0; 4])
            .finish()
    }

    /// Encodes a refusal with a text for humans, truncated to [`MAX_TEXT`] bytes.
    #[must_use]
    pub fn refuse(refusal: Refusal, text: &str) -> Vec<u8> {
        let text = cut(text, MAX_TEXT);
        let length = u32::try_from(text.len()).unwrap_or(0);
        let head: [u8; WELCOME_BYTES] = Writer::new()
            .put(MAGIC)
            .put(VERSION.to_le_bytes())
            .put(refusal.code().to_le_bytes())
            .put([0; 52])
            .put(length.to_le_bytes())
            .finish();
        [&head, text.as_bytes()].concat()
    }
}

impl WelcomeHead {
    /// Decodes the fixed part of a server's answer to `hello`.
    ///
    /// # Errors
    /// [`ProtocolError`] if the protocol or version is another one, a feature was not requested, or
    /// a value is not allowed.
    pub fn decode(bytes: &[u8; WELCOME_BYTES], hello: &Hello) -> Result<Self, ProtocolError> {
        let mut fields = Fields(bytes);
        check_start(&mut fields)?;
        let code = fields.u32();
        if code != 0 {
            let mut end = Fields(bytes.last_chunk::<4>().map_or(&[], |end| end.as_slice()));
            let found = end.u32();
            let length =
                usize::try_from(found).ok().filter(|n| *n <= MAX_TEXT).ok_or_else(|| {
                    let most = u64::try_from(MAX_TEXT).unwrap_or(u64::MAX);
                    at(68, Violation::TooLarge { field: "text", found: found.into(), most })
                })?;
            return Ok(Self::Refused(Refusal::from_code(code), length));
        }
        let bits = fields.u32();
        if bits & !hello.features.bits() != 0 {
            return Err(at(16, Violation::Value { field: "features", found: bits.into() }));
        }
        let frames = within(20, "frames", fields.u32(), u32::MAX)?;
        let image: [u8; 32] = fields.array();
        let pending = within(56, "pending", fields.u32(), MAX_PENDING)?;
        let batch = within(60, "batch", fields.u32(), hello.batch.min(max_batch()))?;
        let descriptor = fields.u32();
        Ok(Self::Welcome(Welcome {
            features: Features::from_bits(bits),
            image,
            frames: NonZeroU32::new(frames).unwrap_or(NonZeroU32::MIN),
            pending: NonZeroU32::new(pending).unwrap_or(NonZeroU32::MIN),
            batch,
            descriptor,
        }))
    }
}
