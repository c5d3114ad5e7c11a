//! A buffer of received bytes.

/// A fixed buffer of a stream's bytes: filled at the end, consumed from the front.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Stream offset of `start`.
    used: u64,
}

impl Inbox {
    /// An empty buffer of `bytes` bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes].into_boxed_slice(), start: 0, end: 0, used: 0 }
    }

    /// Space for the next bytes. Empty only if the buffer is full of unconsumed bytes.
    pub fn space(&mut self) -> &mut [u8] {
        // The remainder is shorter than one message, so the copy is small.
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Records that `bytes` bytes have been written to [`Inbox::space`].
    pub fn filled(&mut self, bytes: usize) {
        self.end = self.end.saturating_add(bytes).min(self.bytes.len());
    }

    /// The unconsumed bytes.
    #[must_use]
    pub fn available(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Consumes the next `bytes` bytes, once all of them have arrived.
    pub fn take(&mut self, bytes: usize) -> Option<&[u8]> {
        let end = self.start.checked_add(bytes).filter(|end| *end <= self.end)?;
        let taken = self.bytes.get(self.start..end);
        self.start = end;
        self.used = self.used.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        taken
    }

    /// Number of bytes consumed so far, which is the stream offset of the next byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.used
    }
}
