//! Recordings of synthetic guests round-trip, merge and translate, and damaged ones are rejected.

use super::*;
use crate::color::{ColorMap, Frame, FrameKind, Order, Region};
use crate::memory::MemoryLayout;
use crate::prefetch::Access;
use crate::replay::Touch;
use proptest::prelude::*;

const IMAGE: ImageIdentity = ImageIdentity { digest: [1; 32], frames: 9 };
const OTHER: ImageIdentity = ImageIdentity { digest: [2; 32], frames: 9 };

/// A region and the positions of its frames, which are consecutive in memory.
type Content<'a> = (FrameKind, Order, Color, &'a str, Vec<u64>);

/// A guest with four free frames, one frame without a region, and these regions.
fn guest(release: &str, content: &[Content<'_>]) -> LocalityOrder {
    let free = Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() };
    let mut frames = vec![free; 4];
    frames.push(Frame::default());
    let mut regions = Vec::new();
    for (number, (kind, order, color, name, positions)) in (0..).zip(content) {
        regions.push(Region::new(*kind, *order, *name));
        frames.extend(positions.iter().map(|&position| Frame {
            kind: *kind,
            color: *color,
            region: Some(RegionId(number)),
            position,
            ..Frame::default()
        }));
    }
    let layout = MemoryLayout::contiguous(u64::try_from(frames.len()).unwrap() * 4096).unwrap();
    let kernel = KernelIdentity {
        release: release.into(),
        build_id: release.into(),
        ..KernelIdentity::default()
    };
    LocalityOrder::new(ColorMap::new(layout, kernel, frames, regions).unwrap())
}

fn file(name: &str, positions: impl IntoIterator<Item = u64>) -> Content<'_> {
    (FrameKind::File, Order::FileOffset, Color::FileCache, name, positions.into_iter().collect())
}

fn process(name: &str, positions: impl IntoIterator<Item = u64>) -> Content<'_> {
    let positions = positions.into_iter().collect();
    (FrameKind::Anonymous, Order::UserAddress, Color::Anonymous, name, positions)
}

fn slab(name: &str, positions: impl IntoIterator<Item = u64>) -> Content<'_> {
    (FrameKind::Slab, Order::FrameNumber, Color::Slab, name, positions.into_iter().collect())
}

/// Two builds of a distribution: device, inodes, process ids and addresses differ.
fn one() -> LocalityOrder {
    let python =
        process("python3[108]", (0x400..0x404).chain(0x22800..0x22810).chain(0x7ff10..0x7ff14));
    let tables = (
        FrameKind::PageTable,
        Order::UserAddress,
        Color::PageTable,
        "python3[108]",
        vec![0, 0, 0x22800],
    );
    let content = [
        file("ext4:1:7:/usr/bin/python3", 0..8),
        file("ext4:1:8:/etc/passwd", 0..1),
        file("ext4:1:9:", 0..2),
        python,
        tables,
        slab("dentry", 30..34),
    ];
    guest("6.1", &content)
}

fn two() -> LocalityOrder {
    let python =
        process("python3[166]", (0x400..0x404).chain(0x5e00..0x5e14).chain(0x7fe30..0x7fe36));
    let tables = (
        FrameKind::PageTable,
        Order::UserAddress,
        Color::PageTable,
        "python3[166]",
        vec![0, 0, 0x5e00],
    );
    let content = [
        slab("dentry", 5..15),
        file("overlay:9:77:/usr/bin/python3", 0..8),
        file("ext4:2:70:/usr/bin/python3", (2..8).rev()),
        tables,
        file("ext4:2:9:", 0..2),
        python,
    ];
    guest("6.12", &content)
}

fn trace(locality: &LocalityOrder, frames: impl IntoIterator<Item = u32>) -> Trace {
    let touch = |frame| Touch { at_us: 0, frame: FrameIndex(frame), access: Access::Read, vcpu: 0 };
    Trace::new(frames.into_iter().map(touch), locality.layout())
}

/// A run that touches every frame, the last one first.
fn everything(locality: &LocalityOrder, image: ImageIdentity) -> Recording {
    Recording::from_trace(&trace(locality, (0..locality.frames()).rev()), locality, image)
}

fn found<'a>(
    t: &'a TranslatedRecording,
    recording: &'a Recording,
) -> impl Iterator<Item = (Entry, TranslatedEntry)> + 'a {
    t.frames.iter().map(|t| (recording.entries()[t.entry as usize], *t))
}

#[test]
fn keys_and_numbers_agree_in_the_same_snapshot() {
    let locality = one();
    let recording = everything(&locality, IMAGE);
    assert_eq!(recording.entries().len(), locality.map().len() - 4, "free frames are left out");
    let by_key = recording.translate(&locality, Some(&IMAGE));
    let by_number = recording.by_frame_number(&locality, Some(&IMAGE));
    let frames = |t: &TranslatedRecording| t.frames.iter().map(|t| t.frame.0).collect::<Vec<_>>();
    assert_eq!(frames(&by_key), (4..locality.frames()).rev().collect::<Vec<_>>());
    assert_eq!(frames(&by_number), frames(&by_key));
    assert!(by_key.frames.iter().all(|t| t.confidence == 1.0));
    // Without its identity the image is not recognized as the same: files without a path are not
    // found.
    let unsure = recording.translate(&locality, None);
    assert_eq!(unsure.likeness, Similarity::Kernel);
    assert_eq!(unsure.missing[Color::FileCache as usize], 2);
    assert_eq!(unsure.missing[Color::Unknown as usize], 1);
}

#[test]
fn another_build_is_understood() {
    let (from, to) = (one(), two());
    let recording = everything(&from, IMAGE);
    let translation = recording.translate(&to, Some(&OTHER));
    assert_eq!(translation.likeness, Similarity::Other);
    let mut files = 0;
    for (entry, there) in found(&translation, &recording) {
        let frame = to.map().frame(there.frame).unwrap();
        let name = &to.map().region(frame.region.unwrap()).unwrap().name;
        let Key::Position { region, position, .. } = entry.key else { continue };
        if recording.regions()[region as usize].order == Order::FileOffset {
            assert_eq!((name.as_str(), frame.position), ("ext4:2:70:/usr/bin/python3", position));
            assert!(there.confidence > 0.9);
            files += 1;
            continue;
        }
        let expected = match position {
            0x400..0x404 => position,
            0x22800..0x22810 => position - 0x22800 + 0x5e00,
            // The stack's end stays.
            _ => position + 0x7fe36 - 0x7ff14,
        };
        assert_eq!((name.as_str(), frame.position), ("python3[166]", expected));
        let same = expected == position;
        assert_eq!(there.how, if same { Match::SameAddress } else { Match::MovedAddress });
    }
    assert_eq!(files, 6, "pages 2 to 7 are cached in the other guest");
    assert_eq!(translation.found[Color::Anonymous as usize], 24);
    assert_eq!(translation.found[Color::PageTable as usize], 3);
    let sure = translation.at_least(0.5).filter(|t| to.color(t.frame) == Color::Slab);
    assert_eq!(sure.count(), 0, "the contents of slab pages differ");
    // Hashed names give the same result.
    let hashed = recording.clone().hashed(Salt([5; 16]));
    assert!(hashed.regions().iter().all(|r| !r.name.contains("python")));
    assert_eq!(hashed.translate(&to, Some(&OTHER)), translation);
    assert_eq!(hashed.clone().hashed(Salt([6; 16])), hashed, "hashed once");
}

#[test]
fn processes_of_one_name_are_paired_in_order() {
    let content = |pids: [u32; 2], starts: [u64; 2]| {
        let names = pids.map(|pid| format!("nginx[{pid}]"));
        let region = |i: usize| process(&names[i], starts[i]..starts[i] + 3);
        guest("x", &[region(0), region(1)])
    };
    let (from, to) = (content([8, 9], [0x100, 0x900]), content([31, 30], [0x5900, 0x5100]));
    let recording = everything(&from, IMAGE);
    let translation = recording.translate(&to, None);
    assert_eq!(translation.frames.len(), 6);
    for (entry, there) in found(&translation, &recording) {
        let Key::Position { position, .. } = entry.key else { panic!() };
        assert_eq!(to.map().frame(there.frame).unwrap().position, position + 0x5000);
    }
}

#[test]
fn runs_are_counted_not_files() {
    let locality = one();
    let run = |frames: &[u32]| {
        Recording::from_trace(&trace(&locality, frames.iter().copied()), &locality, IMAGE)
    };
    let runs = [run(&[5, 6, 7, 8]), run(&[6, 5]), run(&[6, 20, 7])];
    let all = Recording::merge(&runs).unwrap();
    assert_eq!(all.runs(), 3);
    let gfns = |r: &Recording| r.entries().iter().map(|e| e.gfn.unwrap().0).collect::<Vec<_>>();
    // Mean ranks: 6: (1/4 + 0 + 0) / 3, 5: (0 + 1/2) / 2, 20: 1/3, 7: (1/2 + 2/3) / 2, 8: 3/4.
    assert_eq!(gfns(&all), [6, 5, 20, 7, 8]);
    assert_eq!(all.entries().iter().map(|e| e.runs).collect::<Vec<_>>(), [3, 2, 1, 2, 1]);
    let confidence = all.translate(&locality, Some(&IMAGE)).frames[1].confidence;
    assert!((confidence - 2.0 / 3.0).abs() < 1e-6);
    // Files of one and two runs, in either order.
    let [a, b, c] = runs;
    let right = Recording::merge(&[b, c]).unwrap();
    let nested = Recording::merge(&[a, right]).unwrap();
    assert_eq!(gfns(&nested), gfns(&all));
    let sums = |r: &Recording| r.entries().iter().map(|e| (e.runs, e.ranks)).collect::<Vec<_>>();
    assert_eq!(sums(&nested), sums(&all));
    assert_eq!(Recording::merge(&[]), Err(MergeError::Empty));
}

#[test]
fn other_guests_are_merged_through_keys() {
    let (from, to) = (one(), two());
    let (a, b) = (everything(&from, IMAGE), everything(&to, OTHER));
    let merged = Recording::merge(&[a.clone(), b]).unwrap();
    assert_eq!((merged.runs(), merged.image()), (2, IMAGE));
    let twice = merged.entries().iter().filter(|e| e.runs == 2);
    // Six pages of python3, 24 of its memory, three tables.
    assert_eq!(twice.count(), 6 + 24 + 3);
    assert!(merged.entries().iter().all(|e| e.gfn.is_some() || e.runs == 1));
    let bytes = merged.to_bytes().unwrap();
    assert_eq!(Recording::from_bytes(&bytes, &RecordingLimits::default()).unwrap(), merged);
    // If some are hashed, the result is hashed. Different salts cannot be merged.
    let salted = |salt| a.clone().hashed(Salt([salt; 16]));
    let mixed = Recording::merge(&[a.clone(), salted(1)]).unwrap();
    assert_eq!(mixed.salt(), Some(Salt([1; 16])));
    assert!(mixed.entries().iter().all(|e| e.runs == 2));
    assert_eq!(Recording::merge(&[salted(1), salted(2)]), Err(MergeError::Salts));
}

#[test]
fn damage_is_noticed() {
    let recording = everything(&one(), IMAGE);
    let bytes = recording.to_bytes().unwrap();
    let limits = RecordingLimits::for_entries(64);
    assert_eq!(Recording::from_bytes(&bytes, &limits).unwrap(), recording);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        Recording::from_bytes(&damaged, &limits).expect_err("a flipped bit");
        Recording::read_from(&bytes[..at], &limits).expect_err("a file cut short");
    }
    let error = Recording::from_bytes(b"KSCOPE\r\n", &limits).unwrap_err().to_string();
    assert!(
        error.starts_with("not a recording: the file starts with `KSCOPE\\r\\n`, not"),
        "{error}"
    );
    let tight = RecordingLimits::for_entries(3);
    let error = Recording::from_bytes(&bytes, &tight).unwrap_err().to_string();
    assert_eq!(error, format!("{} entries, more than the limit of 3", recording.entries().len()));
}

#[test]
fn wrong_payloads_are_named() {
    let payload = encode::payload(&everything(&one(), IMAGE));
    let replaced = |from: &[u8], to: &[u8]| {
        let at = payload.windows(from.len()).position(|w| w == from).expect("present");
        let bytes = [&payload[..at], to, &payload[at + from.len()..]].concat();
        let file = container::wrap(&FAMILY, &bytes).unwrap();
        let read = Recording::from_bytes(&file, &RecordingLimits::for_entries(64));
        read.expect_err("a wrong payload").to_string()
    };
    let cases: [(&[u8], &[u8], &str); 7] = [
        (b"\x64runs\x01", b"\x64runs\x00", "0 runs, not 1 to"),
        (b"\x64salt\x40", b"\x64salt\x41\x07", "a salt is a string of 16 bytes"),
        (b"\x68position", b"\x68positioN", "key `position` is missing"),
        (b"\x65frame", b"\x65framE", "`framE` is not known"),
        // The last stretch: the gap before it, and its pages.
        (b"\x05\xd7\x00\x04", b"\x05\xd7\x00\x00", "stretches must ascend"),
        (b"\x86\x19\x04\x00\x04", b"\x85\x19\x04\x00", "5 numbers for"),
        (b"\x64runs\x58\xac\x01", b"\x64runs\x58\xac\x02", "column `runs`, entry 0: 2 of 1 runs"),
    ];
    for (from, to, expected) in cases {
        let error = replaced(from, to);
        assert!(error.contains(expected), "{error}\nshould contain: {expected}");
    }
}

fn region() -> impl Strategy<Value = RecordedRegion> {
    let kind = prop::sample::select(FrameKind::ALL.as_slice());
    let order = prop::sample::select(Order::ALL.as_slice());
    let shape = prop::collection::vec((1u64..1 << 40, 1u64..1 << 40), 0..4);
    (kind, order, ".{0,12}", any::<u32>(), shape).prop_map(|(kind, order, name, frames, shape)| {
        let mut end = 0;
        let stretches = shape.into_iter().map(|(gap, pages)| {
            let start = end + gap;
            end = start + pages;
            PageRange { start, pages }
        });
        let stretches =
            if region::has_shape(kind, order) { stretches.collect() } else { Vec::new() };
        RecordedRegion { kind, order, name, frames, stretches }
    })
}

fn entry(regions: Vec<RecordedRegion>, runs: u32) -> impl Strategy<Value = Entry> {
    let region = prop::option::of(0..regions.len().max(1));
    let color = prop::sample::select(Color::ALL.as_slice());
    let gfn = prop::option::of(0u64..u64::MAX);
    let numbers = (any::<u64>(), any::<u32>(), 1..=runs, 0..=RANK_ONE);
    (region, color, gfn, numbers).prop_map(
        move |(number, color, gfn, (position, nth, runs, rank))| {
            let found = number.and_then(|n| Some((u32::try_from(n).ok()?, regions.get(n)?)));
            let key = match found {
                None => Key::Frame,
                Some((region, r)) if region::is_ranked(r.kind, r.order) => {
                    Key::Rank { region, rank: nth }
                }
                Some((region, _)) => Key::Position { region, position, nth },
            };
            let gfn = gfn.or((key == Key::Frame).then_some(7)).map(Gfn);
            let ranks = u64::from(runs) * rank;
            Entry { gfn, key, color, runs, ranks }
        },
    )
}

prop_compose! {
    fn recording()
        (regions in prop::collection::vec(region(), 0..6), runs in 1u32..9)
        (entries in prop::collection::vec(entry(regions.clone(), runs), 0..40),
         texts in prop::array::uniform3(".{0,20}"), salt in prop::option::of(any::<[u8; 16]>()),
         digest in any::<[u8; 32]>(), frames in any::<u32>(),
         regions in Just(regions), runs in Just(runs))
        -> Recording
    {
        let [release, banner, build_id] = texts;
        let kernel = KernelIdentity { release, banner, build_id, ..KernelIdentity::default() };
        let mut entries = entries;
        entries.sort_by(Entry::order);
        let image = ImageIdentity { digest, frames };
        Recording { kernel, image, runs, salt: salt.map(Salt), regions, entries }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn recordings_round_trip(recording in recording()) {
        let limits = RecordingLimits::for_entries(64);
        let bytes = recording.to_bytes().unwrap();
        prop_assert_eq!(Recording::from_bytes(&bytes, &limits).unwrap(), recording);
    }

    #[test]
    fn whatever_was_recorded_translates_and_merges(recording in recording()) {
        let locality = one();
        let image = recording.image();
        for translation in [
            recording.translate(&locality, None),
            recording.translate(&locality, Some(&image)),
            recording.by_frame_number(&locality, Some(&image)),
        ] {
            let mut frames: Vec<u32> = translation.frames.iter().map(|t| t.frame.0).collect();
            let n = frames.len();
            frames.sort_unstable();
            frames.dedup();
            prop_assert_eq!(frames.len(), n, "each frame once");
            prop_assert!(frames.iter().all(|f| !locality.is_free(FrameIndex(*f))));
            prop_assert!(translation.frames.iter().all(|t| (0.0..=1.0).contains(&t.confidence)));
        }
        let own = everything(&locality, IMAGE);
        let own = recording.salt().map_or(own.clone(), |salt| own.hashed(salt));
        for pair in [
            [recording.clone(), own.clone()],
            [own, recording.clone()],
            [recording.clone(), recording.clone()],
        ] {
            let merged = Recording::merge(&pair).unwrap();
            let bytes = merged.to_bytes().unwrap();
            let read = Recording::from_bytes(&bytes, &RecordingLimits::for_entries(256)).unwrap();
            prop_assert_eq!(read, merged);
        }
    }

    #[test]
    fn any_payload_ends(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let file = container::wrap(&FAMILY, &payload).unwrap();
        prop_assert!(Recording::from_bytes(&file, &RecordingLimits::for_entries(16)).is_err());
    }
}

proptest! {
    /// Writers and readers apply the same limits.
    #[test]
    fn writers_refuse_what_readers_refuse(
        recording in recording(),
        max_entries in 0u32..12,
        max_regions in 0u32..6,
        max_stretches in 0u32..8,
        max_text in 0u32..40,
        max_text_total in 0u32..120,
    ) {
        let limits =
            RecordingLimits { max_entries, max_regions, max_stretches, max_text, max_text_total };
        let bytes = container::wrap(&FAMILY, &encode::payload(&recording)).unwrap();
        let written = encode::check(&recording, &limits);
        let read = Recording::from_bytes(&bytes, &limits);
        prop_assert_eq!(written.is_ok(), read.is_ok(), "{:?}, {:?}", written, read.err());
    }
}
