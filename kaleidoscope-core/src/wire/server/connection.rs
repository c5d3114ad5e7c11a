//! The connection of one client.

use super::batch::{Batch, BatchError};
use super::pending::Pending;
use super::statistics::add;
use super::{ServedImage, Shared};
use crate::addr::FrameIndex;
use crate::clone::ports::Priority;
use crate::wire::protocol::{
    DescriptorHead, ErrorCode, HELLO_BYTES, Hello, ProtocolError, Refusal, Request, RequestLimits,
    RequestReader, Violation, Welcome, error_message,
};
use crate::wire::transport::{Link, Receiver, Sender};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Longest single wait for the client, after which timeouts are checked.
/// [`Server::stop`](super::Server::stop) wakes the thread.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Most unanswered descriptor requests of one client.
const MAX_CHUNKS: usize = 64;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum EndReason {
    /// The client closed the connection.
    Closed,
    /// The server is being stopped.
    Stopped,
    /// The client was refused.
    Refused,
    /// The client requested nothing for too long.
    Idle,
    /// The client broke the protocol or exceeded its limits.
    Violation,
    /// The image cannot be read.
    Image,
    /// The network failed, or the client does not read.
    Broken,
}

impl From<io::Error> for EndReason {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

/// Serves a client until the connection ends. With `no_room`, the client is refused.
pub(super) fn serve(shared: &Shared, link: Link, no_room: bool) -> EndReason {
    let Link { mut sender, mut receiver, .. } = link;
    let (welcome, image) = match handshake(shared, &mut sender, &mut receiver, no_room) {
        Ok(agreed) => agreed,
        Err(end) => return end,
    };
    let connection = Connection::new(shared, image, welcome, sender, receiver);
    match connection {
        Ok(mut connection) => connection.run(),
        Err(_) => EndReason::Broken,
    }
}

/// Reads the hello and replies to it.
fn handshake<'a>(
    shared: &'a Shared,
    sender: &mut Sender,
    receiver: &mut Receiver,
    no_room: bool,
) -> Result<(Welcome, &'a ServedImage), EndReason> {
    let mut hello = [0; HELLO_BYTES];
    let mut have = 0;
    let start = Instant::now();
    while let Some(space) = hello.get_mut(have..).filter(|space| !space.is_empty()) {
        let left = shared.options.handshake.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(EndReason::Violation);
        }
        if shared.is_stopping() {
            return Err(EndReason::Stopped);
        }
        match receiver.receive(space, left.min(POLL_INTERVAL))? {
            None => {}
            Some(0) => return Err(EndReason::Closed),
            Some(bytes) => have += bytes,
        }
    }
    let mut refuse = |refusal: Refusal, text: &str| {
        // The connection ends whether or not the refusal arrives.
        let _ = sender.send(&mut [IoSlice::new(&Welcome::refuse(refusal, text))]);
        Err(EndReason::Refused)
    };
    if no_room {
        return refuse(Refusal::Busy, "too many connections");
    }
    let hello = match Hello::decode(&hello) {
        Ok(hello) => hello,
        Err(error) => {
            let version = matches!(error.violation, Violation::Version { .. });
            let refusal = if version { Refusal::Version } else { Refusal::Malformed };
            return refuse(refusal, &error.to_string());
        }
    };
    let image = match (shared.images.as_slice(), hello.image) {
        ([only], [0, rest @ ..]) if rest.iter().all(|byte| *byte == 0) => only,
        (images, digest) => match images.iter().find(|image| image.digest == digest) {
            Some(image) => image,
            None if digest == [0; 32] => {
                return refuse(Refusal::Ambiguous, "name one of the server's images");
            }
            None => return refuse(Refusal::Image, "the server has other images"),
        },
    };
    let batch = u32::try_from(shared.options.batch).unwrap_or(u32::MAX).min(hello.batch);
    let welcome = Welcome {
        features: shared.options.features.both(hello.features),
        image: image.digest,
        // A layout has at least one frame.
        frames: NonZeroU32::new(image.memory.layout().frames()).unwrap_or(NonZeroU32::MIN),
        pending: NonZeroU32::new(shared.options.pending).unwrap_or(NonZeroU32::MIN),
        batch,
        descriptor: u32::try_from(image.descriptor.len()).unwrap_or(u32::MAX),
    };
    sender.send(&mut [IoSlice::new(&welcome.encode())])?;
    Ok((welcome, image))
}

/// A connection whose client was welcomed.
struct Connection<'a> {
    shared: &'a Shared,
    image: &'a ServedImage,
    welcome: Welcome,
    sender: Sender,
    receiver: Receiver,
    requests: RequestReader,
    pending: Pending,
    /// Requested chunks of the descriptor: offset and length in bytes.
    chunks: VecDeque<(u32, u32)>,
    batch: Batch,
}

impl<'a> Connection<'a> {
    fn new(
        shared: &'a Shared,
        image: &'a ServedImage,
        welcome: Welcome,
        sender: Sender,
        receiver: Receiver,
    ) -> io::Result<Self> {
        let limits = RequestLimits {
            frames: welcome.frames.get(),
            pending: welcome.pending.get(),
            descriptor: welcome.descriptor,
        };
        Ok(Self {
            shared,
            image,
            welcome,
            sender,
            receiver,
            requests: RequestReader::new(limits),
            pending: Pending::default(),
            chunks: VecDeque::new(),
            batch: Batch::new(welcome.features, shared.options.batch)?,
        })
    }

    fn run(&mut self) -> EndReason {
        let end = self.serve().err().unwrap_or(EndReason::Closed);
        let (code, text) = match end {
            EndReason::Stopped => (ErrorCode::Stopping, ""),
            EndReason::Idle => (ErrorCode::Idle, ""),
            EndReason::Image => (ErrorCode::Image, ""),
            // The client was already told, or is gone.
            EndReason::Closed | EndReason::Refused | EndReason::Violation | EndReason::Broken => {
                return end;
            }
        };
        self.send_error(code, text);
        end
    }

    /// Tells the client why the connection ends. It ends whether or not the message arrives.
    fn send_error(&mut self, code: ErrorCode, text: &str) {
        let _ = self.sender.send(&mut [IoSlice::new(&error_message(code, text))]);
    }

    /// Reads requests and answers them one batch at a time, so that an urgent request waits for at
    /// most one batch.
    fn serve(&mut self) -> Result<(), EndReason> {
        let most = usize::try_from(self.welcome.batch).unwrap_or(1).max(1);
        let mut frames: Vec<FrameIndex> = Vec::with_capacity(most);
        let mut last_request = Instant::now();
        let tick = POLL_INTERVAL.min(self.shared.options.idle);
        loop {
            if self.shared.is_stopping() {
                return Err(EndReason::Stopped);
            }
            let is_idle = self.pending.is_empty() && self.chunks.is_empty();
            let wait = if is_idle { tick } else { Duration::ZERO };
            match self.receiver.receive(self.requests.space(), wait)? {
                Some(0) => return Ok(()),
                Some(bytes) => {
                    self.requests.filled(bytes);
                    self.read_requests()?;
                    last_request = Instant::now();
                }
                None if is_idle => {
                    if last_request.elapsed() >= self.shared.options.idle {
                        return Err(EndReason::Idle);
                    }
                    continue;
                }
                None => {}
            }
            if !self.pending.is_empty() {
                let priority = self.pending.next(most, &mut frames);
                self.send_pages(&frames, priority)?;
            } else if let Some((offset, bytes)) = self.chunks.pop_front() {
                self.send_chunk(offset, bytes)?;
            }
        }
    }

    fn read_requests(&mut self) -> Result<(), EndReason> {
        // The server allows twice the advertised limit. A client that repeats requests as urgent
        // while the first answers are in flight forgets the requests when those arrive, and may
        // then request as many other frames.
        let most =
            usize::try_from(self.welcome.pending.get()).unwrap_or(usize::MAX).saturating_mul(2);
        loop {
            match self.requests.next_request() {
                Ok(None) => return Ok(()),
                Ok(Some(Request::Fetch(priority, runs))) => {
                    for run in runs {
                        for frame in run.first..run.first.saturating_add(run.frames) {
                            self.pending.want(FrameIndex(frame), priority);
                        }
                    }
                }
                Ok(Some(Request::Descriptor { offset, bytes })) => {
                    self.chunks.push_back((offset, bytes))
                }
                Err(error) => return self.reject(&error),
            }
            if self.pending.len() > most || self.chunks.len() > MAX_CHUNKS {
                let text = format!("more than {} frames unanswered", self.welcome.pending);
                self.send_error(ErrorCode::TooMuch, &text);
                return Err(EndReason::Violation);
            }
        }
    }

    fn reject(&mut self, error: &ProtocolError) -> Result<(), EndReason> {
        self.send_error(ErrorCode::Malformed, &error.to_string());
        Err(EndReason::Violation)
    }

    fn send_pages(&mut self, frames: &[FrameIndex], priority: Priority) -> Result<(), EndReason> {
        let counters = &self.shared.counters;
        let sent = self.batch.send(self.image, frames, priority, &mut self.sender, counters);
        sent.map_err(|error| match error {
            BatchError::Memory(_) => {
                add(&counters.unreadable_pages, 1);
                EndReason::Image
            }
            BatchError::Io(_) => EndReason::Broken,
        })
    }

    fn send_chunk(&mut self, offset: u32, bytes: u32) -> Result<(), EndReason> {
        let range = usize::try_from(offset).ok().zip(usize::try_from(bytes).ok());
        let range = range.map(|(start, bytes)| start..start.saturating_add(bytes));
        let Some(part) = range.and_then(|range| self.image.descriptor.get(range)) else {
            return Err(EndReason::Violation);
        };
        let head = DescriptorHead::new(offset, part).encode(part.len());
        self.sender.send(&mut [IoSlice::new(&head), IoSlice::new(part)])?;
        add(&self.shared.counters.descriptor_bytes, part.len());
        Ok(())
    }
}
