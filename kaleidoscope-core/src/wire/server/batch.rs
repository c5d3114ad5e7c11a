//! Replies with pages, from the image's memory to the socket.

use super::ServedImage;
use super::compression::{COMPRESSED_LIMIT, Compression};
use super::statistics::{Counters, add};
use crate::addr::{FRAME_BYTES, FRAME_SIZE, FrameIndex};
use crate::clone::ports::Priority;
use crate::color::Color;
use crate::memory::{Backing, MemoryError, Page, ZERO_PAGE, is_zero};
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

/// Sends pages, with reusable buffers.
#[derive(Debug)]
pub(super) struct Batch {
    features: Features,
    compression: Compression,
    encoder: Option<PageEncoder>,
    /// Head and entries of a reply.
    head: Vec<u8>,
    /// Copies of pages that cannot be sent in place. Only the pages that are used become resident.
    pages: Vec<u8>,
}

/// The parts of a reply: its head, then slices of pages.
struct Parts<'a> {
    parts: [IoSlice<'a>; MAX_BATCH + 1],
    /// Number of parts in use; the first one is the head.
    used: usize,
    /// Bytes of all parts but the head.
    bytes: usize,
}

impl<'a> Parts<'a> {
    fn new() -> Self {
        Self { parts: [IoSlice::new(&[]); MAX_BATCH + 1], used: 1, bytes: 0 }
    }

    fn push(&mut self, bytes: &'a [u8]) {
        if let Some(part) = self.parts.get_mut(self.used).filter(|_| !bytes.is_empty()) {
            *part = IoSlice::new(bytes);
            self.used += 1;
            self.bytes += bytes.len();
        }
    }

    fn send(mut self, head: &'a [u8], sender: &mut Sender) -> io::Result<()> {
        if let Some(first) = self.parts.first_mut() {
            *first = IoSlice::new(head);
        }
        sender.send(self.parts.get_mut(..self.used).unwrap_or_default())
    }
}

/// Numbers of pages of a batch, by how they were sent.
#[derive(Default)]
struct PageCounts {
    zero: usize,
    missing: usize,
    compressed: usize,
}

/// The pages of the first frame and of those that follow it, as long as they are contiguous in the
/// image's memory. `None` if the first page has to be read into a buffer. A hole yields one page of
/// zeros, without access to the image.
fn contiguous_pages<'a>(image: &'a ServedImage, frames: &[FrameIndex]) -> Option<&'a [Page]> {
    let first = frames.first()?;
    let layout = image.memory.layout();
    let gpa = layout.gfn_of(*first)?.gpa();
    let (_, left) = layout.span_at(gpa)?;
    let extent = image.memory.extent(*first);
    match extent.backing {
        Backing::Hole => return Some(std::slice::from_ref(&ZERO_PAGE)),
        Backing::Missing => return None,
        Backing::Data => {}
    }
    let extent = first.0..extent.frames.end;
    let consecutive = frames.iter().zip(extent).take_while(|(frame, next)| frame.0 == *next);
    let count = consecutive.count().min(usize::try_from(left / FRAME_SIZE).unwrap_or(usize::MAX));
    let slice = |count: usize| image.memory.slice(gpa, count * FRAME_BYTES);
    let bytes = slice(count).or_else(|| slice(1))?;
    Some(bytes.as_chunks().0).filter(|pages| !pages.is_empty())
}

/// Reads a page into `slot`. Returns whether the image holds it.
fn read(image: &ServedImage, frame: FrameIndex, slot: &mut Page) -> Result<bool, MemoryError> {
    let Some(gfn) = image.memory.layout().gfn_of(frame) else { return Ok(false) };
    match image.memory.read(gfn.gpa(), slot) {
        Ok(()) => Ok(true),
        Err(MemoryError::Missing { .. }) => Ok(false),
        Err(error @ (MemoryError::NotRam { .. } | MemoryError::Io { .. })) => Err(error),
    }
}

/// Which of the pages may be zeros, by their first 64 bytes. The pages are not in the CPU's caches;
/// a loop that does nothing else overlaps their cache misses.
fn first_lines_zero(pages: &[Page]) -> [bool; MAX_BATCH] {
    let mut found = [false; MAX_BATCH];
    for (page, found) in pages.iter().zip(&mut found) {
        *found =
            page.first_chunk::<64>().is_some_and(|line| line.iter().fold(0, |a, b| a | b) == 0);
    }
    found
}

impl Batch {
    /// A sender of replies with at most `batch` pages.
    pub(super) fn new(features: Features, batch: usize) -> io::Result<Self> {
        let batch = batch.min(MAX_BATCH);
        let encoder = features.codecs.any().then(PageEncoder::new).transpose()?;
        Ok(Self {
            features,
            compression: Compression::new(features.codecs),
            encoder,
            head: Vec::with_capacity(REPLY_BYTES + batch * ENTRY_BYTES),
            // Two pages per frame: as read, and compressed.
            pages: vec![0; 2 * batch * FRAME_BYTES],
        })
    }

    /// Sends the pages of `frames`, at most a batch of them.
    pub(super) fn send(
        &mut self,
        image: &ServedImage,
        frames: &[FrameIndex],
        priority: Priority,
        sender: &mut Sender,
        counters: &Counters,
    ) -> Result<(), BatchError> {
        let Self { features, compression, encoder, head, pages } = self;
        let mut slots = pages.as_chunks_mut::<FRAME_BYTES>().0.iter_mut();
        let mut parts = Parts::new();
        let mut counts = PageCounts::default();
        head.clear();
        head.extend([0; REPLY_BYTES]);
        let mut entry = |frame, stored, bytes: usize, page: Option<&Page>| {
            let checksum = if features.checksums { checksum(frame, page) } else { 0 };
            let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
            head.extend(Entry { frame, stored, bytes, checksum }.encode());
        };
        let mut rest = frames;
        while let Some((&first, others)) = rest.split_first() {
            let run: &[Page] = match contiguous_pages(image, rest) {
                Some(pages) => pages,
                None => {
                    let Some(slot) = slots.next() else { break };
                    if !read(image, first, slot)? {
                        counts.missing += 1;
                        entry(first, Stored::Unavailable, 0, None);
                        rest = others;
                        continue;
                    }
                    std::slice::from_ref(slot)
                }
            };
            let maybe_zero = first_lines_zero(run);
            // Pages of the run that are sent uncompressed, and not pushed yet.
            let mut raw = 0..0;
            for (place, ((page, &frame), maybe_zero)) in
                run.iter().zip(rest).zip(maybe_zero).enumerate()
            {
                if maybe_zero && is_zero(page) {
                    counts.zero += 1;
                    entry(frame, Stored::Zero, 0, Some(page));
                    continue;
                }
                if let Some(encoder) = encoder {
                    let color = color(image, frame);
                    let codec = compression.codec(color, priority);
                    let short = codec.and_then(|codec| {
                        let short = encoder.encode(codec, page, COMPRESSED_LIMIT);
                        compression.learn(color, short.is_some());
                        Some((codec, short?))
                    });
                    if let Some((codec, short)) = short
                        && let Some(slot) =
                            slots.next().and_then(|slot| slot.get_mut(..short.len()))
                    {
                        slot.copy_from_slice(short);
                        counts.compressed += 1;
                        entry(frame, Stored::Compressed(codec), short.len(), Some(page));
                        parts.push(run.get(raw).unwrap_or_default().as_flattened());
                        raw = 0..0;
                        parts.push(slot);
                        continue;
                    }
                }
                entry(frame, Stored::Raw, FRAME_BYTES, Some(page));
                if raw.end != place {
                    parts.push(run.get(raw).unwrap_or_default().as_flattened());
                    raw = place..place;
                }
                raw.end = place + 1;
            }
            parts.push(run.get(raw).unwrap_or_default().as_flattened());
            rest = rest.get(run.len()..).unwrap_or_default();
        }
        let count = (head.len() - REPLY_BYTES) / ENTRY_BYTES;
        let bytes = head.len() + parts.bytes;
        let behind = u32::try_from(bytes - REPLY_BYTES).unwrap_or(u32::MAX);
        let start = PagesHead { pages: u16::try_from(count).unwrap_or(u16::MAX), bytes: behind };
        if let Some(place) = head.first_chunk_mut::<REPLY_BYTES>() {
            *place = start.encode();
        }
        parts.send(head, sender)?;
        add(&counters.pages, count);
        if priority == Priority::Urgent {
            add(&counters.urgent_pages, count);
        }
        add(&counters.zero_pages, counts.zero);
        add(&counters.unavailable_pages, counts.missing);
        add(&counters.compressed_pages, counts.compressed);
        add(&counters.batches, 1);
        add(&counters.bytes, bytes);
        Ok(())
    }
}

fn color(image: &ServedImage, frame: FrameIndex) -> Color {
    let color = image.colors.as_ref().and_then(|map| map.colors().get(frame.as_usize()));
    color.copied().unwrap_or_default()
}
