//! Fetches a clone's pages from one of several servers, and from another one when that fails.
//!
//! Requests are remembered until their pages have arrived whole and right. A connection that
//! breaks, lies or falls silent is given up; the next server is asked for everything that is still
//! awaited, and whoever waits for the pages notices nothing but the time. Every frame arrives
//! within a deadline, or the client gives up for good.

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

/// A page source that is a page server, or several that have the same image.
///
/// Locks are taken in the order `incoming`, `outgoing`, `outstanding`; the last one is never held
/// over I/O.
pub struct Client {
    dial: Arc<dyn Connector>,
    options: ClientOptions,
    image: Image,
    incoming: Mutex<Incoming>,
    /// The way to the server; `None` while there is none.
    outgoing: Mutex<Option<Sender>>,
    /// Writing failed: the connection is of no use any more.
    is_broken: AtomicBool,
    outstanding: Mutex<Outstanding>,
    /// Something is outstanding.
    wanted: Condvar,
    /// Why the client has given up.
    failure: Mutex<Option<String>>,
    has_failed: AtomicBool,
    window: usize,
    counters: Counters,
}

impl Client {
    /// Connects to the first of the servers that welcomes the client. Each is tried once.
    ///
    /// # Errors
    /// [`SourceError`] when none does.
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
            // Half of what the server takes: the rest is for those that are waited for.
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

    /// Frames of the image.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.image.frames
    }

    /// What clones of the image start from, as the server has it, over a connection of its own;
    /// empty when it has none.
    ///
    /// # Errors
    /// [`SourceError`] when no server hands it out, or it is longer than
    /// [`ClientOptions::descriptor`].
    pub fn fetch_descriptor(&self) -> Result<Vec<u8>, SourceError> {
        descriptor::fetch(&*self.dial, &self.options, Some(self.image))
    }

    /// What the client has done so far.
    #[must_use]
    pub fn statistics(&self) -> ClientStatistics {
        self.counters.snapshot()
    }

    /// Gives up, for the reason that it returns.
    fn give_up(&self, reason: &str) -> SourceError {
        let mut failure = self.failure.lock();
        let reason = failure.get_or_insert_with(|| reason.to_owned());
        self.has_failed.store(true, Ordering::Release);
        SourceError::new(reason.clone())
    }

    /// The error of a client that has given up.
    fn check(&self) -> Result<(), SourceError> {
        if !self.has_failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let reason = self.failure.lock().clone();
        Err(SourceError::new(reason.unwrap_or_default()))
    }

    /// Writes requests. When that fails, the receiving thread will find another server and ask that
    /// one.
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

/// How many frames a server takes at a time.
fn pending(welcome: &Welcome) -> usize {
    usize::try_from(welcome.pending.get()).unwrap_or(usize::MAX)
}

impl PageSource for Client {
    /// A frame outside the image is an error, too.
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        self.check()?;
        if let Some(frame) = frames.iter().find(|frame| frame.0 >= self.image.frames) {
            let reason =
                format!("frame {frame} is not in the image of {} frames", self.image.frames);
            return Err(SourceError::new(reason));
        }
        let now = Instant::now();
        let mut requests = Requests::new();
        // Held until the requests are written, so that they are not also asked for by whoever
        // reconnects.
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
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("image", &self.image)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
