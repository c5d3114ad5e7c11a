//! Streams that are written and read again, and damaged ones.

use super::wire::{command, page, section};
use super::*;
use kaleidoscope_core::memory::Page;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A device's section: type, number, name, instance, version, data, footer.
fn device() -> Vec<u8> {
    let mut bytes = vec![section::FULL, 0, 0, 0, 9, 5];
    bytes.extend(b"timer");
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 2]);
    // Data that looks like an end and a description.
    bytes.extend([0, 6, 0, 0, 0, 2, b'{', b'}', 1]);
    bytes.extend([section::FOOTER, 0, 0, 0, 9]);
    bytes
}

/// A stream as QEMU writes it with two blocks; pages of `ram` if they are not left out.
fn stream(leaves_out: bool) -> Vec<u8> {
    let mut out = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc".to_vec();
    if leaves_out {
        out.extend(b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0fx-ignore-shared");
    }
    out.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
    out.extend((0x5000 | page::MEM_SIZE).to_be_bytes());
    for (name, bytes) in [("ram", 0x4000_u64), ("vga", 0x1000)] {
        out.push(3);
        out.extend(name.bytes());
        out.extend(bytes.to_be_bytes());
        if leaves_out {
            out.extend(7_u64.to_be_bytes());
        }
    }
    out.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x03\0\0\0\x02");
    if !leaves_out {
        out.extend((0x2000 | page::PAGE).to_be_bytes());
        out.extend(b"\x03ram");
        out.extend([5; 4096]);
        out.extend((0x3000 | page::ZERO | page::CONTINUE).to_be_bytes());
        out.push(0);
    }
    out.extend(page::PAGE.to_be_bytes());
    out.extend(b"\x03vga");
    out.extend([6; 4096]);
    out.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    out.extend(device());
    out.extend(b"\0\x06\0\0\0\x10{\"page_size\":16}");
    out
}

type Pages = BTreeMap<u64, Option<Page>>;

fn read(bytes: &[u8]) -> Result<(SavedVm, Pages), String> {
    let mut pages = Pages::new();
    let mut sink = |offset, content: Option<&Page>| {
        pages.insert(offset, content.copied());
        Ok(())
    };
    let saved = SavedVm::read(&mut &*bytes, "ram", &mut sink).map_err(|error| error.to_string())?;
    Ok((saved, pages))
}

#[test]
fn saved_streams_are_read_with_and_without_ram() {
    let (saved, pages) = read(&stream(false)).unwrap();
    assert_eq!(saved.machine(), "pc");
    assert_eq!(saved.block("ram").unwrap().bytes, 0x4000);
    assert_eq!(saved.devices(), device());
    assert!(saved.has_ram());
    assert_eq!(pages, Pages::from([(0x2000, Some([5; 4096])), (0x3000, None)]));
    let kept: Vec<_> = saved.kept().map(|(block, at, page)| (&*block.name, at, page)).collect();
    assert_eq!(kept, [("vga", 0, Some(&[6; 4096]))]);

    let (without, pages) = read(&stream(true)).unwrap();
    assert!(pages.is_empty() && !without.has_ram());
    assert_eq!(without.block("vga").unwrap().address, 7);
    assert_eq!(without.devices(), device());
}

#[test]
fn a_vm_without_its_ram_is_read_again_the_same() {
    let (saved, _) = read(&stream(true)).unwrap();
    let (again, pages) = read(&saved.without_ram()).unwrap();
    assert_eq!((again, pages), (saved, Pages::new()));
}

#[test]
fn damaged_streams_name_what_is_wrong() {
    let good = stream(false);
    let at = |text: &[u8]| good.windows(text.len()).position(|found| found == text).unwrap();
    let changed = |offset: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[offset] = byte;
        read(&bytes).unwrap_err()
    };
    for (offset, byte, expected) in [
        (0, 0, "no migration stream"),
        (7, 4, "version 4 is not known"),
        (8, 1, "names no machine"),
        (12, 0, "a name that is empty"),
        (at(b"\x03ram\0\0\0\0\0\0\0\x04") + 1, b'R', "section Ram"),
        (at(b"\x03ram\0\0\0\0\0\0\x40") + 4, 1, "ram of 0x1"),
        (at(b"\x03vga") + 1, b'\n', "not printable"),
        (at(b"\x10\x7e"), 0x40, "flags 0x40"),
        (at(b"\x7e\0\0\0\x02"), 0, "has no end"),
    ] {
        let error = changed(offset, byte);
        assert!(error.contains(expected), "{offset} {byte}: {error}");
    }
    // A stream may end without a description.
    let end = good.len() - b"\x06\0\0\0\x10{\"page_size\":16}".len();
    for length in (0..good.len()).filter(|length| *length != end) {
        assert!(read(&good[..length]).is_err(), "{length} bytes");
    }
    assert_eq!(read(&good[..end]), read(&good));
    // A stream without a list of blocks.
    let mut none =
        b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04".to_vec();
    none.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02");
    none.extend(device());
    none.extend(b"\0\x06\0\0\0\x10{\"page_size\":16}");
    assert!(read(&none).unwrap_err().contains("lists no blocks"));
    let error = SavedVm::read(&mut &*good, "other", &mut |_, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("no block other is among ram, vga"), "{error}");
}

/// Reads commands of a source, which end with a part of pages.
fn commands(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    while let [section::COMMAND, a, b, c, d, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        all.push((u16::from_be_bytes([*a, *b]), rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    all
}

#[test]
fn a_source_sends_everything_in_order() {
    let (saved, _) = read(&stream(false)).unwrap();
    let mut out = Vec::new();
    let mut source = PostcopySource::start(&saved, "ram", &mut out).unwrap();
    assert_eq!(source.ram_bytes(), 0x4000);
    let header = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc".len();
    let opening = commands(&out[header..]);
    let sizes = [4096_u64.to_be_bytes(), 4096_u64.to_be_bytes()].concat();
    let ping = (command::PING, vec![0, 0, 0, 1]);
    let expected = [(command::OPEN_RETURN_PATH, vec![]), (command::POSTCOPY_ADVISE, sizes), ping];
    assert_eq!(opening, expected);
    let at = out.windows(5).position(|w| w == [8, 0, 6, 0, 22]).unwrap();
    let later = commands(&out[at..]);
    let mut range = b"\0\x03ram\0".to_vec();
    range.extend(0_u64.to_be_bytes());
    range.extend(0x4000_u64.to_be_bytes());
    assert_eq!(later[0], (command::POSTCOPY_RAM_DISCARD, range));
    let package = device().len() + 19;
    let length = u32::try_from(package).unwrap().to_be_bytes().to_vec();
    assert_eq!(later[1], (command::PACKAGED, length));
    let after = at + 5 + 22 + 5 + 4;
    assert_eq!(commands(&out[after..])[0].0, command::POSTCOPY_LISTEN);
    assert_eq!(out[after + 5..after + 5 + device().len()], device());
    let loaded = (command::PING, vec![0, 0, 0, 2]);
    let run = (command::POSTCOPY_RUN, vec![]);
    assert_eq!(commands(&out[after + 5 + device().len()..]), [loaded, run]);
    assert_eq!(out[after + package..], [section::PART, 0, 0, 0, 2]);

    let mut pages = Vec::new();
    source.page(0x1000, Some(&[9; 4096]), &mut pages);
    source.page(0x3000, None, &mut pages);
    let mut expected = (0x1000 | page::PAGE).to_be_bytes().to_vec();
    expected.extend(b"\x03ram");
    expected.extend([9; 4096]);
    expected.extend((0x3000 | page::ZERO | page::CONTINUE).to_be_bytes());
    expected.push(0);
    assert_eq!(pages, expected);
    let mut end = Vec::new();
    source.finish(&mut end);
    let stop = b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";
    assert_eq!(end, [&stop[..], b"\x03\0\0\0\x02", stop, b"\0"].concat());
    let error = PostcopySource::start(&saved, "other", &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("no RAM block other"), "{error}");
}

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap();
    [&kind.to_be_bytes()[..], &length.to_be_bytes(), body].concat()
}

fn request(offset: u64, length: u32, name: Option<&[u8]>) -> Vec<u8> {
    let mut body = [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    if let Some(name) = name {
        body.push(u8::try_from(name.len()).unwrap());
        body.extend(name);
    }
    message(if name.is_some() { 3 } else { 4 }, &body)
}

#[test]
fn requests_arrive_in_pieces() {
    let all = [
        message(2, &[0, 0, 0, 1]),
        request(0x1000, 4096, Some(b"ram")),
        message(2, &[0, 0, 0, 2]),
        request(0x2000, 8192, None),
        request(0, 4096, Some(b"vga")),
        request(0, 4096, None),
        request(0, 4096, Some(b"ram")),
        message(1, &[0, 0, 0, 0]),
    ]
    .concat();
    let pages = |offset, bytes| Wanted::Pages { offset, bytes };
    let begin = [Wanted::Ready, pages(0x1000, 4096), Wanted::Loaded];
    let requests = [pages(0x2000, 8192), pages(0, 4096)];
    let expected = [&begin[..], &requests, &[Wanted::End(0)]].concat();
    for step in [1, 3, 5, 1000] {
        let mut path = ReturnPath::new("ram", 0x4000);
        let mut found = Vec::new();
        for piece in all.chunks(step) {
            path.push(piece);
            while let Some(wanted) = path.next_wanted().unwrap() {
                found.push(wanted);
            }
        }
        assert_eq!(found, expected, "{step}");
    }
}

#[test]
fn wrong_requests_are_errors() {
    for (bytes, expected) in [
        (request(0, 4096, None), "names no block"),
        (request(0x4000, 4096, Some(b"ram")), "0x1000 bytes at 0x4000"),
        (request(u64::MAX - 4095, 4096, Some(b"ram")), "of RAM"),
        (request(0, 0, Some(b"ram")), "asks for 0x0 bytes"),
        (request(5, 4096, Some(b"ram")), "at 0x5"),
        (message(3, &[0; 12]), "malformed"),
        (message(4, &[0; 13]), "malformed"),
        (message(1, &[]), "malformed"),
        (message(2, &[0, 0, 1]), "malformed"),
        (message(2, &[0, 0, 0, 3]), "malformed"),
        (message(6, &[0; 4]), "recover"),
        (message(99, &[]), "99"),
    ] {
        let mut path = ReturnPath::new("ram", 0x4000);
        path.push(&bytes);
        let error = path.next_wanted().unwrap_err().to_string();
        assert!(error.contains(expected), "{bytes:?}: {error}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(
        at in 0..9000_usize, byte: u8, tail in proptest::collection::vec(any::<u8>(), 0..64)
    ) {
        let mut bytes = stream(false);
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok((saved, _)) = read(&bytes) {
            let (again, pages) = read(&saved.without_ram()).unwrap();
            prop_assert!(pages.is_empty());
            prop_assert_eq!(again.devices(), saved.devices());
        }
        let mut path = ReturnPath::new("ram", 0x4000);
        path.push(&tail);
        while let Ok(Some(wanted)) = path.next_wanted() {
            if let Wanted::Pages { offset, bytes } = wanted {
                prop_assert!(bytes > 0 && offset + bytes <= 0x4000);
            }
        }
    }
}
