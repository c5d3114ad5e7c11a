//! Checksums and compression of pages on the wire.

use super::{Codec, Stored};
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::memory::{Page, ZERO_PAGE};
use std::io;
use twox_hash::XxHash3_64;

/// Compression level of zstd: its fastest regular one. A page is too short for higher levels to
/// pay off.
const ZSTD_LEVEL: i32 = 1;

/// Bytes of the output buffer; no codec produces more from one page.
const OUTPUT_BYTES: usize = FRAME_BYTES * 2;

/// XXH3-64 of a frame's page, seeded with the frame index, so that a page sent under a wrong index
/// fails the check. `None`, for a frame that the image does not hold, hashes as empty input.
#[must_use]
pub fn checksum(frame: FrameIndex, page: Option<&Page>) -> u64 {
    XxHash3_64::oneshot_with_seed(frame.0.into(), page.map_or(&[], |page| page.as_slice()))
}

/// Decompresses pages one at a time into a buffer of its own.
#[derive(Default)]
pub struct PageDecoder {
    page: Option<Box<Page>>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl PageDecoder {
    /// Decodes a page's 4096 bytes. Returns `None` if `bytes` is damaged, or if memory for the
    /// decompressor cannot be allocated.
    pub fn decode<'a>(&'a mut self, stored: Stored, bytes: &'a [u8]) -> Option<&'a Page> {
        let codec = match stored {
            Stored::Raw => return bytes.try_into().ok(),
            Stored::Zero => return bytes.is_empty().then_some(&ZERO_PAGE),
            Stored::Unavailable => return None,
            Stored::Compressed(codec) => codec,
        };
        let page = self.page.get_or_insert_with(|| Box::new(ZERO_PAGE));
        let length = match codec {
            Codec::Lz4 => lz4_flex::block::decompress_into(bytes, page.as_mut_slice()).ok()?,
            Codec::Zstd => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(zstd::bulk::Decompressor::new().ok()?),
                };
                zstd.decompress_to_buffer(bytes, page.as_mut_slice()).ok()?
            }
        };
        (length == FRAME_BYTES).then_some(page)
    }
}

impl std::fmt::Debug for PageDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageDecoder").finish_non_exhaustive()
    }
}

/// Compresses pages one at a time into a buffer of its own.
pub struct PageEncoder {
    bytes: Box<[u8; OUTPUT_BYTES]>,
    zstd: zstd::bulk::Compressor<'static>,
}

impl PageEncoder {
    /// Allocates a buffer for one page, and zstd's tables.
    ///
    /// # Errors
    /// The system's error if the allocation fails.
    pub fn new() -> io::Result<Self> {
        let zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
        Ok(Self { bytes: Box::new([0; OUTPUT_BYTES]), zstd })
    }

    /// Compresses a page. Returns `None` unless the result is shorter than `most` bytes.
    pub fn encode(&mut self, codec: Codec, page: &Page, most: usize) -> Option<&[u8]> {
        let length = match codec {
            Codec::Lz4 => lz4_flex::block::compress_into(page, self.bytes.as_mut_slice()).ok()?,
            Codec::Zstd => self.zstd.compress_to_buffer(page, self.bytes.as_mut_slice()).ok()?,
        };
        self.bytes.get(..length).filter(|bytes| bytes.len() < most)
    }
}

impl std::fmt::Debug for PageEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageEncoder").finish_non_exhaustive()
    }
}
