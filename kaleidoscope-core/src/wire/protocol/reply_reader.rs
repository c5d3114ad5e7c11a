//! Reads replies from a server's stream.

use super::fields::Fields;
use super::page::PageDecoder;
use super::reply::{DESCRIPTOR, DESCRIPTOR_BYTES, ERROR, PAGES, split_head};
use super::{
    DescriptorHead, ENTRY_BYTES, Entry, ErrorCode, Features, Inbox, MAX_BATCH, MAX_CHUNK, MAX_TEXT,
    ProtocolError, REPLY_BYTES, Stored, Violation, Welcome, checksum,
};
use crate::addr::FrameIndex;
use crate::clone::ports::Delivery;

/// Limits of a server's replies, as agreed in the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyLimits {
    /// The features of the connection.
    pub features: Features,
    /// Frames of the image.
    pub frames: u32,
    /// Most pages in one reply.
    pub batch: usize,
    /// Bytes of the descriptor.
    pub descriptor: u32,
}

impl From<&Welcome> for ReplyLimits {
    fn from(welcome: &Welcome) -> Self {
        Self {
            features: welcome.features,
            frames: welcome.frames.get(),
            batch: usize::try_from(welcome.batch).unwrap_or(MAX_BATCH).min(MAX_BATCH),
            descriptor: welcome.descriptor,
        }
    }
}

/// A reply, or one page of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply<'a> {
    /// A frame's page. If the connection has checksums, the page's checksum is verified.
    Frame(Delivery<'a>),
    /// A chunk of the descriptor.
    Descriptor {
        /// Byte offset of the chunk.
        offset: u32,
        /// The bytes, 1 to [`MAX_CHUNK`].
        bytes: &'a [u8],
    },
    /// The server's last message.
    Error {
        /// Why the server ends the connection.
        code: ErrorCode,
        /// Text for humans, up to the first byte that is not UTF-8.
        text: &'a str,
    },
}

/// Reads replies from a server's stream, page by page as they arrive.
#[derive(Debug)]
pub struct ReplyReader {
    limits: ReplyLimits,
    inbox: Inbox,
    decoder: PageDecoder,
    /// Entries of the current reply.
    entries: [Option<Entry>; MAX_BATCH],
    /// Index of the next entry.
    next: usize,
}

impl ReplyReader {
    /// Least bytes of the buffer: the longest part that is consumed as a whole, and some more.
    pub const LEAST_BUFFER: usize = MAX_CHUNK + 4096;

    /// A reader at the first reply of a stream, with a buffer of `buffer` bytes (at least
    /// [`Self::LEAST_BUFFER`]).
    #[must_use]
    pub fn new(limits: ReplyLimits, buffer: usize) -> Self {
        Self {
            limits,
            inbox: Inbox::new(buffer.max(Self::LEAST_BUFFER)),
            decoder: PageDecoder::default(),
            entries: [None; MAX_BATCH],
            next: MAX_BATCH,
        }
    }

    /// Space for the stream's next bytes; never empty after [`ReplyReader::next_reply`] has
    /// returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        self.inbox.space()
    }

    /// Records that `bytes` bytes have been written to [`ReplyReader::space`].
    pub fn filled(&mut self, bytes: usize) {
        self.inbox.filled(bytes);
    }

    /// Bytes of the stream consumed so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.inbox.offset()
    }

    /// The next page or other reply, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`ProtocolError`] if the reply is not allowed or damaged. The stream cannot be used after
    /// that.
    #[inline]
    pub fn next_reply(&mut self) -> Result<Option<Reply<'_>>, ProtocolError> {
        if self.entries.get(self.next).copied().flatten().is_none() {
            let Some(head) = self.inbox.available().first_chunk::<REPLY_BYTES>() else {
                return Ok(None);
            };
            let (kind, flags, count, bytes) = split_head(head);
            if flags != 0 {
                return self.error(1, Violation::Value { field: "flags", found: flags.into() });
            }
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            match kind {
                PAGES => {
                    if !self.begin_pages(count, bytes)? {
                        return Ok(None);
                    }
                }
                DESCRIPTOR => return self.descriptor(count, bytes),
                ERROR => return self.server_error(count, bytes),
                found => return self.error(0, Violation::Type { found }),
            }
        }
        let Some(entry) = self.entries.get(self.next).copied().flatten() else { return Ok(None) };
        self.page(entry)
    }

    fn error<T>(&self, at: u64, violation: Violation) -> Result<T, ProtocolError> {
        Err(ProtocolError { offset: self.inbox.offset().saturating_add(at), violation })
    }

    /// Reads the entries of a reply with pages, once all of them have arrived.
    fn begin_pages(&mut self, count: u16, bytes: usize) -> Result<bool, ProtocolError> {
        let pages = usize::from(count);
        let most = self.limits.batch.min(MAX_BATCH);
        if pages == 0 {
            return self.error(2, Violation::Value { field: "count", found: 0 });
        }
        if pages > most {
            let most = u64::try_from(most).unwrap_or(u64::MAX);
            return self
                .error(2, Violation::TooLarge { field: "count", found: count.into(), most });
        }
        let head_bytes = REPLY_BYTES.saturating_add(pages.saturating_mul(ENTRY_BYTES));
        let Some(head) = self.inbox.available().get(REPLY_BYTES..head_bytes) else {
            return Ok(false);
        };
        let mut expected = head.len();
        self.entries = [None; MAX_BATCH];
        let (entries, _) = head.as_chunks::<ENTRY_BYTES>();
        let places = (8u64..).step_by(ENTRY_BYTES);
        for ((raw, slot), at) in entries.iter().zip(&mut self.entries).zip(places) {
            let entry = entry(raw, &self.limits).map_err(|(field, violation)| ProtocolError {
                offset: self.inbox.offset().saturating_add(at).saturating_add(field),
                violation,
            })?;
            expected = expected.saturating_add(entry.bytes.into());
            *slot = Some(entry);
        }
        if bytes != expected {
            let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            let violation = Violation::Length { found: wide(bytes), expected: wide(expected) };
            return self.error(4, violation);
        }
        self.next = 0;
        self.inbox.take(head_bytes);
        Ok(true)
    }

    /// The page of an entry, once all of its bytes have arrived.
    #[inline]
    fn page(&mut self, entry: Entry) -> Result<Option<Reply<'_>>, ProtocolError> {
        let offset = self.inbox.offset();
        let Some(bytes) = self.inbox.take(entry.bytes.into()) else { return Ok(None) };
        self.next = self.next.saturating_add(1);
        let frame = entry.frame;
        let error = |violation| Err(ProtocolError { offset, violation });
        let page = match entry.stored {
            Stored::Unavailable => None,
            Stored::Raw | Stored::Zero | Stored::Compressed(_) => {
                let page = self.decoder.decode(entry.stored, bytes);
                if page.is_none() {
                    return error(Violation::Compression { frame });
                }
                page
            }
        };
        if self.limits.features.checksums && checksum(frame, page) != entry.checksum {
            return error(Violation::Checksum { frame });
        }
        let delivery = match page {
            None => Delivery::Unavailable(frame),
            Some(_) if entry.stored == Stored::Zero => Delivery::Zero(frame),
            Some(page) => Delivery::Page(frame, page),
        };
        Ok(Some(Reply::Frame(delivery)))
    }

    /// A chunk of the descriptor, once all of its bytes have arrived.
    fn descriptor(&mut self, count: u16, bytes: usize) -> Result<Option<Reply<'_>>, ProtocolError> {
        if count != 0 {
            return self.error(2, Violation::Value { field: "count", found: count.into() });
        }
        let head_rest = DESCRIPTOR_BYTES.saturating_sub(REPLY_BYTES);
        let part = bytes.saturating_sub(head_rest);
        if part == 0 || part > MAX_CHUNK {
            let found = u64::try_from(bytes).unwrap_or(u64::MAX);
            return self.error(4, Violation::Value { field: "bytes", found });
        }
        let Some(head) = self.inbox.available().first_chunk::<DESCRIPTOR_BYTES>() else {
            return Ok(None);
        };
        let mut fields = Fields(head);
        fields.u64();
        let (offset, reserved, expected) = (fields.u32(), fields.u32(), fields.u64());
        let end = u64::from(offset).saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
        let most = u64::from(self.limits.descriptor);
        if end > most {
            return self.error(8, Violation::TooLarge { field: "offset", found: end, most });
        }
        if reserved != 0 {
            return self.error(12, Violation::Value { field: "reserved", found: reserved.into() });
        }
        let start = self.inbox.offset();
        let Some(message) = self.inbox.take(DESCRIPTOR_BYTES.saturating_add(part)) else {
            return Ok(None);
        };
        let bytes = message.get(DESCRIPTOR_BYTES..).unwrap_or_default();
        if DescriptorHead::new(offset, bytes).checksum != expected {
            return Err(ProtocolError { offset: start, violation: Violation::DescriptorChecksum });
        }
        Ok(Some(Reply::Descriptor { offset, bytes }))
    }

    /// The server's last message, once its text has arrived.
    fn server_error(
        &mut self,
        code: u16,
        bytes: usize,
    ) -> Result<Option<Reply<'_>>, ProtocolError> {
        if bytes > MAX_TEXT {
            let (found, most) = (u64::try_from(bytes), u64::try_from(MAX_TEXT));
            let (found, most) = (found.unwrap_or(u64::MAX), most.unwrap_or(u64::MAX));
            return self.error(4, Violation::TooLarge { field: "bytes", found, most });
        }
        let Some(message) = self.inbox.take(REPLY_BYTES.saturating_add(bytes)) else {
            return Ok(None);
        };
        let text = message.get(REPLY_BYTES..).unwrap_or_default();
        let text = text.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        Ok(Some(Reply::Error { code: ErrorCode::from_code(code), text }))
    }
}

/// Decodes an entry, or returns the offset of the invalid field in it.
fn entry(raw: &[u8; ENTRY_BYTES], limits: &ReplyLimits) -> Result<Entry, (u64, Violation)> {
    let mut fields = Fields(raw);
    let frame = fields.u32();
    let (code, reserved, bytes) = (fields.u8(), fields.u8(), fields.u16());
    let checksum = fields.u64();
    if frame >= limits.frames {
        let image = limits.frames;
        return Err((0, Violation::OutsideImage { first: frame, frames: 1, image }));
    }
    let stored = Stored::from_code(code).filter(|stored| match stored {
        Stored::Compressed(codec) => limits.features.codecs.has(*codec),
        Stored::Raw | Stored::Zero | Stored::Unavailable => true,
    });
    let stored = stored.ok_or((4, Violation::Value { field: "codec", found: code.into() }))?;
    if reserved != 0 {
        return Err((5, Violation::Value { field: "reserved", found: reserved.into() }));
    }
    if !stored.allows(bytes.into()) {
        return Err((6, Violation::Value { field: "stored", found: bytes.into() }));
    }
    Ok(Entry { frame: FrameIndex(frame), stored, bytes, checksum })
}
