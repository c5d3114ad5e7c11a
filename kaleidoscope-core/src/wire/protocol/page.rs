//! A page's bytes on the wire: checksum and compression.

use super::{Codec, Stored};
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::memory::{Page, ZERO_PAGE};
use std::io;
use twox_hash::XxHash3_64;

/// Compression level of zstd: its fastest regular one; a page is too short for the others to pay
/// off.
const ZSTD_LEVEL: i32 = 1;

/// More bytes than any codec makes of one page.
const ROOM: usize = FRAME_BYTES * 2;

/// XXH3-64 of what a frame holds, with the frame's number as the seed: right bytes under a wrong
/// number are wrong. Of nothing for a frame that the image does not hold.
#[must_use]
pub fn checksum(frame: FrameIndex, page: Option<&Page>) -> u64 {
    XxHash3_64::oneshot_with_seed(frame.0.into(), page.map_or(&[], |page| page.as_slice()))
}

/// Expands pages, one after the other, in memory that it keeps.
#[derive(Default)]
pub struct PageDecoder {
    page: Option<Box<Page>>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl PageDecoder {
    /// A page's 4096 bytes from what was sent of it; `None` when that is damaged, or the system has
    /// no memory.
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

/// Compresses pages, one after the other, in memory that it keeps.
pub struct PageEncoder {
    bytes: Box<[u8; ROOM]>,
    zstd: zstd::bulk::Compressor<'static>,
}

impl PageEncoder {
    /// Memory for one page and zstd's tables.
    ///
    /// # Errors
    /// The system's reason for not giving the memory.
    pub fn new() -> io::Result<Self> {
        let zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
        Ok(Self { bytes: Box::new([0; ROOM]), zstd })
    }

    /// The page compressed, when that is shorter than `most` bytes.
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
