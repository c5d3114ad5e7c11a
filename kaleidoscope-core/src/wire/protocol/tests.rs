#![expect(clippy::arithmetic_side_effects, reason = "small numbers of a test")]
use super::*;
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::clone::CloneId;
use crate::clone::ports::{Delivery, Priority};
use crate::memory::{Page, ZERO_PAGE};
use proptest::prelude::*;
use std::num::NonZeroU32;

const FRAMES: u32 = 5000;

fn features() -> impl Strategy<Value = Features> {
    (0u32..8).prop_map(Features::from_bits)
}

fn priority() -> impl Strategy<Value = Priority> {
    prop::sample::select(vec![Priority::Prefetch, Priority::Urgent])
}

fn hello() -> impl Strategy<Value = Hello> {
    (features(), any::<[u8; 32]>(), any::<[u8; 16]>(), 1u32..=64).prop_map(
        |(features, image, id, batch)| Hello { features, image, clone: CloneId(id), batch },
    )
}

fn welcome(hello: Hello) -> impl Strategy<Value = Welcome> {
    (features(), 1u32.., 1u32..=MAX_PENDING, 1u32..=hello.batch, any::<u32>()).prop_map(
        move |(features, frames, pending, batch, descriptor)| Welcome {
            features: features.both(hello.features),
            image: hello.image,
            frames: NonZeroU32::new(frames).unwrap(),
            pending: NonZeroU32::new(pending).unwrap(),
            batch,
            descriptor,
        },
    )
}

fn request_limits() -> RequestLimits {
    RequestLimits { frames: FRAMES, pending: 4000, descriptor: 1 << 20 }
}

/// Every frame that a stream of requests names, in order, if it arrives in pieces.
fn frames_of(stream: &[u8], piece: usize) -> Result<Vec<(Priority, u32)>, ProtocolError> {
    let mut reader = RequestReader::new(request_limits());
    let mut frames = Vec::new();
    for piece in stream.chunks(piece) {
        reader.space()[..piece.len()].copy_from_slice(piece);
        reader.filled(piece.len());
        while let Some(request) = reader.next_request()? {
            match request {
                Request::Fetch(priority, runs) => frames
                    .extend(runs.flat_map(|r| r.first..r.first + r.frames).map(|f| (priority, f))),
                Request::Descriptor { .. } => panic!("no descriptor was asked for"),
            }
        }
        assert!(!reader.space().is_empty());
    }
    Ok(frames)
}

/// Contents of a page, one for each encoding.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Zero,
    Missing,
    Noise(u8),
    Even(u8),
}

fn page(kind: Kind) -> Option<Page> {
    let mut page = ZERO_PAGE;
    match kind {
        Kind::Missing => return None,
        Kind::Zero => {}
        Kind::Noise(seed) => {
            let mut word = u64::from(seed) + 1;
            for byte in &mut page {
                word = word
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                *byte = word.to_le_bytes()[7];
            }
        }
        Kind::Even(byte) => page.fill(byte | 1),
    }
    Some(page)
}

/// A reply with these pages.
fn reply(items: &[(u32, Kind)], features: Features, codec: Codec) -> Vec<u8> {
    let mut encoder = PageEncoder::new().unwrap();
    let (mut entries, mut payloads) = (Vec::new(), Vec::new());
    for (frame, kind) in items {
        let frame = FrameIndex(*frame);
        let page = page(*kind);
        let (stored, payload) = match (&page, kind) {
            (None, _) => (Stored::Unavailable, Vec::new()),
            (_, Kind::Zero) => (Stored::Zero, Vec::new()),
            (Some(page), _) => {
                let short = features.codecs.has(codec).then(|| encoder.encode(codec, page, 3584));
                match short.flatten() {
                    Some(short) => (Stored::Compressed(codec), short.to_vec()),
                    None => (Stored::Raw, page.to_vec()),
                }
            }
        };
        let checksum = if features.checksums { checksum(frame, page.as_ref()) } else { 0 };
        let bytes = u16::try_from(payload.len()).unwrap();
        entries.extend(Entry { frame, stored, bytes, checksum }.encode());
        payloads.extend(payload);
    }
    let bytes = u32::try_from(entries.len() + payloads.len()).unwrap();
    let head = PagesHead { pages: u16::try_from(items.len()).unwrap(), bytes }.encode();
    [&head[..], &entries, &payloads].concat()
}

type Pages = Vec<(u32, Option<Page>)>;

/// Every page of a stream of replies that arrives in pieces.
fn pages_of(stream: &[u8], piece: usize, features: Features) -> Result<Pages, ProtocolError> {
    let limits = ReplyLimits { features, frames: FRAMES, batch: MAX_BATCH, descriptor: 0 };
    let mut reader = ReplyReader::new(limits, 0);
    let mut pages = Vec::new();
    for piece in stream.chunks(piece) {
        reader.space()[..piece.len()].copy_from_slice(piece);
        reader.filled(piece.len());
        while let Some(reply) = reader.next_reply()? {
            match reply {
                Reply::Frame(Delivery::Page(frame, page)) => pages.push((frame.0, Some(*page))),
                Reply::Frame(Delivery::Zero(frame)) => pages.push((frame.0, Some(ZERO_PAGE))),
                Reply::Frame(Delivery::Unavailable(frame)) => pages.push((frame.0, None)),
                Reply::Descriptor { .. } | Reply::Error { .. } => panic!("{reply:?}"),
            }
        }
        assert!(!reader.space().is_empty());
    }
    Ok(pages)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Zero),
        Just(Kind::Missing),
        any::<u8>().prop_map(Kind::Noise),
        any::<u8>().prop_map(Kind::Even),
    ]
}

fn items() -> impl Strategy<Value = Vec<Vec<(u32, Kind)>>> {
    let reply = prop::collection::vec((0..FRAMES, kind()), 1..=20);
    prop::collection::vec(reply, 1..4)
}

fn codec() -> impl Strategy<Value = Codec> {
    prop::sample::select(vec![Codec::Lz4, Codec::Zstd])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn hello_and_welcome_round_trip(
        (hello, welcome) in hello().prop_flat_map(|hello| (Just(hello), welcome(hello))),
    ) {
        prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        let head = WelcomeHead::decode(&welcome.encode(), &hello);
        prop_assert_eq!(head, Ok(WelcomeHead::Welcome(welcome)));
    }

    #[test]
    fn refusals_round_trip(hello in hello(), code in 1u32.., text in ".{0,300}") {
        let numbered = |code| Welcome::refuse(Refusal::Other(code), "");
        let head = |bytes: &[u8]| {
            WelcomeHead::decode(bytes.first_chunk().unwrap(), &hello).unwrap()
        };
        let WelcomeHead::Refused(refusal, 0) = head(&numbered(code)) else { panic!("refused") };
        let message = Welcome::refuse(refusal, &text);
        let WelcomeHead::Refused(again, length) = head(&message) else { panic!("refused") };
        prop_assert_eq!(again, refusal);
        prop_assert_eq!(message.len(), WELCOME_BYTES + length);
        prop_assert!(text.as_bytes().starts_with(&message[WELCOME_BYTES..]));
        prop_assert!(length == text.len() || length > MAX_TEXT - 4);
    }

    #[test]
    fn requests_round_trip(
        requests in prop::collection::vec(
            (priority(), prop::collection::vec(0..FRAMES, 1..300)),
            1..6,
        ),
        dense in any::<bool>(),
        piece in 1usize..9000,
    ) {
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for (priority, frames) in requests {
            let mut encoder = FetchEncoder::new(priority, Vec::new());
            for frame in frames {
                for frame in frame..(frame + if dense { 7 } else { 1 }).min(FRAMES) {
                    encoder.push(FrameIndex(frame));
                    expected.push((priority, frame));
                }
            }
            stream.extend(encoder.finish());
        }
        prop_assert_eq!(frames_of(&stream, piece).unwrap(), expected);
    }

    #[test]
    fn pages_round_trip(
        replies in items(),
        features in features(),
        codec in codec(),
        piece in 1usize..60_000,
    ) {
        let stream = replies.iter().flat_map(|items| reply(items, features, codec));
        let stream: Vec<u8> = stream.collect();
        let expected = replies.concat().into_iter().map(|(f, kind)| (f, page(kind)));
        let expected: Vec<_> = expected.collect();
        prop_assert!(pages_of(&stream, piece, features).unwrap() == expected);
    }

    #[test]
    fn with_checksums_no_damage_makes_a_wrong_page(
        items in prop::collection::vec((0..FRAMES, kind()), 1..6),
        codec in codec(),
        at in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        let features = Features { checksums: true, codecs: Codecs::ALL };
        let mut stream = reply(&items, features, codec);
        let at = at.index(stream.len());
        stream[at] ^= 1u8 << bit;
        // An error, or an incomplete reply; the pages before it are correct.
        let limits = ReplyLimits { features, frames: FRAMES, batch: MAX_BATCH, descriptor: 0 };
        let mut reader = ReplyReader::new(limits, 0);
        reader.space()[..stream.len()].copy_from_slice(&stream);
        reader.filled(stream.len());
        let mut right = items.iter().map(|(frame, kind)| (*frame, page(*kind)));
        while let Ok(Some(reply)) = reader.next_reply() {
            let Reply::Frame(delivery) = reply else { break };
            let page = match delivery {
                Delivery::Page(_, page) => Some(*page),
                Delivery::Zero(_) => Some(ZERO_PAGE),
                Delivery::Unavailable(_) => None,
            };
            prop_assert!(Some((delivery.frame().0, page)) == right.next(), "byte {}", at);
        }
    }

    #[test]
    fn any_requests_are_read_or_refused(
        stream in prop::collection::vec(any::<u8>(), 0..200),
        piece in 1usize..50,
    ) {
        // A likely head, then noise.
        let mut stream = stream;
        for (byte, value) in stream.iter_mut().zip([1, 0, 3, 0, 0, 0, 0, 0]) {
            *byte = value;
        }
        if let Ok(frames) = frames_of(&stream, piece) {
            prop_assert!(frames.iter().all(|f| f.1 < FRAMES));
        }
    }
}

#[test]
fn many_runs_become_many_requests() {
    let mut encoder = FetchEncoder::new(Priority::Urgent, Vec::new());
    let frames: Vec<_> = (0..2500).map(|n| n * 2).collect();
    frames.iter().for_each(|frame| encoder.push(FrameIndex(*frame)));
    let stream = encoder.finish();
    assert_eq!(stream.len(), 3 * 8 + 2500 * 8);
    let expected: Vec<_> = frames.into_iter().map(|f| (Priority::Urgent, f)).collect();
    assert_eq!(frames_of(&stream, 8192).unwrap(), expected);
    assert!(FetchEncoder::new(Priority::Urgent, stream).finish().is_empty());
}

#[test]
fn errors_name_the_byte() {
    let mut encoder = FetchEncoder::new(Priority::Prefetch, Vec::new());
    encoder.push(FrameIndex(4));
    let good = encoder.finish();
    let mut bad = good.clone();
    bad[8..12].copy_from_slice(&FRAMES.to_le_bytes());
    let error = frames_of(&[good.clone(), bad].concat(), 1000).unwrap_err();
    let violation = Violation::OutsideImage { first: FRAMES, frames: 1, image: FRAMES };
    assert_eq!(error, ProtocolError { offset: 24, violation });
    let features = Features { checksums: true, codecs: Codecs::NONE };
    let one = reply(&[(3, Kind::Even(5))], features, Codec::Lz4);
    let mut two = reply(&[(4, Kind::Even(5)), (5, Kind::Even(6))], features, Codec::Lz4);
    two[24] = 200;
    two[25] = 200;
    let error = pages_of(&[one, two].concat(), 100, features).unwrap_err();
    assert_eq!(error.offset, 24 + 4096 + 24);
    assert!(error.to_string().starts_with("byte 4144 of the stream: frames 51400..+1"), "{error}");
}

#[test]
fn a_page_too_long_to_expand_is_damaged() {
    let mut decoder = PageDecoder::default();
    for codec in [Codec::Lz4, Codec::Zstd] {
        let long = vec![7; FRAME_BYTES * 2];
        let bytes = match codec {
            Codec::Lz4 => lz4_flex::block::compress(&long),
            Codec::Zstd => zstd::bulk::compress(&long, 1).unwrap(),
        };
        assert_eq!(decoder.decode(Stored::Compressed(codec), &bytes), None);
        let short = match codec {
            Codec::Lz4 => lz4_flex::block::compress(&long[1 + FRAME_BYTES..]),
            Codec::Zstd => zstd::bulk::compress(&long[1 + FRAME_BYTES..], 1).unwrap(),
        };
        assert_eq!(decoder.decode(Stored::Compressed(codec), &short), None);
        assert_eq!(decoder.decode(Stored::Compressed(codec), &[]), None);
    }
}
