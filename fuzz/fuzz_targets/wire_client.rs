//! Any bytes as what a page server sends a client: its welcome, or replies, in pieces of any size. What is accepted keeps what
//! was agreed on, has right checksums where there are any, and is the same whatever the pieces.
#![no_main]

use kaleidoscope_core::clone::CloneId;
use kaleidoscope_core::clone::ports::Delivery;
use kaleidoscope_core::internals::protocol::{
    Features, Hello, MAX_CHUNK, MAX_TEXT, ProtocolError, Reply, ReplyLimits, ReplyReader,
    WELCOME_BYTES, WelcomeHead,
};
use libfuzzer_sys::fuzz_target;

const FRAMES: u32 = 200;
const DESCRIPTOR: u32 = 5000;

/// The replies in a stream that arrives in pieces, each cut short, and what is wrong with it.
fn read(stream: &[u8], piece: usize, features: Features) -> (Vec<String>, Option<ProtocolError>) {
    let limits = ReplyLimits { features, frames: FRAMES, batch: 40, descriptor: DESCRIPTOR };
    let mut reader = ReplyReader::new(limits, 0);
    let mut seen = Vec::new();
    let mut rest = stream;
    loop {
        loop {
            match reader.next_reply() {
                Ok(None) => break,
                Ok(Some(reply)) => seen.push(describe(&reply)),
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
        assert!(!space.is_empty(), "a part that is used as a whole fits the buffer");
        let bytes = piece.min(rest.len()).min(space.len());
        space[..bytes].copy_from_slice(&rest[..bytes]);
        reader.filled(bytes);
        rest = &rest[bytes..];
    }
}

fn describe(reply: &Reply<'_>) -> String {
    match reply {
        Reply::Frame(delivery) => {
            assert!(delivery.frame().0 < FRAMES);
            match delivery {
                Delivery::Page(frame, page) => {
                    let sum = page
                        .iter()
                        .fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
                    format!("{frame} {sum}")
                }
                Delivery::Zero(frame) => format!("{frame} zeros"),
                Delivery::Unavailable(frame) => format!("{frame} nothing"),
            }
        }
        Reply::Descriptor { offset, bytes } => {
            assert!((1..=MAX_CHUNK).contains(&bytes.len()));
            assert!(u64::from(*offset) + bytes.len() as u64 <= DESCRIPTOR.into());
            format!("descriptor {offset} {}", bytes.len())
        }
        Reply::Error { code, text } => {
            assert!(text.len() <= MAX_TEXT);
            format!("error {code} {text}")
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [choice, piece, data @ ..] = data else { return };
    let features = Features::from_bits(u32::from(choice >> 1));
    if choice & 1 == 0 {
        let Some(bytes) = data.first_chunk::<WELCOME_BYTES>() else { return };
        let hello = Hello { features, image: [0; 32], clone: CloneId([0; 16]), batch: 30 };
        match WelcomeHead::decode(bytes, &hello) {
            Ok(WelcomeHead::Welcome(welcome)) => {
                assert_eq!(welcome.features.both(features), welcome.features);
                assert!((1..=30).contains(&welcome.batch));
                let again = WelcomeHead::decode(&welcome.encode(), &hello);
                assert_eq!(again, Ok(WelcomeHead::Welcome(welcome)));
            }
            Ok(WelcomeHead::Refused(refusal, text)) => {
                assert!(text <= MAX_TEXT && !refusal.to_string().is_empty());
            }
            Err(error) => {
                assert!(error.offset < WELCOME_BYTES as u64 && !error.to_string().is_empty());
            }
        }
        return;
    }
    let found = read(data, usize::from(*piece) + 1, features);
    assert_eq!(read(data, usize::MAX, features), found);
});
