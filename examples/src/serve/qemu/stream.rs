//! The engine's ports on a migration's connection: pages are installed by sending them, and faults
//! are the destination's requests.

use kaleidoscope_core::addr::{FRAME_SIZE, FrameIndex};
use kaleidoscope_core::clone::ports::{Event, FaultQueue, InstallError, Installed, PageInstaller};
use kaleidoscope_core::memory::Page;
use kaleidoscope_core::prefetch::Access;
use kaleidoscope_kvm::qemu::{PostcopySource, ReturnPath, Wanted};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Bytes that wait in the connection: a requested page is behind no more than these.
const WAITING: usize = 128 << 10;

/// Longest time for a connection that is closed to tell so.
const CLOSED: Duration = Duration::from_secs(1);

/// Longest time for the destination to take bytes.
const TAKING: Duration = Duration::from_secs(60);

/// Most requests that wait. QEMU has one for each thread that waits for a page.
const REQUESTS: usize = 1 << 16;

/// Most pages of zeros that are sent at once.
const ZEROS: u32 = 1024;

/// A connection to a destination.
pub(super) struct Stream {
    connection: UnixStream,
    sender: Mutex<Sender>,
    receiver: Mutex<Receiver>,
}

struct Sender {
    source: Option<PostcopySource>,
    /// A bit for each frame that was sent.
    sent: Vec<u64>,
    buffer: Vec<u8>,
    counts: Counts,
}

/// What was sent.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Counts {
    pub(super) bytes: u64,
    pub(super) pages: u64,
    pub(super) zeros: u64,
    pub(super) requests: u64,
}

struct Receiver {
    path: ReturnPath,
    /// Frames that were asked for, in this order. A request may be of 4 GiB.
    pending: VecDeque<Range<u32>>,
    is_ready: bool,
    is_loaded: bool,
    /// Whether all frames were sent: requests mean nothing then.
    is_finished: bool,
    /// How the migration has ended, if it has.
    end: Option<u32>,
    is_closed: bool,
    requests: u64,
}

impl Stream {
    /// Sends what comes before the first page.
    pub(super) fn open(
        connection: UnixStream,
        source: PostcopySource,
        ram: &str,
        opening: &[u8],
    ) -> io::Result<Self> {
        rustix::net::sockopt::set_socket_send_buffer_size(&connection, WAITING)?;
        connection.set_write_timeout(Some(TAKING))?;
        (&connection).write_all(opening)?;
        let frames = source.ram_bytes() / FRAME_SIZE;
        let words = usize::try_from(frames / 64 + 1).map_err(io::Error::other)?;
        let receiver = Receiver {
            path: ReturnPath::new(ram, source.ram_bytes()),
            pending: VecDeque::new(),
            is_ready: false,
            is_loaded: false,
            is_finished: false,
            end: None,
            is_closed: false,
            requests: 0,
        };
        let counts = Counts { bytes: opening.len() as u64, ..Counts::default() };
        let sender =
            Sender { source: Some(source), sent: vec![0; words], buffer: Vec::new(), counts };
        Ok(Self { connection, sender: Mutex::new(sender), receiver: Mutex::new(receiver) })
    }

    /// Waits for at most `wait`, then takes what has arrived.
    fn receive(&self, wait: Duration) -> Result<(), InstallError> {
        let failed = |error: Errno| InstallError::caused_by("waiting for requests", error);
        let timeout = Timespec::try_from(wait).ok();
        match poll(&mut [PollFd::new(&self.connection, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            Ok(_) => self.take(),
            Err(error) => Err(failed(error)),
        }
    }

    /// Takes what has arrived. Never waits.
    fn take(&self) -> Result<(), InstallError> {
        let mut receiver = self.receiver.lock();
        let mut buffer = [0; 1 << 14];
        match rustix::net::recv(&self.connection, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(Errno::CONNRESET | Errno::PIPE) => receiver.is_closed = true,
            Ok((count, _)) => receiver.path.push(buffer.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(InstallError::caused_by("reading requests", error)),
        }
        while let Some(wanted) = receiver
            .path
            .next_wanted()
            .map_err(|error| InstallError::caused_by("QEMU's requests", error))?
        {
            match wanted {
                Wanted::Pages { offset, bytes } => {
                    // Within the RAM, which has at most 2^28 frames.
                    let frame = |at: u64| u32::try_from(at / FRAME_SIZE).unwrap_or(u32::MAX);
                    receiver.requests += 1;
                    if receiver.is_finished {
                        continue;
                    }
                    if receiver.pending.len() >= REQUESTS {
                        return Err(InstallError::new("QEMU has too many requests"));
                    }
                    let frames = frame(offset)..frame(offset.saturating_add(bytes));
                    receiver.pending.push_back(frames);
                }
                Wanted::Loaded => receiver.is_loaded = true,
                Wanted::Ready => receiver.is_ready = true,
                Wanted::End(value) => receiver.end = Some(value),
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until QEMU has accepted a postcopy migration; `false` if it does not within `wait`, or
    /// closes the connection.
    pub(super) fn is_accepted_within(&self, wait: Duration) -> Result<bool, InstallError> {
        let start = std::time::Instant::now();
        while start.elapsed() < wait {
            self.receive(Duration::from_millis(10))?;
            let receiver = self.receiver.lock();
            if receiver.is_ready || receiver.is_closed || receiver.end.is_some() {
                return Ok(receiver.is_ready);
            }
        }
        Ok(false)
    }

    /// Frames that were not sent.
    pub(super) fn missing(&self) -> Vec<FrameIndex> {
        let sender = self.sender.lock();
        let frames = sender.source.as_ref().map_or(0, |source| source.ram_bytes() / FRAME_SIZE);
        let is_sent = |frame: u32| is_set(&sender.sent, frame);
        (0..u32::try_from(frames).unwrap_or(0)).filter(|n| !is_sent(*n)).map(FrameIndex).collect()
    }

    /// Sends zeros for all frames that were not sent, and the end.
    pub(super) fn finish(&self) -> Result<(), InstallError> {
        let mut receiver = self.receiver.lock();
        receiver.is_finished = true;
        receiver.pending.clear();
        drop(receiver);
        for FrameIndex(frame) in self.missing() {
            let _ = self.zero_run(frame..frame + 1)?;
        }
        let mut sender = self.sender.lock();
        let mut end = Vec::new();
        if let Some(source) = sender.source.take() {
            source.finish(&mut end);
        }
        sender.counts.bytes += end.len() as u64;
        write(&self.connection, &end)
    }

    /// Waits until QEMU says that it has all; `None` if it does not in time.
    pub(super) fn end_within(&self, wait: Duration) -> Result<Option<u32>, InstallError> {
        let start = std::time::Instant::now();
        while start.elapsed() < wait {
            let receiver = self.receiver.lock();
            if receiver.end.is_some() || receiver.is_closed {
                return Ok(receiver.end);
            }
            drop(receiver);
            self.receive(Duration::from_millis(20))?;
        }
        Ok(None)
    }

    /// Whether QEMU has loaded the devices, after which the guest runs. The last messages of a
    /// connection that is closed are taken, too.
    pub(super) fn is_loaded(&self) -> Result<bool, InstallError> {
        let _ = self.end_within(CLOSED)?;
        Ok(self.receiver.lock().is_loaded)
    }

    /// What was sent until now.
    pub(super) fn counts(&self) -> Counts {
        let counts = self.sender.lock().counts;
        Counts { requests: self.receiver.lock().requests, ..counts }
    }

    /// How the migration has ended, if QEMU has said so.
    pub(super) fn end(&self) -> Option<u32> {
        self.receiver.lock().end
    }

    fn send(&self, frames: Range<u32>, page: Option<&Page>) -> Result<Installed, InstallError> {
        let mut sender = self.sender.lock();
        let Sender { source, sent, buffer, counts } = &mut *sender;
        let Some(source) = source else { return Ok(Installed::AlreadyPresent) };
        buffer.clear();
        for frame in frames {
            if is_set(sent, frame) {
                continue;
            }
            let word = sent.get_mut(frame as usize / 64);
            let word = word.ok_or_else(|| InstallError::new("a frame outside of the RAM"))?;
            *word |= 1 << (frame % 64);
            source.page(u64::from(frame) * FRAME_SIZE, page, buffer);
            if page.is_some() { counts.pages += 1 } else { counts.zeros += 1 }
        }
        if buffer.is_empty() {
            return Ok(Installed::AlreadyPresent);
        }
        counts.bytes += buffer.len() as u64;
        // Under the lock: pages do not mix.
        write(&self.connection, buffer)?;
        Ok(Installed::Installed)
    }
}

/// The first frame of the first range.
fn pop(ranges: &mut VecDeque<Range<u32>>) -> Option<FrameIndex> {
    while let Some(first) = ranges.front_mut() {
        if let Some(frame) = first.next() {
            return Some(FrameIndex(frame));
        }
        ranges.pop_front();
    }
    None
}

fn is_set(bits: &[u64], at: u32) -> bool {
    bits.get(at as usize / 64).is_some_and(|word| word & (1 << (at % 64)) != 0)
}

fn write(mut connection: &UnixStream, bytes: &[u8]) -> Result<(), InstallError> {
    match connection.write_all(bytes) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
        {
            Err(InstallError::ended())
        }
        Err(error) => Err(InstallError::caused_by("QEMU takes no pages", error)),
    }
}

impl PageInstaller for Stream {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        self.send(frame.0..frame.0.saturating_add(1), Some(page))
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        self.send(frame.0..frame.0.saturating_add(1), None)
    }

    fn zero_run(&self, frames: Range<u32>) -> Result<u32, InstallError> {
        let end = frames.end.min(frames.start.saturating_add(ZEROS));
        let _ = self.send(frames.start..end, None)?;
        Ok(end.saturating_sub(frames.start))
    }

    fn wake(&self, _: FrameIndex) -> Result<(), InstallError> {
        // The page is on its way.
        Ok(())
    }
}

impl FaultQueue for Stream {
    fn wait(&self, wait: Duration) -> Result<(), InstallError> {
        if self.receiver.lock().pending.is_empty() {
            self.receive(wait.min(Duration::from_millis(20)))?;
        }
        Ok(())
    }

    fn read(&self) -> Result<Option<Event>, InstallError> {
        if self.receiver.lock().pending.is_empty() {
            self.take()?;
        }
        let mut receiver = self.receiver.lock();
        if let Some(frame) = pop(&mut receiver.pending) {
            return Ok(Some(Event::Fault { frame, access: Access::Unknown }));
        }
        let has_ended = receiver.is_closed || receiver.end.is_some();
        Ok(has_ended.then_some(Event::Closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_kvm::qemu::SavedVm;

    /// A VM with 8 GiB of RAM, as QEMU saves it without that.
    fn stream() -> (Stream, UnixStream) {
        let bytes = 8_u64 << 30;
        let mut saved = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc".to_vec();
        saved.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
        saved.extend((bytes | 4).to_be_bytes());
        saved.extend(b"\x03ram");
        saved.extend(bytes.to_be_bytes());
        saved.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x03\0\0\0\x02");
        saved.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
        saved.extend(b"\x04\0\0\0\x09\x05timer\0\0\0\0\0\0\0\x02\x01\x7e\0\0\0\x09");
        saved.extend(b"\0\x06\0\0\0\x10{\"page_size\":16}");
        let saved = SavedVm::read(&mut &*saved, "ram", &mut |_, _| Ok(())).unwrap();
        let mut opening = Vec::new();
        let source = PostcopySource::start(&saved, "ram", &mut opening).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_write_timeout(Some(TAKING)).unwrap();
        (Stream::open(ours, source, "ram", &opening).unwrap(), theirs)
    }

    /// A request for nearly 4 GiB, in 20 bytes.
    fn request(offset: u64) -> Vec<u8> {
        let mut bytes = vec![0, 3, 0, 16];
        bytes.extend(offset.to_be_bytes());
        bytes.extend(0xffff_f000_u32.to_be_bytes());
        bytes.extend(b"\x03ram");
        bytes
    }

    #[test]
    fn large_requests_take_no_memory() {
        let (stream, mut theirs) = stream();
        theirs.write_all(&request(0x5000).repeat(700)).unwrap();
        for expected in 5..1000 {
            let event = stream.read().unwrap();
            assert!(
                matches!(event, Some(Event::Fault { frame: FrameIndex(f), .. }) if f == expected)
            );
        }
        let receiver = stream.receiver.lock();
        assert!(receiver.pending.len() <= 700 && receiver.requests == 700);
    }

    #[test]
    fn requests_that_wait_are_limited_and_mean_nothing_at_the_end() {
        let (stream, mut theirs) = stream();
        let many = request(0).repeat(800);
        let mut fill = || {
            theirs.write_all(&many).unwrap();
            stream.take()
        };
        let failed = (0..200).find_map(|_| fill().err()).unwrap().to_string();
        assert!(failed.contains("too many requests"), "{failed}");

        let (stream, mut theirs) = self::stream();
        theirs.write_all(&request(0)).unwrap();
        stream.take().unwrap();
        // Nothing is missing any more.
        stream.sender.lock().source = None;
        stream.finish().unwrap();
        theirs.write_all(&many).unwrap();
        theirs.write_all(&[0, 2, 0, 4, 0, 0, 0, 2]).unwrap();
        drop(theirs);
        assert!(stream.is_loaded().unwrap(), "the last messages count");
        assert!(stream.receiver.lock().pending.is_empty());
        assert!(matches!(stream.read().unwrap(), Some(Event::Closed)));
    }
}
