//! One client's connection.

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

/// How long a thread waits for its client before it looks at the time.
/// [`Server::stop`](super::Server::stop) wakes it.
const TICK: Duration = Duration::from_secs(5);

/// Parts of the descriptor that a client may have asked for and not got.
const CHUNKS: usize = 64;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The client is done.
    Closed,
    /// The server is being stopped.
    Stopped,
    /// The client was refused.
    Refused,
    /// Nothing was asked for too long.
    Idle,
    /// The client broke the protocol, or asked for too much.
    Violation,
    /// The image cannot be read.
    Image,
    /// The network failed, or the client does not read.
    Broken,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

/// Serves a client until it is done. A client for which there is `no_room` is refused.
pub(super) fn serve(shared: &Shared, link: Link, no_room: bool) -> End {
    let Link { mut sender, mut receiver, .. } = link;
    let (welcome, image) = match handshake(shared, &mut sender, &mut receiver, no_room) {
        Ok(agreed) => agreed,
        Err(end) => return end,
    };
    let connection = Connection::new(shared, image, welcome, sender, receiver);
    match connection {
        Ok(mut connection) => connection.run(),
        Err(_) => End::Broken,
    }
}

/// Reads the hello and answers it.
fn handshake<'a>(
    shared: &'a Shared,
    sender: &mut Sender,
    receiver: &mut Receiver,
    no_room: bool,
) -> Result<(Welcome, &'a ServedImage), End> {
    let mut hello = [0; HELLO_BYTES];
    let mut have = 0;
    let start = Instant::now();
    while let Some(space) = hello.get_mut(have..).filter(|space| !space.is_empty()) {
        let left = shared.options.handshake.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(End::Violation);
        }
        if shared.is_stopping() {
            return Err(End::Stopped);
        }
        match receiver.receive(space, left.min(TICK))? {
            None => {}
            Some(0) => return Err(End::Closed),
            Some(bytes) => have += bytes,
        }
    }
    let mut refuse = |refusal: Refusal, text: &str| {
        // It is refused whether it hears of it or not.
        let _ = sender.send(&mut [IoSlice::new(&Welcome::refuse(refusal, text))]);
        Err(End::Refused)
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

/// A client that was welcomed.
struct Connection<'a> {
    shared: &'a Shared,
    image: &'a ServedImage,
    welcome: Welcome,
    sender: Sender,
    receiver: Receiver,
    requests: RequestReader,
    pending: Pending,
    /// Parts of the descriptor to send: offset and bytes.
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

    fn run(&mut self) -> End {
        let end = self.serve().err().unwrap_or(End::Closed);
        let (code, text) = match end {
            End::Stopped => (ErrorCode::Stopping, ""),
            End::Idle => (ErrorCode::Idle, ""),
            End::Image => (ErrorCode::Image, ""),
            // These have been told, or are gone.
            End::Closed | End::Refused | End::Violation | End::Broken => return end,
        };
        self.say(code, text);
        end
    }

    /// Tells the client why it is the end. It is the end whether it hears of it or not.
    fn say(&mut self, code: ErrorCode, text: &str) {
        let _ = self.sender.send(&mut [IoSlice::new(&error_message(code, text))]);
    }

    /// Reads requests and answers them, a batch at a time, so that an urgent one never waits for
    /// more than a batch.
    fn serve(&mut self) -> Result<(), End> {
        let most = usize::try_from(self.welcome.batch).unwrap_or(1).max(1);
        let mut frames: Vec<FrameIndex> = Vec::with_capacity(most);
        let mut last_request = Instant::now();
        let tick = TICK.min(self.shared.options.idle);
        loop {
            if self.shared.is_stopping() {
                return Err(End::Stopped);
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
                        return Err(End::Idle);
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

    fn read_requests(&mut self) -> Result<(), End> {
        // The server allows for twice what it tells: a client that asks again, urgently, for frames
        // whose first answers are on their way has forgotten them when those arrive, and
        // may then ask for as many others.
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
                Err(error) => return self.violated(&error),
            }
            if self.pending.len() > most || self.chunks.len() > CHUNKS {
                let text = format!("more than {} frames unanswered", self.welcome.pending);
                self.say(ErrorCode::TooMuch, &text);
                return Err(End::Violation);
            }
        }
    }

    fn violated(&mut self, error: &ProtocolError) -> Result<(), End> {
        self.say(ErrorCode::Malformed, &error.to_string());
        Err(End::Violation)
    }

    fn send_pages(&mut self, frames: &[FrameIndex], priority: Priority) -> Result<(), End> {
        let counters = &self.shared.counters;
        let sent = self.batch.send(self.image, frames, priority, &mut self.sender, counters);
        sent.map_err(|error| match error {
            BatchError::Memory(_) => {
                add(&counters.unreadable_pages, 1);
                End::Image
            }
            BatchError::Io(_) => End::Broken,
        })
    }

    fn send_chunk(&mut self, offset: u32, bytes: u32) -> Result<(), End> {
        let range = usize::try_from(offset).ok().zip(usize::try_from(bytes).ok());
        let range = range.map(|(start, bytes)| start..start.saturating_add(bytes));
        let Some(part) = range.and_then(|range| self.image.descriptor.get(range)) else {
            return Err(End::Violation);
        };
        let head = DescriptorHead::new(offset, part).encode(part.len());
        self.sender.send(&mut [IoSlice::new(&head), IoSlice::new(part)])?;
        add(&self.shared.counters.descriptor_bytes, part.len());
        Ok(())
    }
}
