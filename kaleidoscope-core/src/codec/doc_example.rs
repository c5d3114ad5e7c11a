//! Checks that the examples in `docs/formats.md` are what this code writes.
//!
//! `UPDATE_DOCS=1 cargo test -p kaleidoscope-core doc_example` rewrites the blocks.

use super::cbor::{Reader, Writer};
use super::fingerprints;
use crate::addr::FrameIndex;
use crate::fingerprint::{Content, DomainId, Fingerprint, Fingerprints};
use ciborium_ll::Header;
use std::fmt::Write;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/formats.md");

/// The file in hexadecimal: one line per header field, then the zstd frame.
fn annotated_file(bytes: &[u8]) -> String {
    let mut out = String::new();
    let fields = [
        (0..8, "magic"),
        (8..12, "version 1"),
        (12..16, "flags"),
        (16..24, "payload length"),
        (24..32, "uncompressed length"),
        (32..48, "checksum"),
        (48..64, ""),
    ];
    for (range, meaning) in fields {
        line(&mut out, range.start, &bytes[range], meaning);
    }
    for (i, chunk) in bytes[64..].chunks(16).enumerate() {
        line(&mut out, 64 + i * 16, chunk, if i == 0 { "zstd frame" } else { "" });
    }
    out
}

/// The payload, one item per line, indented by depth. Long strings are shown 16 bytes per line.
fn annotated_payload(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut reader = Reader::new(bytes);
    item(bytes, &mut reader, 0, &mut out);
    reader.finish().unwrap();
    out
}

fn item(bytes: &[u8], reader: &mut Reader<'_>, depth: usize, out: &mut String) {
    let start = reader.place();
    let head = reader.head().unwrap();
    let indent = "  ".repeat(depth);
    let mut children = 0;
    let meaning = match head {
        Header::Positive(value) => value.to_string(),
        Header::Array(Some(len)) => {
            children = len;
            format!("array of {len}")
        }
        Header::Map(Some(len)) => {
            children = len * 2;
            format!("map of {len}")
        }
        Header::Text(Some(len)) => {
            format!("{:?}", std::str::from_utf8(reader.body(len).unwrap()).unwrap())
        }
        Header::Bytes(Some(len)) => {
            reader.body(len).unwrap();
            format!("{len} bytes")
        }
        Header::Negative(_)
        | Header::Float(_)
        | Header::Simple(_)
        | Header::Tag(_)
        | Header::Break
        | Header::Array(None)
        | Header::Map(None)
        | Header::Text(None)
        | Header::Bytes(None) => panic!("the encoder does not write {head:?}"),
    };
    let mut meaning = format!("{indent}{meaning}");
    for (i, chunk) in bytes[start..reader.place()].chunks(16).enumerate() {
        line(out, start + i * 16, chunk, &meaning);
        meaning.clear();
    }
    for _ in 0..children {
        item(bytes, reader, depth + 1, out);
    }
}

fn line(out: &mut String, offset: usize, bytes: &[u8], meaning: &str) {
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let text = format!("{offset:04x}  {:47}  {meaning}", hex.join(" "));
    writeln!(out, "{}", text.trim_end()).unwrap();
}

/// The bytes of a block of lines `offset  hex  meaning`.
fn bytes_of(block: &str) -> Vec<u8> {
    let hex = |line: &str| -> Vec<u8> {
        let columns = line.get(6..line.len().min(53)).unwrap_or("");
        columns.split_whitespace().map(|b| u8::from_str_radix(b, 16).unwrap()).collect()
    };
    block.lines().flat_map(hex).collect()
}

/// The text between the marker of `name` and the end marker.
fn block<'a>(document: &'a str, name: &str) -> &'a str {
    let (_, rest) = document.split_once(&format!("<!-- example: {name} -->\n")).expect("marker");
    rest.split_once("<!-- end -->").expect("end marker").0
}

/// Compares the blocks of the document for which `must_equal` holds with their expected texts,
/// after rewriting all blocks if `UPDATE_DOCS` is set. Returns the blocks of the document.
fn blocks(texts: &[(&str, &str)], must_equal: impl Fn(&str) -> bool) -> Vec<String> {
    // Several tests write the same document.
    static DOCUMENT_LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _lock = DOCUMENT_LOCK.lock();
    let mut document = std::fs::read_to_string(DOCUMENT).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        for (name, text) in texts {
            let old = block(&document, name).to_owned();
            let marker = format!("<!-- example: {name} -->\n");
            document = document
                .replace(&format!("{marker}{old}"), &format!("{marker}```text\n{text}```\n"));
        }
        std::fs::write(DOCUMENT, &document).unwrap();
    }
    let fenced = |(name, text): &(&str, &str)| {
        let found = block(&document, name).strip_prefix("```text\n");
        let found = found.and_then(|t| t.strip_suffix("```\n")).expect("a fenced block");
        if must_equal(name) {
            assert_eq!(found, *text, "UPDATE_DOCS=1 rewrites the block");
        }
        found.to_owned()
    };
    texts.iter().map(fenced).collect()
}

/// Compares blocks of the document with their expected texts, after rewriting them if `UPDATE_DOCS`
/// is set.
pub(crate) fn compare_blocks(texts: &[(&str, &str)]) {
    blocks(texts, |_| true);
}

/// Compares the blocks `file_block` and `payload_block` of the document with a file and its
/// payload, after rewriting them if `UPDATE_DOCS` is set. Returns the file in the document, which
/// another version of zstd may have compressed.
pub(crate) fn documented(
    (file_block, file): (&str, &[u8]),
    (payload_block, payload): (&str, &[u8]),
) -> Vec<u8> {
    let (file, payload) = (annotated_file(file), annotated_payload(payload));
    let texts = [(file_block, file.as_str()), (payload_block, payload.as_str())];
    let found = blocks(&texts, |name| name == payload_block);
    let documented = bytes_of(&found[0]);
    assert_eq!(annotated_file(&documented), found[0]);
    documented
}

#[test]
fn the_documented_fingerprints_match_the_encoder() {
    let page = |byte| Content::Page(Fingerprint([byte; 16]));
    let found = [(1, page(0x11)), (2, Content::Zero), (9, page(0x99))];
    let found = found.map(|(frame, content)| (FrameIndex(frame), content));
    let table = Fingerprints::new(DomainId([0xd0; 16]), 10, found);
    let mut out = Writer::default();
    fingerprints::write(&mut out, &table);
    let bytes = out.finish();
    let mut reader = Reader::new(&bytes);
    assert_eq!(reader.text().unwrap(), fingerprints::KEY);
    let start = reader.place();
    let mut text = String::new();
    item(&bytes, &mut reader, 0, &mut text);
    compare_blocks(&[("fingerprints", &text)]);
    assert_eq!(fingerprints::read(&mut Reader::at(&bytes, "x", start), 10).unwrap(), table);
}
