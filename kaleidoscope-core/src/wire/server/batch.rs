//! Replies with pages: from the image's memory to the socket.

use super::ServedImage;
use super::compression::{Compression, WORTH};
use super::statistics::{Counters, add};
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::clone::ports::Priority;
use crate::color::Color;
use crate::memory::{MemoryError, Page, is_zero};
use crate::wire::protocol::{
    ENTRY_BYTES, Entry, Features, MAX_BATCH, PageEncoder, PagesHead, REPLY_BYTES, Stored, checksum,
};
use crate::wire::transport::Sender;
use std::io::{self, IoSlice};
use thiserror::Error;

/// Why a reply was not sent.
#[derive(Debug, Error)]
pub(super) enum BatchError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Sends pages, in memory that it keeps.
#[derive(Debug)]
pub(super) struct Batch {
    features: Features,
    compression: Compression,
    encoder: Option<PageEncoder>,
    /// Head and entries of a reply.
    head: Vec<u8>,
    /// Pages that could not be sent from where they are. The system backs what is used of it.
    pages: Vec<u8>,
}

/// A page of the image: in place, read into `slot`, or not there.
fn read<'a>(
    image: &'a ServedImage,
    frame: FrameIndex,
    slot: &'a mut Page,
) -> Result<Option<&'a Page>, MemoryError> {
    let Some(gfn) = image.memory.layout().gfn_of(frame) else { return Ok(None) };
    if let Some(page) = image.memory.slice(gfn.gpa(), FRAME_BYTES)
        && let Ok(page) = page.try_into()
    {
        return Ok(Some(page));
    }
    match image.memory.read(gfn.gpa(), slot) {
        Ok(()) => Ok(Some(slot)),
        Err(MemoryError::Missing { .. }) => Ok(None),
        Err(error @ (MemoryError::NotRam { .. } | MemoryError::Io { .. })) => Err(error),
    }
}

impl Batch {
    /// For replies of at most `batch` pages.
    pub(super) fn new(features: Features, batch: usize) -> io::Result<Self> {
        let batch = batch.min(MAX_BATCH);
        let encoder = features.codecs.any().then(PageEncoder::new).transpose()?;
        Ok(Self {
            features,
            compression: Compression::new(features.codecs),
            encoder,
            head: Vec::with_capacity(REPLY_BYTES + batch * ENTRY_BYTES),
            // Two for each page: as read, and compressed.
            pages: vec![0; 2 * batch * FRAME_BYTES],
        })
    }

    /// Sends the pages of `frames`, no more than a batch of them.
    pub(super) fn send(
        &mut self,
        image: &ServedImage,
        frames: &[FrameIndex],
        priority: Priority,
        sender: &mut Sender,
        counters: &Counters,
    ) -> Result<(), BatchError> {
        let Self { features, compression, encoder, head, pages } = self;
        let (slots, _) = pages.as_chunks_mut::<FRAME_BYTES>();
        let mut slots = slots.iter_mut();
        let mut parts = [IoSlice::new(&[]); MAX_BATCH + 1];
        let mut part = parts.iter_mut();
        let first = part.next();
        let (mut zero, mut missing, mut compressed, mut bytes) = (0, 0, 0, 0);
        head.clear();
        head.extend([0; REPLY_BYTES]);
        for &frame in frames {
            let (Some(read_slot), Some(short_slot)) = (slots.next(), slots.next()) else { break };
            let page = read(image, frame, read_slot)?;
            let (stored, payload): (Stored, &[u8]) = match page {
                None => {
                    missing += 1;
                    (Stored::Unavailable, &[])
                }
                Some(page) if is_zero(page) => {
                    zero += 1;
                    (Stored::Zero, &[])
                }
                Some(page) => {
                    let shorter = encoder.as_mut().and_then(|encoder| {
                        let color = color(image, frame);
                        let codec = compression.codec(color, priority)?;
                        let shorter = encoder.encode(codec, page, WORTH);
                        compression.learn(color, shorter.is_some());
                        let shorter = shorter?;
                        let slot = short_slot.get_mut(..shorter.len())?;
                        slot.copy_from_slice(shorter);
                        Some((Stored::Compressed(codec), &*slot))
                    });
                    compressed += usize::from(shorter.is_some());
                    shorter.unwrap_or((Stored::Raw, page))
                }
            };
            let checksum = if features.checksums { checksum(frame, page) } else { 0 };
            let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
            head.extend(Entry { frame, stored, bytes: length, checksum }.encode());
            if !payload.is_empty()
                && let Some(part) = part.next()
            {
                *part = IoSlice::new(payload);
                bytes += payload.len();
            }
        }
        let count = (head.len() - REPLY_BYTES) / ENTRY_BYTES;
        let behind = u32::try_from(head.len() - REPLY_BYTES + bytes).unwrap_or(u32::MAX);
        let start = PagesHead { pages: u16::try_from(count).unwrap_or(u16::MAX), bytes: behind };
        if let Some(place) = head.first_chunk_mut::<REPLY_BYTES>() {
            *place = start.encode();
        }
        if let Some(first) = first {
            *first = IoSlice::new(head);
        }
        let unused = part.len();
        let used = MAX_BATCH + 1 - unused;
        sender.send(parts.get_mut(..used).unwrap_or_default())?;
        add(&counters.pages, count);
        if priority == Priority::Urgent {
            add(&counters.urgent_pages, count);
        }
        add(&counters.zero_pages, zero);
        add(&counters.unavailable_pages, missing);
        add(&counters.compressed_pages, compressed);
        add(&counters.batches, 1);
        add(&counters.bytes, head.len() + bytes);
        Ok(())
    }
}

fn color(image: &ServedImage, frame: FrameIndex) -> Color {
    let color = image.colors.as_ref().and_then(|map| map.colors().get(frame.as_usize()));
    color.copied().unwrap_or_default()
}
