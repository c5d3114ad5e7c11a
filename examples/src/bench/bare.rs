//! The least that moving pages over a socket can cost: `read` and `write` in a loop, and nothing else.

use super::world::Outcome;
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::memory::VecMemory;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of one `write` and `read` of a stream: more did not make it faster.
const CHUNK: usize = 256 << 10;

/// The time of each of `faults` round trips: eight bytes there, a page back.
pub(super) fn round_trips(image: &Arc<VecMemory>, faults: &[usize]) -> Outcome<Vec<Duration>> {
    let (mut here, mut there) = UnixStream::pair()?;
    let image = Arc::clone(image);
    let server = std::thread::spawn(move || -> std::io::Result<()> {
        let mut request = [0; 8];
        while there.read_exact(&mut request).is_ok() {
            let frame = usize::try_from(u64::from_le_bytes(request)).unwrap_or(0);
            let page = image.bytes().get(frame * FRAME_BYTES..(frame + 1) * FRAME_BYTES);
            there.write_all(page.unwrap_or_default())?;
        }
        Ok(())
    });
    let mut page = [0; FRAME_BYTES];
    let mut times = Vec::with_capacity(faults.len());
    for frame in faults {
        let start = Instant::now();
        here.write_all(&(*frame as u64).to_le_bytes())?;
        here.read_exact(&mut page)?;
        times.push(start.elapsed());
    }
    drop(here);
    server.join().map_err(|_| "the bare server failed")??;
    Ok(times)
}

/// The time in which all of the image crosses a socket.
pub(super) fn stream(image: &Arc<VecMemory>, memory: &mut [u8]) -> Outcome<Duration> {
    let (mut here, mut there) = UnixStream::pair()?;
    let image = Arc::clone(image);
    let start = Instant::now();
    let server = std::thread::spawn(move || {
        image.bytes().chunks(CHUNK).try_for_each(|chunk| there.write_all(chunk))
    });
    for chunk in memory.chunks_mut(CHUNK) {
        here.read_exact(chunk)?;
    }
    let time = start.elapsed();
    server.join().map_err(|_| "the bare server failed")??;
    Ok(time)
}
