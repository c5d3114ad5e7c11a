//! The baseline for moving pages over a socket: only `read` and `write` in a loop.

use super::cores::Pinned;
use super::world::Outcome;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::ports::PageInstaller;
use kaleidoscope_core::memory::{Page, VecMemory};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes per `write` and `read` of a stream: as many pages as the page server sends at once.
const CHUNK: usize = 128 << 10;

/// Answers a frame number of eight bytes with the page.
pub(super) struct Server {
    here: UnixStream,
    page: Page,
}

impl Server {
    /// Starts a server thread, which ends when the connection closes.
    pub(super) fn start(image: &Arc<VecMemory>) -> Outcome<Self> {
        let (here, mut there) = UnixStream::pair()?;
        let image = Arc::clone(image);
        std::thread::Builder::new().spawn(move || {
            let mut request = [0; 8];
            while there.read_exact(&mut request).is_ok() {
                let frame = usize::try_from(u64::from_le_bytes(request)).unwrap_or(0);
                let page = image.bytes().get(frame * FRAME_BYTES..(frame + 1) * FRAME_BYTES);
                if there.write_all(page.unwrap_or_default()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { here, page: [0; FRAME_BYTES] })
    }

    /// One round trip, including the copy to the clone's memory.
    pub(super) fn fault(&mut self, frame: u32, memory: &dyn PageInstaller) -> Outcome<()> {
        self.here.write_all(&u64::from(frame).to_le_bytes())?;
        self.here.read_exact(&mut self.page)?;
        let _ = memory.install(FrameIndex(frame), &self.page)?;
        Ok(())
    }
}

/// Time to send the whole image over a socket and to install it in a clone's memory page by page,
/// as a clone without help from the hypervisor must.
pub(super) fn stream(
    image: &Arc<VecMemory>,
    memory: &dyn PageInstaller,
    cores: &Pinned,
) -> Outcome<Duration> {
    let mut frame = 0;
    moved(image, cores, &mut |pages| {
        for page in pages.chunks_exact(FRAME_BYTES).filter_map(<[u8]>::first_chunk) {
            let _ = memory.install(FrameIndex(frame), page)?;
            frame += 1;
        }
        Ok(())
    })
}

/// Time to send the whole image over a socket, without installing it.
pub(super) fn crossing(image: &Arc<VecMemory>, cores: &Pinned) -> Outcome<Duration> {
    moved(image, cores, &mut |_| Ok(()))
}

fn moved(
    image: &Arc<VecMemory>,
    cores: &Pinned,
    take: &mut dyn FnMut(&[u8]) -> Outcome<()>,
) -> Outcome<Duration> {
    let (mut here, mut there) = UnixStream::pair()?;
    let mut rest = image.bytes().len();
    let image = Arc::clone(image);
    let mut buffer = vec![0; CHUNK];
    let start = Instant::now();
    let server = cores.server(|| {
        std::thread::spawn(move || {
            image.bytes().chunks(CHUNK).try_for_each(|chunk| there.write_all(chunk))
        })
    })?;
    while rest > 0 {
        let chunk = buffer.get_mut(..rest.min(CHUNK)).unwrap_or_default();
        here.read_exact(chunk)?;
        take(chunk)?;
        rest -= chunk.len();
    }
    let time = start.elapsed();
    server.join().map_err(|_| "the bare server failed")??;
    Ok(time)
}
