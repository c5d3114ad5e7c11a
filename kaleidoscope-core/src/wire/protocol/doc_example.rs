//! Checks that this code writes and reads the example in `docs/formats.md`; see the manifest's
//! example for how to regenerate it.
#![expect(clippy::arithmetic_side_effects, reason = "small numbers of a test")]

use super::*;
use crate::addr::{FRAME_BYTES, FrameIndex};
use crate::clone::CloneId;
use crate::clone::ports::{Delivery, Priority};
use crate::codec::doc_example::compare_blocks;
use crate::memory::{Page, ZERO_PAGE};
use std::fmt::Write;
use std::num::NonZeroU32;

/// Lines of bytes with their offsets and meanings.
#[derive(Default)]
struct HexDump {
    text: String,
    bytes: Vec<u8>,
}

impl HexDump {
    fn add(&mut self, bytes: &[u8], meaning: &str) {
        for (number, line) in bytes.chunks(16).enumerate() {
            let hex: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            let meaning = if number == 0 { meaning } else { "" };
            let line_text = format!("{:04x}  {:47}  {meaning}", self.bytes.len(), hex.join(" "));
            writeln!(self.text, "{}", line_text.trim_end()).unwrap();
            self.bytes.extend(line);
        }
    }

    /// Adds a message's fields, each with its length in bytes.
    fn fields(&mut self, message: &[u8], fields: &[(usize, &str)]) {
        let mut at = 0;
        for (bytes, meaning) in fields {
            self.add(&message[at..at + bytes], meaning);
            at += bytes;
        }
        assert_eq!(at, message.len());
    }
}

fn the_page() -> Page {
    let mut page = [0; FRAME_BYTES];
    for (place, byte) in page.iter_mut().enumerate() {
        *byte = u8::try_from(place % 8).unwrap();
    }
    page
}

fn features() -> Features {
    Features { checksums: true, codecs: Codecs { lz4: true, zstd: false } }
}

fn the_hello() -> Hello {
    Hello { features: features(), image: [0; 32], clone: CloneId([0x11; 16]), batch: 64 }
}

fn the_welcome() -> Welcome {
    Welcome {
        features: features(),
        image: [0xa5; 32],
        frames: NonZeroU32::new(131_072).unwrap(),
        pending: NonZeroU32::new(4096).unwrap(),
        batch: 32,
        descriptor: 5,
    }
}

fn client_stream() -> HexDump {
    let mut out = HexDump::default();
    let start = [(8, "magic"), (4, "version 1")];
    let rest = [(4, "checksums, lz4"), (32, "any image"), (16, "clone"), (4, "batch 64"), (4, "")];
    out.fields(&the_hello().encode(), &[&start[..], &rest].concat());
    let mut fetch = FetchEncoder::new(Priority::Urgent, Vec::new());
    [7, 8, 100].into_iter().for_each(|frame| fetch.push(FrameIndex(frame)));
    let fields = [(8, "urgent fetch of two runs"), (8, "frames 7 and 8"), (8, "frame 100")];
    out.fields(&fetch.finish(), &fields);
    let fields = [(8, "descriptor, one range"), (8, "bytes 0 to 4")];
    out.fields(&descriptor_request(0, 5), &fields);
    out
}

fn server_stream() -> HexDump {
    let mut out = HexDump::default();
    let fields = [
        (8, "magic"),
        (4, "version 1"),
        (4, "status: welcome"),
        (4, "checksums, lz4"),
        (4, "131072 frames"),
        (32, "image"),
        (4, "pending 4096"),
        (4, "batch 32"),
        (4, "descriptor of 5 bytes"),
        (4, ""),
    ];
    out.fields(&the_welcome().encode(), &fields);
    let page = the_page();
    let short = lz4_flex::block::compress(&page);
    let entry = |frame, stored, bytes: usize, page| {
        let frame = FrameIndex(frame);
        let bytes = u16::try_from(bytes).unwrap();
        Entry { frame, stored, bytes, checksum: checksum(frame, page) }.encode()
    };
    let length = u32::try_from(3 * ENTRY_BYTES + short.len()).unwrap();
    out.add(&PagesHead { pages: 3, bytes: length }.encode(), "3 pages");
    out.add(&entry(7, Stored::Zero, 0, Some(&ZERO_PAGE)), "frame 7: zeros");
    let lz4 = Stored::Compressed(Codec::Lz4);
    out.add(&entry(8, lz4, short.len(), Some(&page)), "frame 8: lz4");
    out.add(&entry(100, Stored::Unavailable, 0, None), "frame 100: not in the image");
    out.add(&short, "frame 8, compressed");
    let head = DescriptorHead::new(0, b"hello").encode(5);
    let fields = [(8, "descriptor"), (4, "offset 0"), (4, ""), (8, "checksum")];
    out.fields(&head, &fields);
    out.add(b"hello", "\"hello\"");
    out.add(&error_message(ErrorCode::Stopping, "")[..], "the server is being stopped");
    out
}

#[test]
fn the_documented_exchange_is_what_is_written_and_read() {
    let (client, server) = (client_stream(), server_stream());
    compare_blocks(&[("wire client", &client.text), ("wire server", &server.text)]);

    let hello = Hello::decode(client.bytes.first_chunk().unwrap()).unwrap();
    assert_eq!(hello, the_hello());
    let limits = RequestLimits { frames: 131_072, pending: 4096, descriptor: 5 };
    let mut requests = RequestReader::new(limits);
    let rest = &client.bytes[HELLO_BYTES..];
    requests.space()[..rest.len()].copy_from_slice(rest);
    requests.filled(rest.len());
    match requests.next_request() {
        Ok(Some(Request::Fetch(Priority::Urgent, runs))) => {
            let runs: Vec<_> = runs.map(|run| (run.first, run.frames)).collect();
            assert_eq!(runs, [(7, 2), (100, 1)]);
        }
        other => panic!("{other:?}"),
    }
    let descriptor = requests.next_request();
    assert!(matches!(descriptor, Ok(Some(Request::Descriptor { offset: 0, bytes: 5 }))));

    let welcome = WelcomeHead::decode(server.bytes.first_chunk().unwrap(), &hello).unwrap();
    assert_eq!(welcome, WelcomeHead::Welcome(the_welcome()));
    let mut replies = ReplyReader::new(ReplyLimits::from(&the_welcome()), 0);
    let rest = &server.bytes[WELCOME_BYTES..];
    replies.space()[..rest.len()].copy_from_slice(rest);
    replies.filled(rest.len());
    let expected = [
        Reply::Frame(Delivery::Zero(FrameIndex(7))),
        Reply::Frame(Delivery::Page(FrameIndex(8), &the_page())),
        Reply::Frame(Delivery::Unavailable(FrameIndex(100))),
        Reply::Descriptor { offset: 0, bytes: b"hello" },
        Reply::Error { code: ErrorCode::Stopping, text: "" },
    ];
    for expected in expected {
        assert_eq!(replies.next_reply(), Ok(Some(expected)));
    }
    assert_eq!(replies.next_reply(), Ok(None));
}
