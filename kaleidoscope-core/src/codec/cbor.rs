//! Bounded reading and writing of CBOR (RFC 8949), on top of the item heads that `ciborium-ll`
//! parses.
//!
//! The reader borrows: text and byte strings are slices of the payload. It accepts definite lengths
//! only, as the deterministic encoding requires (RFC 8949, section 4.2), and never allocates memory
//! for a length that it has not verified.
//!
//! # Why not a whole CBOR library
//! Either would keep this reader: definite lengths, counts bounded by the bytes present, and errors
//! with field and offset are rules of the format, not of CBOR.
//!
//! `ciborium` copies every string, columns included, accepts indefinite lengths, and gives no
//! offsets. A list of 200,000 regions takes it six times as long as this reader.
//!
//! `minicbor` borrows, and skips without recursion. Announced lengths of 2^64 - 1 and a million
//! nested arrays do not harm it, and it reads that list in a sixth of this reader's time. It
//! accepts indefinite lengths and returns array lengths unchecked, which this reader could reject
//! on top of it. Its license, BlueOak-1.0.0, is not on the list of those that this project links; once it is,
//! `minicbor` is the better base than `ciborium-ll`.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ManifestError;
use ciborium_ll::{Decoder, Encoder, Header};

/// Reads the items of a payload in order.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Name of the field being read, for errors.
    field: &'static str,
}

impl<'a> Reader<'a> {
    /// A reader at the payload's first byte.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self::at(bytes, "payload", 0)
    }

    /// A reader at a given offset of a payload, where the field `field` starts.
    pub(crate) fn at(bytes: &'a [u8], field: &'static str, offset: usize) -> Self {
        Self { bytes, at: offset, field }
    }

    /// Another reader of the same field, at another offset.
    pub(crate) fn moved_to(&self, offset: usize) -> Self {
        Self::at(self.bytes, self.field, offset)
    }

    /// Offset of the next item.
    pub(crate) fn place(&self) -> usize {
        self.at
    }

    /// An error at the current offset.
    pub(crate) fn error(&self, problem: impl Into<String>) -> ManifestError {
        ManifestError::Field { field: self.field, at: self.at, problem: problem.into() }
    }

    /// Bytes not read yet.
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    pub(crate) fn head(&mut self) -> Result<Header, ManifestError> {
        let mut decoder = Decoder::from(self.rest());
        let head = decoder.pull().map_err(|e| match e {
            ciborium_ll::Error::Io(_) => self.error("the payload ends inside an item"),
            ciborium_ll::Error::Syntax(_) => self.error("not a CBOR item"),
        })?;
        self.at = self.at.saturating_add(decoder.offset());
        Ok(head)
    }

    /// Reads a head with `pick`, or fails at the head's offset.
    fn expect<T>(
        &mut self,
        what: &str,
        pick: impl FnOnce(Header) -> Option<T>,
    ) -> Result<T, ManifestError> {
        let before = self.at;
        let head = self.head()?;
        pick(head).ok_or_else(|| {
            self.at = before;
            self.error(format!("expected {what}, found {}", describe(head)))
        })
    }

    /// Reads the `len` bytes of a byte or text string.
    pub(crate) fn body(&mut self, len: usize) -> Result<&'a [u8], ManifestError> {
        let body = self.rest().get(..len);
        let body = body.ok_or_else(|| self.error(format!("a string of {len} bytes is cut off")))?;
        self.at = self.at.saturating_add(len);
        Ok(body)
    }

    /// Fails if `count` items cannot fit into the remaining bytes, at one byte each.
    fn count(&self, count: usize) -> Result<usize, ManifestError> {
        if count > self.rest().len() {
            return Err(self.error(format!("{count} items announced, but the payload ends")));
        }
        Ok(count)
    }

    pub(crate) fn uint(&mut self) -> Result<u64, ManifestError> {
        self.expect("an unsigned integer", |head| {
            if let Header::Positive(value) = head { Some(value) } else { None }
        })
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], ManifestError> {
        let len =
            self.expect(
                "a byte string",
                |head| {
                    if let Header::Bytes(len) = head { len } else { None }
                },
            )?;
        self.body(len)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, ManifestError> {
        let len =
            self.expect("a text", |head| if let Header::Text(len) = head { len } else { None })?;
        let body = self.body(len)?;
        std::str::from_utf8(body).map_err(|e| self.error(format!("text before it: {e}")))
    }

    /// Reads the head of an array: the number of items, at most the number of bytes left.
    pub(crate) fn array(&mut self) -> Result<usize, ManifestError> {
        let len =
            self.expect("an array", |head| if let Header::Array(len) = head { len } else { None })?;
        self.count(len)
    }

    /// Reads the head of a map: the number of entries, at most the number of bytes left.
    pub(crate) fn map(&mut self) -> Result<usize, ManifestError> {
        let len =
            self.expect("a map", |head| if let Header::Map(len) = head { len } else { None })?;
        self.count(len)
    }

    /// Skips one item of any type and all items in it, without recursion.
    pub(crate) fn skip(&mut self) -> Result<(), ManifestError> {
        let mut pending = 1usize;
        while let Some(left) = pending.checked_sub(1) {
            let inner = match self.head()? {
                Header::Positive(_)
                | Header::Negative(_)
                | Header::Float(_)
                | Header::Simple(_) => 0,
                Header::Tag(_) => 1,
                Header::Bytes(Some(len)) | Header::Text(Some(len)) => {
                    self.body(len)?;
                    0
                }
                Header::Array(Some(len)) => self.count(len)?,
                Header::Map(Some(len)) => self.count(len)?.saturating_mul(2),
                Header::Break
                | Header::Bytes(None)
                | Header::Text(None)
                | Header::Array(None)
                | Header::Map(None) => return Err(self.error("indefinite length")),
            };
            // Every iteration consumes a byte, so a saturated count ends in "the payload ends".
            pending = left.saturating_add(inner);
        }
        Ok(())
    }

    /// Fails unless all bytes were read.
    pub(crate) fn finish(self) -> Result<(), ManifestError> {
        if self.rest().is_empty() { Ok(()) } else { Err(self.error("bytes after the last item")) }
    }
}

fn describe(head: Header) -> &'static str {
    match head {
        Header::Positive(_) => "an unsigned integer",
        Header::Negative(_) => "a negative integer",
        Header::Float(_) => "a floating-point number",
        Header::Simple(_) => "a simple value",
        Header::Tag(_) => "a tag",
        Header::Break => "a break",
        Header::Bytes(Some(_)) => "a byte string",
        Header::Text(Some(_)) => "a text",
        Header::Array(Some(_)) => "an array",
        Header::Map(Some(_)) => "a map",
        Header::Bytes(None) | Header::Text(None) | Header::Array(None) | Header::Map(None) => {
            "an indefinite length"
        }
    }
}

/// Writes items. Heads have their shortest form; the caller must write map keys in ascending order
/// of their encoding.
#[derive(Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    fn head(&mut self, head: Header) {
        // Writing to a vector cannot fail.
        let _: std::io::Result<()> = Encoder::from(&mut self.out).push(head);
    }

    pub(crate) fn uint(&mut self, value: impl Into<u64>) {
        self.head(Header::Positive(value.into()));
    }

    pub(crate) fn bytes(&mut self, body: &[u8]) {
        self.head(Header::Bytes(Some(body.len())));
        self.out.extend_from_slice(body);
    }

    /// Writes a byte string of `count` items of `N` bytes each.
    pub(crate) fn bytes_of<const N: usize>(
        &mut self,
        count: usize,
        items: impl Iterator<Item = [u8; N]>,
    ) {
        let len = count.saturating_mul(N);
        self.head(Header::Bytes(Some(len)));
        self.out.reserve(len);
        items.take(count).for_each(|item| self.out.extend_from_slice(&item));
    }

    pub(crate) fn text(&mut self, body: &str) {
        self.head(Header::Text(Some(body.len())));
        self.out.extend_from_slice(body.as_bytes());
    }

    pub(crate) fn array(&mut self, len: usize) {
        self.head(Header::Array(Some(len)));
    }

    pub(crate) fn map(&mut self, len: usize) {
        self.head(Header::Map(Some(len)));
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_item_is_skipped() {
        let items: [&[u8]; 9] = [
            &[0x00],                                     // 0
            &[0x39, 0x01, 0x00],                         // -257
            &[0xfb, 0x40, 0x09, 0, 0, 0, 0, 0, 0],       // 3.125
            &[0xf6],                                     // null
            &[0x42, 1, 2],                               // h'0102'
            &[0x61, b'a'],                               // "a"
            &[0xc1, 0x1a, 0, 0, 0, 0],                   // 1(0)
            &[0x82, 0x81, 0x80, 0xa1, 0x01, 0x82, 2, 3], // [[[]], {1: [2, 3]}]
            &[0xa0],                                     // {}
        ];
        for item in items {
            let mut reader = Reader::new(item);
            reader.skip().unwrap();
            reader.finish().unwrap();
            for cut in 0..item.len() {
                assert!(Reader::new(&item[..cut]).skip().is_err(), "{item:x?} cut to {cut}");
            }
        }
    }

    #[test]
    fn deep_and_wide_items_end() {
        // A million nested arrays: without recursion, the stack does not overflow.
        let deep = [vec![0x81; 1 << 20], vec![0]].concat();
        Reader::new(&deep).skip().unwrap();
        // Heads of arrays, maps and strings that announce 2^64 - 1 items or bytes.
        for head in [0x9b, 0xbb, 0x7b, 0x5b] {
            let bytes = [vec![head], vec![0xff; 8], vec![0; 100]].concat();
            assert!(Reader::new(&bytes).skip().is_err());
        }
        assert!(Reader::new(&[0x9f, 0xff]).skip().is_err(), "indefinite length");
    }

    #[test]
    fn errors_name_field_and_place() {
        let mut reader = Reader::at(&[0x01, 0x61, b'a'], "layout", 0);
        reader.uint().unwrap();
        let error = reader.uint().unwrap_err().to_string();
        assert_eq!(
            error,
            "field `layout`, byte 0x1 of the payload: expected an unsigned integer, found a text"
        );
    }
}
