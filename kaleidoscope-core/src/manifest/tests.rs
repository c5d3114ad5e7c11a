//! Manifests round-trip, and damaged or hostile ones are refused.

use super::*;
use crate::addr::{FRAME_SIZE, FrameIndex, Gfn};
use crate::color::{Color, Frame, FrameKind, KernelIdentity, Order, Region, RegionId, Temperature};
use crate::fingerprint::{Content, DomainId, Fingerprint};
use crate::memory::MemoryLayout;
use proptest::prelude::*;

fn small_limits() -> Limits {
    Limits { max_frames: 4096, max_regions: 64, max_text: 256, max_text_total: 4096 }
}

fn region() -> impl Strategy<Value = Region> {
    let kind = prop::sample::select(FrameKind::ALL.as_slice());
    let order = prop::sample::select(Order::ALL.as_slice());
    let anchor = prop::option::of(Just(FrameIndex(0)));
    (kind, order, ".{0,12}", anchor)
        .prop_map(|(kind, order, name, anchor)| Region { anchor, ..Region::new(kind, order, name) })
}

fn frame(regions: Vec<Region>) -> impl Strategy<Value = Frame> {
    let kind = prop::sample::select(FrameKind::ALL.as_slice());
    let color = prop::sample::select(Color::ALL.as_slice());
    let region = prop::option::of(0..regions.len().max(1));
    let position = prop_oneof![0u64..100, any::<u64>()];
    (kind, color, region, position, any::<u8>()).prop_map(
        move |(kind, color, id, position, bits)| {
            let region =
                id.and_then(|id| Some((RegionId(u32::try_from(id).ok()?), regions.get(id)?)));
            Frame {
                kind: region.map_or(kind, |r| r.1.kind),
                color,
                region: region.map(|r| r.0),
                position,
                temperature: Temperature::from_bits(bits).unwrap(),
            }
        },
    )
}

fn layout() -> impl Strategy<Value = MemoryLayout> {
    prop::collection::vec((1u64..1 << 30, 1u64..40), 1..5).prop_map(|runs| {
        let mut at = 0;
        let regions = runs.into_iter().map(|(gap, frames)| {
            let start = at + gap;
            at = start + frames;
            (Gfn(start).gpa(), frames * FRAME_SIZE)
        });
        MemoryLayout::new(&regions.collect::<Vec<_>>()).unwrap()
    })
}

/// Fingerprints of some frames, or none.
fn fingerprints(frames: u32) -> impl Strategy<Value = Option<Fingerprints>> {
    let content = (0u8..40).prop_map(|byte| match byte {
        0..15 => Content::Missing,
        15..25 => Content::Zero,
        _ => Content::Page(Fingerprint([byte; 16])),
    });
    let found = prop::collection::vec(content, frames as usize);
    let table = (any::<[u8; 16]>(), found).prop_map(move |(domain, found)| {
        Fingerprints::new(DomainId(domain), frames, (0..).map(FrameIndex).zip(found))
    });
    prop::option::of(table)
}

prop_compose! {
    fn manifest()
        (layout in layout(), regions in prop::collection::vec(region(), 0..6))
        (frames in prop::collection::vec(frame(regions.clone()), layout.frames() as usize),
         texts in prop::array::uniform5(".{0,20}"),
         digest in any::<[u8; 32]>(), sampled in any::<u32>(),
         notes in prop::collection::vec(".{0,20}", 0..3),
         fingerprints in fingerprints(layout.frames()),
         layout in Just(layout), regions in Just(regions))
        -> Manifest
    {
        let [os, release, banner, build_id, paging] = texts;
        let kernel = KernelIdentity { os, release, banner, build_id, paging };
        let map = ColorMap::new(layout, kernel, frames, regions).unwrap();
        let identity = ImageIdentity { digest, frames: sampled };
        Manifest { map, identity, notes, fingerprints }
    }
}

/// A fixed manifest: 40 frames around a hole, a file read in order, and a note.
fn sample() -> Manifest {
    let layout = MemoryLayout::new(&[(Gfn(0).gpa(), 0x18000), (Gfn(256).gpa(), 0x10000)]).unwrap();
    let kernel = KernelIdentity {
        os: "linux".into(),
        release: "6.1.0-test".into(),
        ..KernelIdentity::default()
    };
    let regions = vec![
        Region {
            anchor: Some(FrameIndex(25)),
            ..Region::new(FrameKind::File, Order::FileOffset, "ext4:65024:12:/usr/bin/perl")
        },
        Region::new(FrameKind::Kernel, Order::KernelAddress, "kernel-text"),
    ];
    let frames = (0..40).map(|i| match i {
        0..10 => Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() },
        10..30 => Frame {
            kind: FrameKind::File,
            color: Color::FileCode,
            region: Some(RegionId(0)),
            position: i - 5,
            temperature: Temperature::ACCESSED | Temperature::ACTIVE,
        },
        _ => Frame {
            kind: FrameKind::Kernel,
            color: Color::KernelText,
            region: Some(RegionId(1)),
            position: 0x7_ff81_0000 - i,
            temperature: Temperature::NONE,
        },
    });
    let map = ColorMap::new(layout, kernel, frames, regions).unwrap();
    let mut manifest = Manifest::new(map, ImageIdentity { digest: [0xa5; 32], frames: 40 });
    manifest.notes.push("slab cache list cut after 3 entries".into());
    manifest
}

/// Reads a file with a valid container and this payload.
fn read_payload(payload: &[u8]) -> Result<Manifest, ManifestError> {
    Manifest::from_bytes(&container::wrap(&FAMILY, payload).unwrap(), &small_limits())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn maps_round_trip(manifest in manifest()) {
        let bytes = manifest.to_bytes().unwrap();
        prop_assert_eq!(&Manifest::from_bytes(&bytes, &small_limits()).unwrap(), &manifest);
        let read = Manifest::read_from(bytes.as_slice(), &small_limits()).unwrap();
        prop_assert_eq!(&read, &manifest);
        prop_assert_eq!(manifest.to_bytes().unwrap(), bytes, "deterministic");
    }

    #[test]
    fn any_damage_is_an_error(
        manifest in manifest(),
        at in any::<prop::sample::Index>(),
        bit in 0..8,
    ) {
        let mut bytes = manifest.to_bytes().unwrap();
        let cut = at.index(bytes.len());
        prop_assert!(Manifest::from_bytes(&bytes[..cut], &small_limits()).is_err());
        prop_assert!(Manifest::read_from(&bytes[..cut], &small_limits()).is_err());
        bytes[cut] ^= 1u8 << bit;
        prop_assert!(Manifest::from_bytes(&bytes, &small_limits()).is_err());
    }

    /// With a valid checksum, a damaged payload is rejected or decodes to another valid manifest:
    /// no panic, and any result can be written and read again.
    #[test]
    fn hostile_payloads_are_handled(
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut payload = encode::payload(&sample());
        let at = at.index(payload.len());
        if cut { payload.truncate(at) } else { payload[at] = value }
        if let Ok(read) = read_payload(&payload) {
            prop_assert!(!cut);
            let again = Manifest::from_bytes(&read.to_bytes().unwrap(), &small_limits()).unwrap();
            prop_assert_eq!(again, read);
        }
    }
}

#[test]
fn every_bit_of_a_file_counts() {
    let bytes = sample().to_bytes().unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = Manifest::from_bytes(&damaged, &small_limits()).expect_err("a flipped bit");
        // Each field check names its field; all other damage fails the checksum.
        match bit / 8 {
            0..8 => assert!(matches!(error, ManifestError::Magic { .. })),
            8..12 => assert!(matches!(error, ManifestError::Version { .. })),
            12..16 => assert!(matches!(error, ManifestError::Flags { .. })),
            16..32 => assert!(!matches!(error, ManifestError::Io(_)), "{error}"),
            _ => assert!(matches!(error, ManifestError::Checksum)),
        }
    }
    for cut in 0..bytes.len() {
        assert!(Manifest::from_bytes(&bytes[..cut], &small_limits()).is_err());
        assert!(Manifest::read_from(&bytes[..cut], &small_limits()).is_err());
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    let end = bytes.len() as u64;
    for result in [
        Manifest::from_bytes(&longer, &small_limits()),
        Manifest::read_from(longer.as_slice(), &small_limits()),
    ] {
        assert!(matches!(result, Err(ManifestError::TrailingBytes { end: e }) if e == end));
    }
}

#[test]
fn decompression_bombs_are_refused() {
    let limits = small_limits();
    // An announced size beyond the limit is refused before decompression.
    let bomb = container::wrap(&FAMILY, &vec![0; 64 << 20]).unwrap();
    assert!(bomb.len() < 8192, "64 MiB of zeros in {} bytes", bomb.len());
    let error = Manifest::from_bytes(&bomb, &limits).unwrap_err();
    assert!(matches!(error, ManifestError::Limit { found: 0x400_0000, .. }), "{error}");
    // The header states a wrong size, which the zstd frame's own header contradicts.
    let lying =
        container::seal(&FAMILY, 1 << 10, &zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap());
    let error = Manifest::from_bytes(&lying, &limits).unwrap_err();
    assert!(matches!(error, ManifestError::Compression(_)), "{error}");
    // Two zstd frames; the second follows the size stated for the first.
    let frame = zstd::bulk::compress(&encode::payload(&sample()), 1).unwrap();
    let size = encode::payload(&sample()).len() as u64;
    Manifest::from_bytes(&container::seal(&FAMILY, size, &frame), &limits).unwrap();
    let two = container::seal(&FAMILY, size, &[frame.clone(), frame].concat());
    let error = Manifest::from_bytes(&two, &limits).unwrap_err();
    assert!(matches!(error, ManifestError::Compression(_)), "{error}");
    // An endless file is read only up to the announced length.
    let announced = sample().to_bytes().unwrap();
    let endless = std::io::Read::chain(announced.as_slice(), std::io::repeat(0));
    let error = Manifest::read_from(endless, &limits).unwrap_err();
    assert!(matches!(error, ManifestError::TrailingBytes { .. }), "{error}");
}

#[test]
fn limits_hold() {
    let bytes = sample().to_bytes().unwrap();
    let read = |limits: Limits| Manifest::from_bytes(&bytes, &limits);
    let ok = Limits { max_frames: 40, max_regions: 2, max_text: 35, max_text_total: 88 };
    read(ok).unwrap();
    for tight in [
        Limits { max_frames: 39, ..ok },
        Limits { max_regions: 1, ..ok },
        Limits { max_text: 34, ..ok },
        Limits { max_text_total: 87, ..ok },
    ] {
        let error = read(tight).unwrap_err();
        assert!(matches!(error, ManifestError::Limit { .. }), "{tight:?}: {error}");
    }
}

#[test]
fn unknown_fields_are_skipped() {
    let payload = encode::payload(&sample());
    assert_eq!(payload[0], 0xa7, "a map of seven entries");
    let mut longer = payload.clone();
    longer[0] = 0xa8;
    longer.extend_from_slice(b"\x69heat-maps\x82\xa1\x01\xf5\x43abc");
    assert_eq!(read_payload(&longer).unwrap(), sample());
    // A region with one more item.
    let at = payload.windows(6).position(|w| w == b"perl\x18\x19").unwrap();
    let mut longer = [&payload[..at + 6], b"\x81\x00", &payload[at + 6..]].concat();
    let region = longer.windows(4).position(|w| w == b"\x85\x06\x03\x14").unwrap();
    longer[region] = 0x86;
    assert_eq!(read_payload(&longer).unwrap(), sample());
}

#[test]
fn wrong_payloads_are_named() {
    let payload = encode::payload(&sample());
    let replaced = |from: &[u8], to: &[u8]| {
        let at = payload.windows(from.len()).position(|w| w == from).expect("present");
        let bytes = [&payload[..at], to, &payload[at + from.len()..]].concat();
        read_payload(&bytes).expect_err("a wrong payload").to_string()
    };
    let cases: [(&[u8], &[u8], &str); 11] = [
        (b"\x66layout", b"\x66layouT", "key `layout` is missing"),
        (b"\x67regions", b"\x66layout", "key `layout` occurs twice"),
        (b"\x82\x00\x18\x18", b"\x82\x00\x18\x17", "the column has 40 bytes instead of 39"),
        (b"\x82\x19\x01\x00\x10", b"\x82\x18\x18\x10", "must ascend"),
        (b"\x69file-code", b"\x69fire-code", "frame index 10: `fire-code` is not known"),
        (b"\x85\x06\x03\x14", b"\x85\x06\x03\x13", "region 0 states 19 frames and has 20"),
        (b"\x85\x06\x03", b"\x85\x07\x03", "cannot be in region 0"),
        (b"\x85\x06\x03", b"\x85\x06\x0a", "number 10 is not in the palette"),
        (b"perl\x18\x19", b"perl\x18\x28", "a region's object in frame 40 of 40 frames"),
        (b"perl\x18\x19", b"perl\x20", "expected an unsigned integer"),
        (b"\x65linux", b"\x65lin\xffx", "invalid utf-8"),
    ];
    for (from, to, expected) in cases {
        let error = replaced(from, to);
        assert!(error.contains(expected), "{error}\nshould contain: {expected}");
    }
}

#[test]
fn files_are_replaced_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.kscope");
    std::fs::write(&path, "old").unwrap();
    sample().write_file(&path).unwrap();
    assert_eq!(Manifest::read_file(&path, &small_limits()).unwrap(), sample());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    assert!(sample().write_file(&dir.path().join("no/such/directory.kscope")).is_err());
}

/// The sample with fingerprints of three frames, one of them zero.
fn with_fingerprints() -> Manifest {
    let page = |byte| Content::Page(Fingerprint([byte; 16]));
    let found = [(3, page(1)), (30, page(2)), (31, Content::Zero)];
    let found = found.map(|(frame, content)| (FrameIndex(frame), content));
    let fingerprints = Fingerprints::new(DomainId([9; 16]), 40, found);
    Manifest { fingerprints: Some(fingerprints), ..sample() }
}

#[test]
fn fingerprints_are_one_more_key_which_others_skip() {
    let with = encode::payload(&with_fingerprints());
    let without = encode::payload(&sample());
    // The map's head counts one more entry, and the part follows all others.
    assert_eq!((without[0], with[0]), (0xa7, 0xa8));
    assert_eq!(with[1..without.len()], without[1..]);
    let read = read_payload(&with).unwrap();
    let table = read.fingerprints.unwrap();
    assert_eq!(table.get(FrameIndex(30)), Some(Fingerprint([2; 16])));
    assert!(table.is_zero(FrameIndex(31)) && table.get(FrameIndex(0)).is_none());
    assert_eq!(read_payload(&without).unwrap().fingerprints, None);
}

#[test]
fn damaged_fingerprints_are_refused() {
    let good = encode::payload(&with_fingerprints());
    let find = |text: &[u8]| good.windows(text.len()).rposition(|w| w == text).unwrap();
    let refused = |payload: &[u8], problem: &str| {
        let error = read_payload(payload).unwrap_err().to_string();
        assert!(error.contains("fingerprints") && error.contains(problem), "{error}");
    };
    // The key `hashed` is followed by the one-byte head of a 5-byte string, and `zero` likewise.
    let (hashed, zero) = (find(b"fhashed") + 8, find(b"dzero") + 6);
    let mut both = good.clone();
    both[zero] |= 1 << 3;
    refused(&both, "in the sets of hashed and of zero");
    let mut more = good.clone();
    more[hashed + 1] |= 1;
    refused(&more, "32 bytes of fingerprints for 3 hashed frames");
    let mut short = good.clone();
    short[find(b"fvalues") + 8] -= 1;
    assert!(read_payload(&short).is_err());
    for end in find(KEY)..good.len() {
        assert!(read_payload(&good[..end]).is_err(), "cut at {end}");
    }
}

const KEY: &[u8] = crate::codec::fingerprints::KEY.as_bytes();

/// Quantities at a limit and beyond it.
#[derive(Clone, Debug)]
struct ManifestAtLimits {
    regions: usize,
    long_names: usize,
    name_bytes: usize,
    notes: usize,
    anchor: Option<u32>,
    fingerprinted: Option<u32>,
}

impl ManifestAtLimits {
    fn manifest(&self) -> Manifest {
        let layout = MemoryLayout::contiguous(2 * FRAME_SIZE).unwrap();
        let name = |n| if n < self.long_names { "x".repeat(self.name_bytes) } else { "y".into() };
        let region = |n| Region::new(FrameKind::File, Order::FileOffset, name(n));
        let mut regions: Vec<_> = (0..self.regions).map(region).collect();
        if let Some(region) = regions.first_mut() {
            region.anchor = self.anchor.map(FrameIndex);
        }
        let frames = [Frame::default(); 2];
        let map = ColorMap::new(layout, KernelIdentity::default(), frames, regions).unwrap();
        let identity = ImageIdentity { digest: [3; 32], frames: 2 };
        let notes = vec!["a note".to_owned(); self.notes];
        let table = |frames| Fingerprints::new(DomainId([1; 16]), frames, []);
        let fingerprints = self.fingerprinted.map(table);
        Manifest { map, identity, notes, fingerprints }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Writers and readers have equal limits: what is written can be read, and what readers reject
    /// is not written.
    #[test]
    fn writers_refuse_what_readers_refuse(
        regions in prop::sample::select(vec![0, 1, 1 << 14, (1 << 14) + 1]),
        long_names in prop::sample::select(vec![1, 1000, 1023, 1024]),
        name_bytes in prop::sample::select(vec![8, 1 << 14, (1 << 14) + 1]),
        notes in prop::sample::select(vec![0, 4096, 4097]),
        anchor in prop::option::weighted(0.5, 0u32..3),
        fingerprinted in prop::sample::select(vec![None, Some(2), Some(2), Some(30)]),
    ) {
        let at_limits =
            ManifestAtLimits { regions, long_names, name_bytes, notes, anchor, fingerprinted };
        let manifest = at_limits.manifest();
        let unchecked = container::wrap(&FAMILY, &encode::payload(&manifest)).unwrap();
        let read = Manifest::from_bytes(&unchecked, &Limits::for_frames(2));
        let written = manifest.to_bytes();
        prop_assert_eq!(
            written.is_ok(),
            read.is_ok(),
            "{:?}: {:?}, {:?}",
            at_limits,
            written.err(),
            read.err()
        );
        if let (Ok(written), Ok(read)) = (written, read) {
            prop_assert_eq!(&read, &manifest);
            let read = Manifest::from_bytes(&written, &Limits::default()).unwrap();
            prop_assert_eq!(&read, &manifest);
        }
    }
}

#[test]
fn a_guest_of_1_tib_fits_and_a_larger_one_is_refused_before_the_work() {
    let limits = Limits::default();
    limits.admit_frames(1 << 28).unwrap();
    let error = limits.admit_frames((1 << 28) + 1).unwrap_err().to_string();
    assert_eq!(error, "268435457 frames of RAM, more than the limit of 268435456");
    // The limits for every size of guest lie within the default limits.
    for frames in [1, 1 << 14, 1 << 20, 1 << 26, 1 << 28] {
        let known = Limits::for_frames(frames);
        assert!(known.max_regions <= limits.max_regions && known.max_text <= limits.max_text);
        assert!(known.max_text_total <= limits.max_text_total);
    }
}

#[test]
fn a_claim_without_memory_for_it_is_an_error() {
    // A zstd frame that states an expanded size of 2^62 bytes.
    let mut compressed = zstd::bulk::compress(&[0; 1000], 1).unwrap();
    let size = zstd::zstd_safe::get_frame_content_size(&compressed).unwrap();
    assert_eq!(size, Some(1000));
    // The frame descriptor byte is followed by a size of eight bytes.
    compressed.splice(4..7, [0xe0].into_iter().chain((1_u64 << 62).to_le_bytes()));
    let bytes = container::seal(&FAMILY, 1 << 62, &compressed);
    let bounds = container::Bounds { max_payload: u64::MAX, max_file: u64::MAX };
    let error = container::unwrap(&bytes, &FAMILY, bounds).unwrap_err();
    assert!(matches!(error, ManifestError::Compression(_)), "{error}");
}
