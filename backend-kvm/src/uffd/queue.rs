//! The kernel's messages about memory that userfaultfds watch.

use super::memory::{End, UserfaultMemory, Watched};
use crate::sys::Message;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, FaultQueue, InstallError};
use kaleidoscope_core::prefetch::Access;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Longest wait for faults. Whether the VM has ended is only looked at between waits: polled with
/// every wait, that costs each fault a few percent.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

impl End {
    /// How to wait for it, and which events tell that it has come.
    fn poll(&self) -> (PollFd<'_>, PollFlags) {
        let hung_up = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
        match self {
            Self::Closed(fd) => (PollFd::new(fd, PollFlags::RDHUP), hung_up | PollFlags::RDHUP),
            Self::Exited(fd) => (PollFd::new(fd, PollFlags::IN), hung_up | PollFlags::IN),
        }
    }
}

impl Watched {
    /// How to wait for its faults.
    fn poll(&self) -> PollFd<'_> {
        PollFd::new(&*self.descriptor, PollFlags::IN)
    }
}

impl End {
    /// Whether one of them has come: the VM has ended.
    pub(super) fn has_come(ends: &[Self]) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        ends.iter().any(|end| {
            let (fd, told) = end.poll();
            let mut fds = [fd];
            let polled = poll(&mut fds, Some(&now));
            let [fd] = fds;
            polled.is_ok() && fd.revents().intersects(told)
        })
    }
}

impl UserfaultMemory {
    /// A fault as an event.
    fn fault(
        &self,
        watched: &Watched,
        address: u64,
        is_write: bool,
    ) -> Result<Event, InstallError> {
        let mut shards = watched.shards.iter().filter_map(|at| self.shards.get(*at));
        let frame = shards.find_map(|shard| shard.frame_at(address)).map(FrameIndex);
        let frame = frame.ok_or_else(|| {
            let what = format!("the VM touched {address:#x}, which is in none of its regions");
            InstallError::new(what)
        })?;
        let access = if is_write { Access::Write } else { Access::Read };
        Ok(Event::Fault { frame, access })
    }

    /// The frames that a range of addresses touches.
    pub(super) fn frames_in(
        &self,
        watched: &Watched,
        range: Range<u64>,
    ) -> impl Iterator<Item = Range<u32>> {
        let shards = watched.shards.iter().filter_map(|at| self.shards.get(*at));
        shards.filter_map(move |shard| shard.frames_in(&range))
    }

    /// The next message of a descriptor.
    fn next(&self, watched: &Watched) -> Result<Option<Message>, Errno> {
        match &self.journal {
            None => watched.descriptor.read(),
            Some(journal) => {
                journal.read(&watched.descriptor, |range| self.frames_in(watched, range))
            }
        }
    }

    /// The frames that a range of addresses touches, as events: returns the first, and keeps the
    /// others for the next reads.
    fn removed(&self, watched: &Watched, range: &Range<u64>) -> Option<Event> {
        let mut events = self.frames_in(watched, range.clone()).map(|frames| {
            if let Some(blocks) = &self.blocks {
                blocks.give_back(frames.clone());
            }
            Event::Removed(frames)
        });
        let first = events.next();
        let mut rest = events.peekable();
        if rest.peek().is_some() {
            self.pending.lock().extend(rest);
        }
        first
    }
}

impl UserfaultMemory {
    /// Reads all messages, of memory that is no longer watched: threads of the VM wait until their
    /// message is read.
    pub(super) fn drain(&self) {
        for watched in &self.watched {
            // A VM that registers its memory anew does not keep this thread here.
            for _ in 0..MAX_LEFT {
                match watched.descriptor.read() {
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }
}

/// Maximum number of messages that are read after memory is no longer watched. Each thread of a
/// process has at most one, and Linux allows fewer threads by default.
const MAX_LEFT: u32 = 1 << 16;

/// The VM did something that ends its session.
fn unserved(what: &str) -> InstallError {
    InstallError::new(format!("the VM's process {what}, which cannot be served"))
}

impl FaultQueue for UserfaultMemory {
    fn wait(&self, wait: Duration) -> Result<(), InstallError> {
        if self.revoked.load(Ordering::Acquire) || !self.pending.lock().is_empty() {
            return Ok(());
        }
        let timeout = Timespec::try_from(wait.min(LONGEST_WAIT)).ok();
        let is_refused =
            |fds: &[PollFd<'_>]| fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR));
        let polled = match self.watched.as_slice() {
            [one] => {
                let mut fds = [one.poll()];
                poll(&mut fds, timeout.as_ref()).map(|n| n > 0 && is_refused(&fds))
            }
            all => {
                let mut fds: Vec<_> = all.iter().map(Watched::poll).collect();
                poll(&mut fds, timeout.as_ref()).map(|n| n > 0 && is_refused(&fds))
            }
        };
        match polled {
            Ok(false) | Err(Errno::INTR) => Ok(()),
            // The kernel refuses to poll a userfaultfd in these two states, and poll would return
            // at once every time.
            Ok(true) => Err(InstallError::new(
                "a userfaultfd of the VM cannot be waited for: UFFDIO_API was not called on it, or \
                 another process made it blocking",
            )),
            Err(error) => Err(InstallError::caused_by("waiting for faults", error)),
        }
    }

    fn read(&self) -> Result<Option<Event>, InstallError> {
        if self.revoked.load(Ordering::Acquire) {
            return Ok(Some(Event::Closed));
        }
        if let Some(event) = self.pending.lock().pop_front() {
            return Ok(Some(event));
        }
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        for n in 0..self.watched.len() {
            let Some(watched) = self.watched.get(first.wrapping_add(n) % self.watched.len()) else {
                continue;
            };
            let message = self.next(watched);
            let message = message.map_err(|e| InstallError::caused_by("reading faults", e))?;
            let event = match message {
                None => None,
                Some(Message::Fault { address, is_write }) => {
                    Some(self.fault(watched, address, is_write)?)
                }
                Some(Message::Removed(range)) => self.removed(watched, &range),
                Some(Message::Forked(uffd)) => {
                    // Closed, missing pages of the child would read as zeros.
                    self.forked.lock().push(uffd);
                    return Err(unserved("forked"));
                }
                Some(Message::Unserved(what)) => return Err(unserved(what)),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        // Only when there is nothing else to do: a system call.
        if End::has_come(&self.ends) {
            return Ok(Some(Event::Closed));
        }
        Ok(None)
    }
}
