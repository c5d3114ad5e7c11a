//! Bytes that have arrived and are not used yet.

/// A fixed buffer of a stream's bytes: filled at the end, used from the front.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of the stream before `start`.
    used: u64,
}

impl Inbox {
    /// An empty buffer of so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes].into_boxed_slice(), start: 0, end: 0, used: 0 }
    }

    /// Where the next bytes go. Empty only when the buffer is full of bytes that nobody has used.
    pub fn space(&mut self) -> &mut [u8] {
        // What is left over is less than a message's part, so this moves little.
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes have been put into [`Inbox::space`].
    pub fn filled(&mut self, bytes: usize) {
        self.end = self.end.saturating_add(bytes).min(self.bytes.len());
    }

    /// The bytes that are not used yet.
    #[must_use]
    pub fn available(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// The next `bytes` bytes, once they are all there; they are used then.
    pub fn take(&mut self, bytes: usize) -> Option<&[u8]> {
        let end = self.start.checked_add(bytes).filter(|end| *end <= self.end)?;
        let taken = self.bytes.get(self.start..end);
        self.start = end;
        self.used = self.used.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        taken
    }

    /// Bytes of the stream that were used: the offset of the next one.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.used
    }
}
