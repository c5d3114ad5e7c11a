//! What the kernel reports of memory that userfaultfds watch.

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
    /// How to wait for it, and what tells that it has come.
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

impl UserfaultMemory {
    /// Whether something has told that the VM has ended.
    fn has_ended(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.ends.iter().any(|end| {
            let (fd, told) = end.poll();
            let mut fds = [fd];
            let polled = poll(&mut fds, Some(&now));
            let [fd] = fds;
            polled.is_ok() && fd.revents().intersects(told)
        })
    }

    /// The access of a fault as an event.
    fn fault(
        &self,
        watched: &Watched,
        address: u64,
        is_write: bool,
    ) -> Result<Event, InstallError> {
        let mut shards = watched.shards.iter().filter_map(|at| self.shards.get(*at));
        let frame = shards.find_map(|shard| shard.frame_at(address)).map(FrameIndex);
        let frame = frame.ok_or_else(|| {
            InstallError::new(format!("a fault at {address:#x}, which is in no region of the VM"))
        })?;
        let access = if is_write { Access::Write } else { Access::Read };
        Ok(Event::Fault { frame, access })
    }

    /// The frames that a range of addresses touches, as events: the first, and what is left for the
    /// next reads.
    fn removed(&self, watched: &Watched, range: &Range<u64>) -> Option<Event> {
        let shards = watched.shards.iter().filter_map(|at| self.shards.get(*at));
        let mut events = shards.filter_map(|shard| shard.frames_in(range)).map(|frames| {
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

impl FaultQueue for UserfaultMemory {
    fn wait(&self, wait: Duration) -> Result<(), InstallError> {
        if self.revoked.load(Ordering::Acquire) {
            return Ok(());
        }
        let timeout = Timespec::try_from(wait.min(LONGEST_WAIT)).ok();
        let polled = match self.watched.as_slice() {
            [one] => poll(&mut [one.poll()], timeout.as_ref()),
            all => poll(&mut all.iter().map(Watched::poll).collect::<Vec<_>>(), timeout.as_ref()),
        };
        match polled {
            Ok(_) | Err(Errno::INTR) => Ok(()),
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
            let message = watched.descriptor.read();
            let message = message.map_err(|e| InstallError::caused_by("reading faults", e))?;
            let event = match message {
                None => None,
                Some(Message::Fault { address, is_write }) => {
                    Some(self.fault(watched, address, is_write)?)
                }
                Some(Message::Removed(range)) => self.removed(watched, &range),
                Some(Message::Rearranged(what)) => {
                    let what = format!("the VM {what}, which cannot be served");
                    return Err(InstallError::new(what));
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        // Only when there is nothing else to do: a system call.
        if !self.ends.is_empty() && self.has_ended() {
            return Ok(Some(Event::Closed));
        }
        Ok(None)
    }
}
