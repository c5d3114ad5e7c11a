//! Fetches a clone's pages from one of several servers, with failover.
//!
//! Requests are remembered until their pages have arrived complete and verified. A connection that
//! breaks, violates the protocol or stalls is dropped. The next server is then asked for every
//! outstanding page; callers notice only the delay. Every frame arrives within a deadline, or the
//! client fails for good.

mod connect;
mod descriptor;
mod dial;
mod options;
mod outstanding;
mod receive;
mod search;
mod statistics;
mod trouble;

pub use dial::{Addresses, Connector};
pub use options::ClientOptions;
pub use statistics::ClientStatistics;

use super::protocol::Welcome;
use super::transport::Sender;
use crate::addr::FrameIndex;
use crate::clone::ports::{Delivery, PageSource, Priority, SourceError};
use crate::memory::SnapshotId;
use connect::Image;
use outstanding::{Outstanding, Requests};
use parking_lot::{Condvar, Mutex};
use receive::Incoming;
use statistics::Counters;
use std::fmt;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A page source backed by one page server, or by several with the same image.
///
/// Locks are taken in the order `incoming`, `outgoing`, `outstanding`; the last one is never held
/// over I/O.
pub struct Client {
    dial: Arc<dyn Connector>,
    options: ClientOptions,
    image: Image,
    incoming: Mutex<Incoming>,
    /// Sending half of the connection; `None` while disconnected.
    outgoing: Mutex<Option<Sender>>,
    /// A write failed: the connection must be replaced.
    is_broken: AtomicBool,
    outstanding: Mutex<Outstanding>,
    /// Signaled when a request arrives while disconnected.
    wanted: Condvar,
    /// Why the client has failed for good.
    failure: Mutex<Option<String>>,
    has_failed: AtomicBool,
    window: usize,
    counters: Counters,
}

impl Client {
    /// Connects to the first server that welcomes the client. Each server is tried once.
    ///
    /// # Errors
    /// [`SourceError`] if no server welcomes the client.
    pub fn connect(dial: Arc<dyn Connector>, options: ClientOptions) -> Result<Self, SourceError> {
        if dial.replicas() == 0 {
            return Err(SourceError::new("no page server is given"));
        }
        let welcomed = search::round(&*dial, &options, None, 0);
        let welcomed = welcomed
            .map_err(|(reason, _)| SourceError::new(format!("no page server: {reason}")))?;
        let Welcome { image: digest, frames, .. } = welcomed.welcome;
        let image = Image { digest, frames: frames.get() };
        let most = pending(&welcomed.welcome);
        let (incoming, sender) = Incoming::new(welcomed, &options);
        Ok(Self {
            incoming: Mutex::new(incoming),
            outgoing: Mutex::new(Some(sender)),
            is_broken: AtomicBool::new(false),
            outstanding: Mutex::new(Outstanding::new(image.frames, most)),
            wanted: Condvar::new(),
            failure: Mutex::new(None),
            has_failed: AtomicBool::new(false),
            // Half of the server's limit: the rest is reserved for urgent frames.
            window: options.window.clamp(1, most.div_ceil(2)),
            counters: Counters::default(),
            dial,
            options,
            image,
        })
    }

    /// Digest of the image.
    #[must_use]
    pub fn image(&self) -> [u8; 32] {
        self.image.digest
    }

    /// Number of frames of the image.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.image.frames
    }

    /// Fetches the descriptor that clones of the image start from, as the server has it, over a
    /// connection of its own. Empty if the server has none.
    ///
    /// # Errors
    /// [`SourceError`] if no server provides the descriptor, or if it is longer than
    /// [`ClientOptions::descriptor`] bytes.
    pub fn fetch_descriptor(&self) -> Result<Vec<u8>, SourceError> {
        descriptor::fetch(&*self.dial, &self.options, Some(self.image))
    }

    /// Counters of the client so far.
    #[must_use]
    pub fn statistics(&self) -> ClientStatistics {
        self.counters.snapshot()
    }

    /// Marks the client as failed, and returns the first reason for which it failed.
    fn give_up(&self, reason: &str) -> SourceError {
        let mut failure = self.failure.lock();
        let reason = failure.get_or_insert_with(|| reason.to_owned());
        self.has_failed.store(true, Ordering::Release);
        SourceError::new(reason.clone())
    }

    /// Returns the error of a client that has failed.
    fn check(&self) -> Result<(), SourceError> {
        if !self.has_failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let reason = self.failure.lock().clone();
        Err(SourceError::new(reason.unwrap_or_default()))
    }

    /// Writes requests. If that fails, the receiving thread finds another server and repeats them
    /// there.
    fn write(&self, outgoing: &mut Option<Sender>, requests: Requests) {
        let Some(sender) = outgoing else { return };
        let [urgent, prefetch] = requests.finish();
        if urgent.is_empty() && prefetch.is_empty() {
            return;
        }
        if sender.send(&mut [IoSlice::new(&urgent), IoSlice::new(&prefetch)]).is_err() {
            *outgoing = None;
            self.is_broken.store(true, Ordering::Release);
        }
    }
}

/// Most frames that the server lets a client have unanswered.
fn pending(welcome: &Welcome) -> usize {
    usize::try_from(welcome.pending.get()).unwrap_or(usize::MAX)
}

impl PageSource for Client {
    /// A frame outside the image is also an error.
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        self.check()?;
        if let Some(frame) = frames.iter().find(|frame| frame.0 >= self.image.frames) {
            let reason =
                format!("frame {frame} is not in the image of {} frames", self.image.frames);
            return Err(SourceError::new(reason));
        }
        let now = Instant::now();
        let mut requests = Requests::new();
        // Held until the requests are written, so that a reconnecting thread does not send them
        // as well.
        let mut outgoing = self.outgoing.lock();
        let mut outstanding = self.outstanding.lock();
        for frame in frames {
            outstanding.want(*frame, priority, now, &mut requests);
        }
        drop(outstanding);
        if outgoing.is_none() {
            self.wanted.notify_all();
        }
        self.write(&mut outgoing, requests);
        Ok(())
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        self.receive_pages(&mut self.incoming.lock(), wait, deliver)
    }

    fn window(&self) -> usize {
        self.window
    }

    /// The image that the servers said they have when they were connected to.
    fn snapshot_id(&self) -> Option<SnapshotId> {
        Some(SnapshotId::of_image(self.image.digest))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("image", &self.image)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
