//! What survives the death of a process that serves a VM.

mod takeover;

use crate::error::{Asked, Error, ErrorKind};
use crate::sys::{Descriptor, MESSAGE_WORDS, Message, SharedWords, message};
use parking_lot::Mutex;
use rustix::fs::{
    FlockOperation, MemfdFlags, OFlags, SealFlags, fcntl_add_seals, flock, ftruncate, memfd_create,
};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// The first word: a name and a version.
const MAGIC: u64 = u64::from_le_bytes(*b"KALEJNL\x01");

/// Places of words.
const FRAMES: usize = 1;
const NOTES_BYTES: usize = 2;
const STATE: usize = 3;
/// Where the kernel writes a message: on the first page, which stays in memory.
const SLOT: usize = 8;

/// Words before the notes.
const HEADER: usize = 512;

/// Most bytes of notes.
const MAX_NOTES: usize = 64 << 10;

/// Values of the state.
const FRESH: u64 = 0;
const BEGUN: u64 = 1;

/// The state of a session, in memory that outlives the process: it lets another process go on
/// serving the VM when this one has died.
///
/// A second process, such as a supervisor or systemd's file descriptor store, holds a copy of the
/// journal's descriptor and of the VM's userfaultfd. While any copy of the userfaultfd is open, the
/// VM's vCPUs wait for their pages. The next process opens the journal and starts a session with it
/// and with the same userfaultfd, regions and image. That session
///
/// - installs zeros, and no page of the parent's, where the guest has given memory back
///   (the journal has a bit for each frame)
/// - takes up the message that the former process had read and not processed: the kernel writes
///   messages into the journal, so that none is lost
/// - wakes all vCPUs that wait, which then report their faults anew
///
/// The kernel itself knows which pages are resident: it never replaces one.
///
/// A session with a journal serves one userfaultfd, which has UFFD_FEATURE_EVENT_REMOVE. One
/// process at a time uses a journal.
///
/// ```no_run
/// use kaleidoscope_kvm::uffd::Journal;
/// # fn hold(_: std::os::fd::BorrowedFd) {}
/// # fn serve(_: Journal) -> Result<(), kaleidoscope_kvm::Error> { Ok(()) }
/// use std::os::fd::AsFd;
///
/// let journal = Journal::create(b"what the VMM sent", 1 << 18)?; // of a guest of 1 GiB
/// hold(journal.as_fd()); // e.g. FDSTORE=1 to systemd
/// serve(journal)?; // SessionBuilder::journal
/// # Ok::<(), kaleidoscope_kvm::Error>(())
/// ```
#[derive(Debug)]
pub struct Journal {
    file: OwnedFd,
    words: SharedWords,
    frames: u32,
    notes: Vec<u8>,
    /// Held while a message is read and processed: there is room for one.
    reading: Mutex<()>,
    /// Locks the journal for this process: the lock ends with the process, because no other one
    /// shares this open file.
    _lock: OwnedFd,
}

/// Words of the journal for a guest of so many frames.
fn words_of(frames: u32, notes: usize) -> usize {
    HEADER + notes.div_ceil(8) + frames.div_ceil(64) as usize
}

impl Journal {
    /// A journal for the session of a guest that has this number of frames. `notes` are for the
    /// process that will open the journal: at most 64 KiB.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for longer notes, [`ErrorKind::Refused`] when the system has no
    /// memory or descriptor.
    pub fn create(notes: &[u8], frames: u32) -> Result<Self, Error> {
        let what = "creating a journal";
        if notes.len() > MAX_NOTES {
            return Err(Error::input("a journal's notes have at most 64 KiB"));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("kaleidoscope-journal", flags).asked(what)?;
        let bytes = words_of(frames, notes.len()) * 8;
        ftruncate(&file, bytes as u64).asked(what)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).asked(what)?;
        let words = SharedWords::map(&file).asked(what)?;
        for (word, bytes) in words.get().iter().skip(HEADER).zip(notes.chunks(8)) {
            let mut whole = [0; 8];
            whole.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
        }
        let values = [(NOTES_BYTES, notes.len() as u64), (FRAMES, u64::from(frames)), (0, MAGIC)];
        for (at, value) in values {
            if let Some(word) = words.get().get(at) {
                word.store(value, Ordering::Release);
            }
        }
        drop(words);
        Self::open(file)
    }

    /// The journal of a session that may have begun in another process.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a file that is no journal, [`ErrorKind::InUse`] while
    /// another process uses it, [`ErrorKind::Refused`] when the system has no memory or descriptor.
    pub fn open(file: OwnedFd) -> Result<Self, Error> {
        let what = "opening a journal";
        let words = match SharedWords::map(&file) {
            Err(Errno::INVAL) => return Err(Error::input("the descriptor is no journal")),
            mapped => mapped.asked(what)?,
        };
        let value = |at: usize| words.get().get(at).map_or(0, |word| word.load(Ordering::Acquire));
        let notes_bytes = usize::try_from(value(NOTES_BYTES)).unwrap_or(usize::MAX);
        let frames = u32::try_from(value(FRAMES)).ok().filter(|_| {
            value(0) == MAGIC && notes_bytes <= MAX_NOTES && matches!(value(STATE), FRESH | BEGUN)
        });
        let frames = frames
            .filter(|frames| words.get().len() == words_of(*frames, notes_bytes))
            .ok_or_else(|| Error::input("the descriptor is no journal of this version"))?;
        let notes = words.get().iter().skip(HEADER).take(notes_bytes.div_ceil(8));
        let mut notes: Vec<u8> =
            notes.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        notes.truncate(notes_bytes);
        // An open file of its own: copies of `file` share one, and with it the lock.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let access = OFlags::RDWR | OFlags::CLOEXEC;
        let lock = rustix::fs::open(path, access, rustix::fs::Mode::empty()).asked(what)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let what = "another session uses the journal";
                return Err(Error::new(ErrorKind::InUse, what));
            }
            locked => locked.asked(what)?,
        }
        Ok(Self { file, words, frames, notes, reading: Mutex::new(()), _lock: lock })
    }

    /// The notes that it was created with.
    #[must_use]
    pub fn notes(&self) -> &[u8] {
        &self.notes
    }

    /// Frames of the guest.
    pub(in crate::uffd) fn frames(&self) -> u32 {
        self.frames
    }

    /// Notes that a session begins; returns whether one had begun before.
    pub(in crate::uffd) fn begin(&self) -> bool {
        let state = self.words.get().get(STATE);
        state.is_some_and(|state| state.swap(BEGUN, Ordering::AcqRel) == BEGUN)
    }

    fn slot(&self) -> Option<&[AtomicU64; MESSAGE_WORDS]> {
        self.words.get().get(SLOT..)?.first_chunk()
    }

    /// Reads the next message. What it says was given back, as `frames_in` tells, is in the journal
    /// before the message leaves it.
    pub(in crate::uffd) fn read<F: Iterator<Item = Range<u32>>>(
        &self,
        descriptor: &Descriptor,
        frames_in: impl FnOnce(Range<u64>) -> F,
    ) -> Result<Option<Message>, Errno> {
        let slot = self.slot().ok_or(Errno::INVAL)?;
        let _reading = self.reading.lock();
        let message = descriptor.read_into(slot)?;
        if let Some(Message::Removed(range)) = &message {
            frames_in(range.clone()).for_each(|frames| self.give_back(frames));
        }
        clear(slot);
        Ok(message)
    }

    /// Takes up the message that a former process has read and not processed.
    pub(in crate::uffd) fn take_up<F: Iterator<Item = Range<u32>>>(
        &self,
        frames_in: impl FnOnce(Range<u64>) -> F,
    ) -> Result<(), Error> {
        let slot = self.slot().ok_or_else(|| Error::input("the journal has no room"))?;
        let _reading = self.reading.lock();
        match message(&std::array::from_fn(|n| {
            slot.get(n).map_or(0, |word| word.load(Ordering::Acquire))
        })) {
            // Without a message; or the vCPU reports its fault anew.
            None | Some(Message::Fault { .. }) => {}
            Some(Message::Removed(range)) => {
                frames_in(range).for_each(|frames| self.give_back(frames));
            }
            Some(Message::Forked(_) | Message::Unserved(_)) => {
                return Err(Error::state(
                    "the VM's process did what cannot be served before the former handler died",
                ));
            }
        }
        clear(slot);
        Ok(())
    }

    fn bit(&self, frame: u32) -> Option<(&AtomicU64, u64)> {
        let at = HEADER + self.notes.len().div_ceil(8) + frame as usize / 64;
        Some((self.words.get().get(at)?, 1 << (frame % 64)))
    }

    fn give_back(&self, frames: Range<u32>) {
        for frame in frames {
            if let Some((word, bit)) = self.bit(frame) {
                word.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }

    /// Whether the guest has given a frame back: where it is not resident, it reads as zeros.
    pub(in crate::uffd) fn is_given_back(&self, frame: u32) -> bool {
        self.bit(frame).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// All frames that the guest has given back, in order.
    pub(in crate::uffd) fn given_back(&self) -> impl Iterator<Item = Range<u32>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = (from..self.frames).find(|frame| self.is_given_back(*frame))?;
            let end = (start..self.frames).find(|frame| !self.is_given_back(*frame));
            from = end.unwrap_or(self.frames);
            Some(start..from)
        })
    }
}

fn clear(slot: &[AtomicU64; MESSAGE_WORDS]) {
    slot.iter().for_each(|word| word.store(0, Ordering::Release));
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journals_keep_notes_and_what_was_given_back() {
        let journal = Journal::create(b"thirteen byte", 200).unwrap();
        let file = journal.as_fd().try_clone_to_owned().unwrap();
        assert!(!journal.begin());
        journal.give_back(3..5);
        journal.give_back(63..130);
        journal.give_back(199..200);
        // Beyond its frames.
        journal.give_back(300..310);
        let busy = Journal::open(file.try_clone().unwrap()).unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::InUse);
        drop(journal);
        let journal = Journal::open(file).unwrap();
        assert!(journal.begin());
        assert_eq!((journal.notes(), journal.frames()), (&b"thirteen byte"[..], 200));
        let runs: Vec<_> = journal.given_back().collect();
        assert_eq!(runs, [3..5, 63..130, 199..200]);
    }

    #[test]
    fn a_message_that_was_read_is_taken_up() {
        let journal = Journal::create(b"", 64).unwrap();
        let removed = [u64::from(linux_raw_sys::general::UFFD_EVENT_REMOVE), 0x1000, 0x3000, 0];
        for (word, value) in journal.slot().unwrap().iter().zip(removed) {
            word.store(value, Ordering::Relaxed);
        }
        let mut asked = Vec::new();
        let frames_in = |range| {
            asked.push(range);
            std::iter::once(7..9)
        };
        journal.take_up(frames_in).unwrap();
        assert_eq!((asked.len(), &asked[0]), (1, &(0x1000..0x3000)));
        let runs: Vec<_> = journal.given_back().collect();
        assert_eq!((runs.len(), &runs[0]), (1, &(7..9)));
        journal
            .take_up(|_| -> std::vec::IntoIter<Range<u32>> { panic!("taken up twice") })
            .unwrap();
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        let refused = |file: OwnedFd| Journal::open(file).unwrap_err().kind();
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        assert_eq!(refused(file.into()), ErrorKind::InvalidInput);
        let sealed = |bytes: u64| {
            let file = memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&file, bytes).unwrap();
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
            file
        };
        for bytes in [0, 8, 4096, 8192, 8191] {
            assert_eq!(refused(sealed(bytes)), ErrorKind::InvalidInput, "{bytes}");
        }
        assert!(Journal::create(&[0; MAX_NOTES + 1], 1).is_err());
        // Each word of the header decides.
        for at in [0, FRAMES, NOTES_BYTES, STATE] {
            let journal = Journal::create(b"", 64).unwrap();
            journal.words.get()[at].store(u64::MAX, Ordering::Relaxed);
            let file = journal.as_fd().try_clone_to_owned().unwrap();
            drop(journal);
            assert_eq!(refused(file), ErrorKind::InvalidInput, "{at}");
        }
    }
}
