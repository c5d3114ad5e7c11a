//! Chooses which pages to compress.

use crate::clone::ports::Priority;
use crate::color::Color;
use crate::wire::protocol::{Codec, Codecs};

/// A page is sent compressed if that is shorter than this many bytes (7/8 of a page), because
/// decompression costs the clone time.
pub(super) const COMPRESSED_LIMIT: usize = 3584;

/// For a color that does not compress, one page in this many is still tried.
const PROBE_INTERVAL: u8 = 64;

/// A color counts as not compressible if less than this share of its pages shrank, in 1/255.
const MIN_SHRINK_RATE: u8 = 32;

/// Recent compression results of one color.
#[derive(Clone, Copy, Debug)]
struct ColorRecord {
    /// Share of the recently tried pages that shrank, in 1/255.
    shrank: u8,
    /// Pages skipped since the last one that was tried.
    skipped: u8,
}

/// Learns for each color whether compression pays. One per connection.
#[derive(Debug)]
pub(super) struct Compression {
    codecs: Codecs,
    records: [ColorRecord; Color::ALL.len()],
}

impl Compression {
    pub(super) fn new(codecs: Codecs) -> Self {
        let hopeful = ColorRecord { shrank: 128, skipped: 0 };
        Self { codecs, records: [hopeful; Color::ALL.len()] }
    }

    /// The codec to try on a page of this color, if any: the faster one for urgent pages.
    pub(super) fn codec(&mut self, color: Color, priority: Priority) -> Option<Codec> {
        let codec = match (self.codecs.lz4, self.codecs.zstd) {
            (false, false) => return None,
            (true, false) => Codec::Lz4,
            (false, true) => Codec::Zstd,
            (true, true) if priority == Priority::Urgent => Codec::Lz4,
            (true, true) => Codec::Zstd,
        };
        let record = self.records.get_mut(usize::from(color as u8))?;
        if record.shrank < MIN_SHRINK_RATE && record.skipped < PROBE_INTERVAL {
            record.skipped += 1;
            return None;
        }
        record.skipped = 0;
        Some(codec)
    }

    /// Records whether a page of this color shrank.
    pub(super) fn learn(&mut self, color: Color, shrank: bool) {
        if let Some(record) = self.records.get_mut(usize::from(color as u8)) {
            // An exponential moving average over about sixteen pages.
            let target = if shrank { 255u8 } else { 0 };
            let step = record.shrank.abs_diff(target).div_ceil(16);
            record.shrank = if shrank {
                record.shrank.saturating_add(step)
            } else {
                record.shrank.saturating_sub(step)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incompressible_colors_are_skipped_but_probed() {
        let mut compression = Compression::new(Codecs::ALL);
        let mut tried = 0;
        for _ in 0..6500 {
            if compression.codec(Color::FileCache, Priority::Prefetch).is_some() {
                tried += 1;
                compression.learn(Color::FileCache, false);
            }
        }
        assert!((100..150).contains(&tried), "{tried}");
        assert_eq!(compression.codec(Color::Slab, Priority::Urgent), Some(Codec::Lz4));
        assert_eq!(compression.codec(Color::Slab, Priority::Prefetch), Some(Codec::Zstd));
        // The color compresses now: a few probes are enough to notice.
        for _ in 0..1000 {
            if compression.codec(Color::FileCache, Priority::Prefetch).is_some() {
                compression.learn(Color::FileCache, true);
            }
        }
        assert!(compression.codec(Color::FileCache, Priority::Prefetch).is_some());
        assert_eq!(Compression::new(Codecs::NONE).codec(Color::Slab, Priority::Urgent), None);
    }
}
