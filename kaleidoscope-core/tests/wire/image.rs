//! An image whose every byte is a function of its frame and offset, and a client's view of it.

use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex, Gpa};
use kaleidoscope_core::clone::ports::{Delivery, PageSource, SourceError};
use kaleidoscope_core::memory::{GuestMemory, MemoryError, MemoryLayout, Page, VecMemory};
use kaleidoscope_core::wire::client::{Client, ClientOptions, Connector};
use kaleidoscope_core::wire::server::{ServedImage, Server, ServerOptions};
use kaleidoscope_core::wire::transport::Link;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) const DIGEST: [u8; 32] = [7; 32];

/// Timeout that no correct test reaches.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// Content of a frame: every fifth page is zeros, every third of the others compresses well, and an
/// image with holes lacks every 11th frame.
pub(crate) fn page(frame: u32) -> Page {
    let mut page = [0; FRAME_BYTES];
    if frame.is_multiple_of(5) {
        return page;
    }
    let repeat = if frame.is_multiple_of(3) { 16 } else { u64::MAX };
    for (offset, byte) in (0u64..).zip(&mut page) {
        let mut word = (u64::from(frame) << 32 | (offset % repeat)).wrapping_add(1);
        word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word ^= word >> 29;
        word = word.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        *byte = word.to_le_bytes()[4];
    }
    page
}

/// RAM in two regions, so that indices differ from frame numbers.
pub(crate) fn layout(frames: u32) -> MemoryLayout {
    let half = u64::from(frames / 2) * 4096;
    let rest = u64::from(frames) * 4096 - half;
    MemoryLayout::new(&[(Gpa(0x1000), half), (Gpa(1 << 32), rest)]).unwrap()
}

pub(crate) fn memory(frames: u32) -> VecMemory {
    VecMemory::from_bytes(layout(frames), (0..frames).flat_map(page).collect())
}

/// The same with holes, and readable by copying only.
pub(crate) struct Holes(pub VecMemory);

pub(crate) fn is_hole(frame: u32) -> bool {
    frame % 11 == 3
}

impl GuestMemory for Holes {
    fn layout(&self) -> &MemoryLayout {
        self.0.layout()
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let frame = self.layout().index_of(gpa.gfn()).unwrap();
        if is_hole(frame.0) {
            return Err(MemoryError::Missing { gpa, len: buf.len() });
        }
        self.0.read(gpa, buf)
    }
}

pub(crate) fn served(frames: u32) -> ServedImage {
    ServedImage::new(Arc::new(memory(frames)), DIGEST)
}

pub(crate) fn server(frames: u32) -> Server {
    Server::start(vec![served(frames)], Vec::new(), ServerOptions::default()).unwrap()
}

/// Servers inside this process, with a socket pair per connection.
pub(crate) struct Local(pub Vec<Arc<Server>>);

impl Connector for Local {
    fn replicas(&self) -> usize {
        self.0.len()
    }

    fn dial(&self, replica: usize) -> io::Result<Link> {
        let (ours, theirs) = Link::pair()?;
        self.0[replica].attach(theirs)?;
        Ok(ours)
    }

    fn name(&self, replica: usize) -> String {
        format!("server {replica}")
    }
}

/// Options with timeouts that are short enough for a test.
pub(crate) fn short_timeouts() -> ClientOptions {
    ClientOptions::default()
        .handshake(Duration::from_secs(1))
        .timeout(Duration::from_millis(500))
        .deadline(Duration::from_secs(30))
        .backoff(Duration::from_millis(50))
}

pub(crate) fn client(dial: impl Connector + 'static, options: ClientOptions) -> Client {
    Client::connect(Arc::new(dial), options).unwrap()
}

/// The frames received so far: `None` for frames that the image does not hold.
pub(crate) type Arrived = BTreeMap<u32, Option<Box<Page>>>;

/// Receives until this many frames have arrived, or the client fails. No frame may arrive twice.
pub(crate) fn receive(
    client: &Client,
    frames: usize,
    arrived: &mut Arrived,
) -> Result<(), SourceError> {
    let start = Instant::now();
    while arrived.len() < frames {
        assert!(start.elapsed() < WATCHDOG, "{} of {frames} frames: {client:?}", arrived.len());
        client.receive(Duration::from_millis(100), &mut |delivery| {
            let page = match delivery {
                Delivery::Page(_, page) => Some(Box::new(*page)),
                Delivery::Zero(_) => Some(Box::new([0; FRAME_BYTES])),
                Delivery::Unavailable(_) => None,
            };
            let old = arrived.insert(delivery.frame().0, page);
            assert!(old.is_none(), "frame {} was delivered twice", delivery.frame());
        })?;
    }
    Ok(())
}

/// Checks every page against the image.
pub(crate) fn check(arrived: &Arrived) {
    for (frame, bytes) in arrived {
        assert_eq!(bytes.as_deref(), Some(&page(*frame)), "frame {frame}");
    }
}

pub(crate) fn indices(frames: impl IntoIterator<Item = u32>) -> Vec<FrameIndex> {
    frames.into_iter().map(FrameIndex).collect()
}
