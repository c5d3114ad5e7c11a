//! The features that client and server negotiate.

use std::fmt;

/// How a page's bytes may be compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Codec {
    /// An LZ4 block.
    Lz4,
    /// A zstd frame.
    Zstd,
}

/// A set of codecs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Codecs {
    /// LZ4: fast, lower ratio.
    pub lz4: bool,
    /// zstd: slower, higher ratio.
    pub zstd: bool,
}

impl Codecs {
    /// No compression.
    pub const NONE: Self = Self { lz4: false, zstd: false };

    /// Every codec.
    pub const ALL: Self = Self { lz4: true, zstd: true };

    /// Whether the set is not empty.
    #[must_use]
    pub fn any(self) -> bool {
        self.lz4 || self.zstd
    }

    /// Whether the set contains a codec.
    #[must_use]
    pub fn has(self, codec: Codec) -> bool {
        match codec {
            Codec::Lz4 => self.lz4,
            Codec::Zstd => self.zstd,
        }
    }
}

/// The features that a client requests, or that a server has chosen from them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Features {
    /// Each page has a checksum.
    pub checksums: bool,
    /// Pages may be compressed with one of these.
    pub codecs: Codecs,
}

const CHECKSUMS: u32 = 1;
const LZ4: u32 = 1 << 1;
const ZSTD: u32 = 1 << 2;

impl Features {
    /// The features as a bit set, as on the wire.
    #[must_use]
    pub fn bits(self) -> u32 {
        let bit = |on, bit| if on { bit } else { 0 };
        bit(self.checksums, CHECKSUMS) | bit(self.codecs.lz4, LZ4) | bit(self.codecs.zstd, ZSTD)
    }

    /// The features of a bit set. Unknown bits are ignored: a server does not choose features that
    /// it does not know.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        let has = |bit| bits & bit != 0;
        Self { checksums: has(CHECKSUMS), codecs: Codecs { lz4: has(LZ4), zstd: has(ZSTD) } }
    }

    /// The intersection of two sets.
    #[must_use]
    pub fn both(self, other: Self) -> Self {
        Self::from_bits(self.bits() & other.bits())
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            [(self.checksums, "checksums"), (self.codecs.lz4, "lz4"), (self.codecs.zstd, "zstd")];
        let mut names = names.into_iter().filter(|n| n.0).map(|n| n.1).peekable();
        if names.peek().is_none() {
            return f.write_str("none");
        }
        f.write_str(&names.collect::<Vec<_>>().join(", "))
    }
}
