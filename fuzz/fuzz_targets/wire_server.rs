//! Any bytes as what a client sends a page server: its hello, or requests, in pieces of any size. What is accepted keeps the
//! limits, is the same whatever the pieces, and can be written again and read back the same.
#![no_main]

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::Priority;
use kaleidoscope_core::internals::protocol::{
    FetchEncoder, HELLO_BYTES, Hello, MAX_BATCH, MAX_CHUNK, ProtocolError, Request, RequestLimits,
    RequestReader, descriptor_request,
};
use libfuzzer_sys::fuzz_target;

const LIMITS: RequestLimits = RequestLimits { frames: 5000, pending: 600, descriptor: 100_000 };

#[derive(PartialEq, Debug)]
enum Seen {
    Fetch(Priority, Vec<u32>),
    Descriptor(u32, u32),
}

/// The requests in a stream that arrives in pieces, and what is wrong with it.
fn read(stream: &[u8], piece: usize) -> (Vec<Seen>, Option<ProtocolError>) {
    let mut reader = RequestReader::new(LIMITS);
    let mut seen = Vec::new();
    let mut rest = stream;
    loop {
        loop {
            match reader.next_request() {
                Ok(None) => break,
                Ok(Some(Request::Fetch(priority, runs))) => {
                    let frames: Vec<_> = runs.flat_map(|r| r.first..r.first + r.frames).collect();
                    assert!(!frames.is_empty() && frames.len() <= LIMITS.pending as usize);
                    assert!(frames.iter().all(|frame| *frame < LIMITS.frames));
                    seen.push(Seen::Fetch(priority, frames));
                }
                Ok(Some(Request::Descriptor { offset, bytes })) => {
                    assert!((1..=MAX_CHUNK).contains(&(bytes as usize)));
                    assert!(u64::from(offset) + u64::from(bytes) <= LIMITS.descriptor.into());
                    seen.push(Seen::Descriptor(offset, bytes));
                }
                Err(error) => {
                    assert!(error.offset <= stream.len() as u64 && !error.to_string().is_empty());
                    return (seen, Some(error));
                }
            }
        }
        if rest.is_empty() {
            return (seen, None);
        }
        let space = reader.space();
        assert!(!space.is_empty(), "a request fits the buffer");
        let bytes = piece.min(rest.len()).min(space.len());
        space[..bytes].copy_from_slice(&rest[..bytes]);
        reader.filled(bytes);
        rest = &rest[bytes..];
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    if choice == 0 {
        let Some(bytes) = data.first_chunk::<HELLO_BYTES>() else { return };
        match Hello::decode(bytes) {
            Ok(hello) => {
                assert!((1..=MAX_BATCH).contains(&(hello.batch as usize)));
                assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            }
            Err(error) => {
                assert!(error.offset < HELLO_BYTES as u64 && !error.to_string().is_empty())
            }
        }
        return;
    }
    let (seen, error) = read(data, usize::from(choice));
    assert_eq!(read(data, usize::MAX), (seen, error));
    let (seen, _) = read(data, usize::MAX);
    let mut again = Vec::new();
    for request in &seen {
        match request {
            Seen::Fetch(priority, frames) => {
                let mut encoder = FetchEncoder::new(*priority, Vec::new());
                frames.iter().for_each(|frame| encoder.push(FrameIndex(*frame)));
                again.extend(encoder.finish());
            }
            Seen::Descriptor(offset, bytes) => again.extend(descriptor_request(*offset, *bytes)),
        }
    }
    assert_eq!(read(&again, 100), (seen, None));
});
