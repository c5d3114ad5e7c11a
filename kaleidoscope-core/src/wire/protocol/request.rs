//! A client's requests.

use super::fields::{Fields, Writer};
use super::{Inbox, MAX_CHUNK, MAX_RUNS, ProtocolError, Violation};
use crate::addr::FrameIndex;
use crate::clone::ports::Priority;

/// Bytes of a request's head, and of each run after it.
pub const REQUEST_BYTES: usize = 8;

const FETCH: u8 = 1;
const DESCRIPTOR: u8 = 2;

/// Consecutive frames: indices `first..first + frames`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first frame.
    pub first: u32,
    /// Number of frames, at least one.
    pub frames: u32,
}

fn run_bytes(run: Run) -> [u8; REQUEST_BYTES] {
    Writer::new().put(run.first.to_le_bytes()).put(run.frames.to_le_bytes()).finish()
}

fn head(kind: u8, priority: Priority, count: u16) -> [u8; REQUEST_BYTES] {
    let priority = match priority {
        Priority::Prefetch => 0,
        Priority::Urgent => 1,
    };
    Writer::new().put([kind, priority]).put(count.to_le_bytes()).put([0; 4]).finish()
}

/// Encodes requests for frames in priority order; consecutive frames become runs.
#[derive(Debug)]
pub struct FetchEncoder {
    priority: Priority,
    bytes: Vec<u8>,
    /// Where the current request starts in `bytes`.
    start: usize,
    runs: u16,
    run: Option<Run>,
}

impl FetchEncoder {
    /// No request yet. `bytes` is cleared and reused.
    #[must_use]
    pub fn new(priority: Priority, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Self { priority, bytes, start: 0, runs: 0, run: None }
    }

    /// Requests a frame.
    pub fn push(&mut self, frame: FrameIndex) {
        if let Some(run) = &mut self.run
            && run.first.checked_add(run.frames) == Some(frame.0)
        {
            run.frames = run.frames.saturating_add(1);
            return;
        }
        self.end_run();
        self.run = Some(Run { first: frame.0, frames: 1 });
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        if self.runs == 0 || usize::from(self.runs) == MAX_RUNS {
            self.end_request();
            self.start = self.bytes.len();
            self.bytes.extend(head(FETCH, self.priority, 0));
        }
        self.bytes.extend(run_bytes(run));
        self.runs = self.runs.saturating_add(1);
    }

    /// Writes the number of runs into the head.
    fn end_request(&mut self) {
        let rest = self.bytes.get_mut(self.start..).unwrap_or_default();
        if let Some(head_bytes) = rest.first_chunk_mut::<REQUEST_BYTES>() {
            *head_bytes = head(FETCH, self.priority, self.runs);
        }
        self.runs = 0;
    }

    /// The encoded requests; empty if no frame was requested.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.end_run();
        self.end_request();
        self.bytes
    }
}

/// Encodes the request for `bytes` bytes of the descriptor from `offset` on.
#[must_use]
pub fn descriptor_request(offset: u32, bytes: u32) -> [u8; 16] {
    let range = Run { first: offset, frames: bytes };
    let mut request = [0; 16];
    for (slot, byte) in request
        .iter_mut()
        .zip(head(DESCRIPTOR, Priority::Prefetch, 1).into_iter().chain(run_bytes(range)))
    {
        *slot = byte;
    }
    request
}

/// Limits of a client's requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestLimits {
    /// Frames of the image.
    pub frames: u32,
    /// Most frames that one request may name.
    pub pending: u32,
    /// Bytes of the descriptor.
    pub descriptor: u32,
}

/// A request.
#[derive(Clone, Debug)]
pub enum Request<'a> {
    /// Requests the pages of frames.
    Fetch(Priority, Runs<'a>),
    /// Requests a chunk of the descriptor.
    Descriptor {
        /// Byte offset of the chunk.
        offset: u32,
        /// Number of bytes, 1 to [`MAX_CHUNK`].
        bytes: u32,
    },
}

/// Runs of frames: all inside the image, and in total no more frames than one request may name.
#[derive(Clone, Debug)]
pub struct Runs<'a>(&'a [u8]);

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let (run, rest) = self.0.split_first_chunk::<REQUEST_BYTES>()?;
        self.0 = rest;
        let mut fields = Fields(run);
        Some(Run { first: fields.u32(), frames: fields.u32() })
    }
}

/// Reads requests from a client's stream.
#[derive(Debug)]
pub struct RequestReader {
    limits: RequestLimits,
    inbox: Inbox,
}

impl RequestReader {
    /// Bytes of the reader's buffer: twice the longest request.
    pub const BUFFER: usize = REQUEST_BYTES * (MAX_RUNS + 1) * 2;

    /// A reader at the first request of a stream.
    #[must_use]
    pub fn new(limits: RequestLimits) -> Self {
        Self { limits, inbox: Inbox::new(Self::BUFFER) }
    }

    /// Space for the stream's next bytes; never empty after [`RequestReader::next_request`] has
    /// returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        self.inbox.space()
    }

    /// Records that `bytes` bytes have been written to [`RequestReader::space`].
    pub fn filled(&mut self, bytes: usize) {
        self.inbox.filled(bytes);
    }

    /// Bytes of the stream consumed so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.inbox.offset()
    }

    /// The next request, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`ProtocolError`] if the request is not allowed. The stream cannot be used after that.
    pub fn next_request(&mut self) -> Result<Option<Request<'_>>, ProtocolError> {
        let Some(head) = self.inbox.available().first_chunk::<REQUEST_BYTES>() else {
            return Ok(None);
        };
        let mut fields = Fields(head);
        let (kind, priority, count, reserved) =
            (fields.u8(), fields.u8(), fields.u16(), fields.u32());
        let error = |at: u64, violation| {
            Err(ProtocolError { offset: self.inbox.offset().saturating_add(at), violation })
        };
        if kind != FETCH && kind != DESCRIPTOR {
            return error(0, Violation::Type { found: kind });
        }
        let priority = match priority {
            0 => Priority::Prefetch,
            1 => Priority::Urgent,
            found => return error(1, Violation::Value { field: "priority", found: found.into() }),
        };
        let most = if kind == FETCH { MAX_RUNS } else { 1 };
        let runs = usize::from(count);
        if runs == 0 {
            return error(2, Violation::Value { field: "count", found: 0 });
        }
        if runs > most {
            let most = u64::try_from(most).unwrap_or(u64::MAX);
            return error(2, Violation::TooLarge { field: "count", found: count.into(), most });
        }
        if reserved != 0 {
            return error(4, Violation::Value { field: "reserved", found: reserved.into() });
        }
        // At most `BUFFER` / 2 bytes, as there are at most `MAX_RUNS` runs.
        let bytes = REQUEST_BYTES.saturating_mul(runs.saturating_add(1));
        let Some(message) = self.inbox.available().get(..bytes) else { return Ok(None) };
        let body = Runs(message.get(REQUEST_BYTES..).unwrap_or_default());
        if kind == DESCRIPTOR {
            let Run { first: offset, frames: bytes } =
                body.clone().next().unwrap_or(Run { first: 0, frames: 0 });
            let most = u32::try_from(MAX_CHUNK).unwrap_or(u32::MAX);
            if bytes == 0 || bytes > most {
                return error(
                    12,
                    Violation::TooLarge { field: "bytes", found: bytes.into(), most: most.into() },
                );
            }
            let end = offset.checked_add(bytes).filter(|end| *end <= self.limits.descriptor);
            if end.is_none() {
                let most = self.limits.descriptor.into();
                return error(
                    8,
                    Violation::TooLarge { field: "offset", found: offset.into(), most },
                );
            }
            self.inbox.take(REQUEST_BYTES.saturating_mul(2));
            return Ok(Some(Request::Descriptor { offset, bytes }));
        }
        let mut total = 0u64;
        for (run, at) in body.zip((8u64..).step_by(REQUEST_BYTES)) {
            let Run { first, frames } = run;
            let end = first.checked_add(frames).filter(|end| *end <= self.limits.frames);
            if frames == 0 || end.is_none() {
                let image = self.limits.frames;
                return error(at, Violation::OutsideImage { first, frames, image });
            }
            total = total.saturating_add(frames.into());
        }
        if total > self.limits.pending.into() {
            let most = self.limits.pending.into();
            return error(8, Violation::TooLarge { field: "frames", found: total, most });
        }
        let message = self.inbox.take(bytes).unwrap_or_default();
        Ok(Some(Request::Fetch(priority, Runs(message.get(REQUEST_BYTES..).unwrap_or_default()))))
    }
}
