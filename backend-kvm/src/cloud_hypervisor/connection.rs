//! A VMM's connection for pages, and the thread that answers there.

use super::channel::Channel;
use super::codec::FAULT_ROLE;
use super::faults::{Ended, Faults, Progress};
use super::memory_files::MemoryFiles;
use super::pages::{Pages, stopped};
use crate::error::{Asked, Error, ErrorKind};
use crate::sys::Peer;
use kaleidoscope_core::clone::Stopped;
use kaleidoscope_core::service;
use parking_lot::Mutex;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Bytes of the stack of the thread that answers.
const STACK: usize = 256 << 10;

/// A connection on which a VMM asks for pages. It is closed on drop.
#[derive(Debug)]
pub(super) struct Connection {
    channel: Arc<Channel>,
    pages: Arc<Pages>,
    progress: Arc<Progress>,
    process: u32,
    pidfd: OwnedFd,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Connection {
    /// Announces what the connection is for, and answers on a thread from then on.
    pub(super) fn start(
        channel: Channel,
        pages: Pages,
        files: MemoryFiles,
        sends_pages: bool,
        ends_vmm: bool,
    ) -> Result<Self, Error> {
        channel.send(&FAULT_ROLE, "opening a connection for pages")?;
        let vmm = Peer::of(channel.stream().as_fd()).asked("identifying the VMM")?;
        let what = "the VMM's process";
        let pidfd = vmm.process.try_clone();
        let connection = Self {
            channel: Arc::new(channel),
            pages: Arc::new(pages),
            progress: Arc::default(),
            process: vmm.pid,
            pidfd: pidfd.map_err(|error| Error::caused_by(ErrorKind::Refused, what, error))?,
            thread: Mutex::default(),
        };
        let (pages, progress) = (Arc::clone(&connection.pages), Arc::clone(&connection.progress));
        let faults = Arc::new(Faults {
            channel: Arc::clone(&connection.channel),
            pages: Arc::clone(&pages),
            files,
            sends_pages,
            vmm: ends_vmm.then_some(vmm.process),
            progress: Arc::clone(&progress),
        });
        let fails = Arc::clone(&faults);
        let panicked = move |panic| {
            pages.stop();
            progress.end(Err(stopped(&Stopped::Panicked(panic))));
            fails.fail();
        };
        let thread = service::spawn("pages", STACK, move || faults.serve(), panicked);
        *connection.thread.lock() = Some(thread.asked("starting a thread that answers for pages")?);
        Ok(connection)
    }

    pub(super) fn pages(&self) -> &Pages {
        &self.pages
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The number of the VMM's process.
    pub(super) fn process(&self) -> u32 {
        self.process
    }

    /// The VMM's process.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits for the end of the connection.
    pub(super) fn wait(&self) -> Result<Ended, Error> {
        // Locked until the end: a second caller waits, too.
        if let Some(thread) = self.thread.lock().take() {
            // A panic there is the outcome.
            let _ = thread.join();
        }
        self.progress.outcome().unwrap_or_else(|| Err(stopped(&Stopped::Cancelled)))
    }

    /// Ends the waits of the thread that answers, and thereby the thread.
    pub(super) fn stop(&self) {
        self.progress.stop();
        self.pages.stop();
        self.channel.stop_receiving();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stop();
        let _ = self.wait();
    }
}
