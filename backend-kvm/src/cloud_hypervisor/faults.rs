//! The connection on which a VMM asks for pages.

use super::channel::{Channel, Received};
use super::codec::{Command, FAULT, Fault, HEADER, Request, Response};
use super::memory_files::MemoryFiles;
use super::pages::{Pages, stopped};
use crate::error::{Error, ErrorKind};
use crate::uffd::FrameSet;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::Stopped;
use kaleidoscope_core::prefetch::Access;
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const ASKING: &str = "a request for a page";
const ANSWERING: &str = "answering a request for a page";

/// How a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Ended {
    /// The VM has all of its memory, and runs on without this process.
    HasAllMemory,
    /// The VM, or its VMM, ended before it had all of its memory.
    Closed,
}

/// Answers requests for pages, one after the other: cloud-hypervisor sends one at a time.
#[derive(Debug)]
pub(super) struct Faults {
    pub(super) channel: Arc<Channel>,
    pub(super) pages: Arc<Pages>,
    pub(super) files: MemoryFiles,
    /// Whether pages are in the answers, and not in files that the VMM maps.
    pub(super) sends_pages: bool,
    /// The VMM's process (pidfd), which is ended when its pages cannot be delivered.
    pub(super) vmm: Option<OwnedFd>,
    pub(super) progress: Arc<Progress>,
}

/// What other threads know of a connection for pages.
#[derive(Debug, Default)]
pub(super) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
    is_stopped: AtomicBool,
    guest_runs: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    has_asked: bool,
    /// The end of the connection, with the error's kind and text.
    outcome: Option<Result<Ended, (ErrorKind, String)>>,
}

impl Progress {
    /// Waits for the first request for a page.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when none comes by `end`, or the connection is closed without
    /// one: the VMM has not been told that pages come later.
    pub(super) fn wait_for_request(&self, end: Option<Instant>) -> Result<(), Error> {
        const HELP: &str = "cloud-hypervisor asks for no pages, and its guest would read zeros: \
             `receive-migration` needs memory_mode=postcopy (53.0 or later)";
        let mut state = self.state.lock();
        loop {
            match &state.outcome {
                Some(Err((kind, what))) => return Err(Error::new(*kind, what.clone())),
                _ if state.has_asked => return Ok(()),
                Some(Ok(_)) => return Err(Error::new(ErrorKind::Unsupported, HELP)),
                None => {}
            }
            match end {
                Some(end) if self.changed.wait_until(&mut state, end).timed_out() => {
                    return Err(Error::new(ErrorKind::Unsupported, HELP));
                }
                Some(_) => {}
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// How the connection ended; `None` while it is served.
    pub(super) fn outcome(&self) -> Option<Result<Ended, Error>> {
        let state = self.state.lock();
        let outcome = state.outcome.as_ref()?;
        Some(outcome.clone().map_err(|(kind, what)| Error::new(kind, what)))
    }

    pub(super) fn end(&self, outcome: Result<Ended, Error>) {
        let outcome = outcome.map_err(|error| (error.kind(), error.to_string()));
        let mut state = self.state.lock();
        if state.outcome.is_none() {
            state.outcome = Some(outcome);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// From now on the guest may run.
    pub(super) fn guest_runs(&self) {
        self.guest_runs.store(true, Ordering::Release);
    }

    /// Has the thread that answers end.
    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
    }

    fn is_guest_running(&self) -> bool {
        self.guest_runs.load(Ordering::Acquire)
    }

    fn has_asked(&self) {
        let mut state = self.state.lock();
        if !state.has_asked {
            state.has_asked = true;
            drop(state);
            self.changed.notify_all();
        }
    }
}

/// Frames that were asked for.
struct Asked {
    frames: FrameSet,
    missing: u32,
}

impl Asked {
    fn new(frames: u32) -> Self {
        Self { frames: FrameSet::new(frames), missing: frames }
    }

    /// What it means that the VMM closes the connection.
    fn closed(&self) -> Ended {
        if self.missing == 0 { Ended::HasAllMemory } else { Ended::Closed }
    }

    fn add(&mut self, frame: FrameIndex) {
        self.missing = self.missing.saturating_sub(u32::from(self.frames.set(frame)));
    }
}

impl Faults {
    /// Answers until the connection ends.
    pub(super) fn serve(&self) {
        let mut asked = Asked::new(self.files.frames());
        let outcome = match self.answer_all(&mut asked) {
            // The VMM exited within a message, or before it took its answer.
            Err(error) if error.kind() == ErrorKind::Ended && self.goes_on().is_ok() => {
                Ok(asked.closed())
            }
            outcome => outcome,
        };
        let is_failure = outcome.is_err() && asked.missing > 0;
        // Before the VMM is told, which ends other waits.
        self.progress.end(outcome);
        if is_failure {
            self.fail();
        } else {
            self.channel.close();
        }
        self.pages.stop();
    }

    /// The VM's pages cannot be delivered. When cloud-hypervisor gets an error, or finds the
    /// connection closed, it closes its userfaultfd and then ends the VM; in between, the guest
    /// reads zeros. Therefore the VMM is ended first; one that may not be ended keeps waiting.
    pub(super) fn fail(&self) {
        if let Some(vmm) = self.vmm.as_ref().filter(|_| self.progress.is_guest_running()) {
            match pidfd_send_signal(vmm, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                // Of another user, for example: the connection stays open until this process exits.
                Err(_) => return std::mem::forget(Arc::clone(&self.channel)),
            }
        }
        let _ = self.channel.send(&Response::ERROR.to_bytes(), ANSWERING);
        self.channel.close();
    }

    fn answer_all(&self, asked: &mut Asked) -> Result<Ended, Error> {
        let mut page = Vec::new();
        loop {
            let mut header = [0; HEADER];
            let received = self.channel.receive_when(&mut header, ASKING, || self.goes_on());
            match received? {
                Received::All => {}
                Received::Closed if self.progress.is_stopped.load(Ordering::Acquire) => {
                    return Err(stopped(&Stopped::Cancelled));
                }
                Received::Closed => return Ok(asked.closed()),
            }
            let request = Request::parse(&header)?;
            if request.command == Command::Abandon {
                self.channel.send(&Response::OK.to_bytes(), ANSWERING)?;
                return Ok(Ended::Closed);
            }
            self.answer(request, asked, &mut page)?;
        }
    }

    /// Whether to wait on for a request.
    fn goes_on(&self) -> Result<(), Error> {
        if self.progress.is_stopped.load(Ordering::Acquire) {
            return Err(stopped(&Stopped::Cancelled));
        }
        let why = self.pages.engine().and_then(|engine| engine.stopped());
        why.map_or(Ok(()), |why| Err(stopped(&why)))
    }

    fn answer(&self, request: Request, asked: &mut Asked, page: &mut Vec<u8>) -> Result<(), Error> {
        if request.command != Command::PageFault {
            let what = format!("{:?} came where pages are asked for", request.command);
            return Err(Error::input(what));
        }
        request.check_length(FAULT)?;
        let mut bytes = [0; FAULT];
        self.channel.receive(&mut bytes, ASKING)?;
        let Fault { gpa, length } = Fault::parse(&bytes)?;
        let frames = self.files.frames_at(gpa, length).ok_or_else(|| {
            Error::input(format!("{length:#x} bytes at {gpa} were asked for, which are no RAM"))
        })?;
        let engine = self.pages.start()?;
        self.progress.has_asked();
        for frame in frames {
            // Whether the guest reads or writes is not told.
            let frame = FrameIndex(frame);
            let resident = engine.fault(frame, Access::Read);
            resident.map_err(|why| stopped(&why))?;
            asked.add(frame);
        }
        if !self.sends_pages {
            return self.channel.send(&Response::OK.to_bytes(), ANSWERING);
        }
        // At most `MAX_PAGE`.
        page.clear();
        page.extend_from_slice(&Response { is_ok: true, length }.to_bytes());
        page.resize(HEADER.saturating_add(usize::try_from(length).unwrap_or(0)), 0);
        self.files.read(gpa, page.get_mut(HEADER..).unwrap_or_default())?;
        self.channel.send(page, ANSWERING)
    }
}
