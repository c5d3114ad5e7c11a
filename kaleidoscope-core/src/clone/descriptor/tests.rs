//! Descriptors round-trip, and damaged or hostile ones are rejected.

use super::*;
use crate::addr::{FrameIndex, Gpa};
use crate::codec::cbor::Writer;
use crate::color::{Color, FrameKind, Order, Region, RegionId};
use crate::fingerprint::{Content, DomainId, Fingerprint};
use crate::identity::IdentityError;
use crate::memory::VecMemory;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn limits() -> DescriptorLimits {
    DescriptorLimits::for_frames(64)
}

fn image(frames: u64) -> VecMemory {
    let layout = MemoryLayout::new(&[(Gpa(0), (frames - 1) << 12), (Gpa(1 << 32), 0x1000)]);
    let mut memory = VecMemory::zeroed(layout.unwrap());
    for (i, byte) in memory.bytes_mut().iter_mut().enumerate() {
        *byte = u8::try_from(i / 11 % 251).unwrap();
    }
    memory
}

/// An image that reports some frames as holes.
struct Sparse(VecMemory, Vec<bool>);

impl GuestMemory for Sparse {
    fn layout(&self) -> &MemoryLayout {
        self.0.layout()
    }
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), crate::memory::MemoryError> {
        self.0.read(gpa, buf)
    }
    fn extent(&self, frame: FrameIndex) -> Extent {
        let is_hole = self.1[frame.as_usize()];
        let backing = if is_hole { Backing::Hole } else { Backing::Data };
        Extent { frames: frame.0..frame.0 + 1, backing }
    }
}

fn map(layout: &MemoryLayout) -> ColorMap {
    let regions = vec![Region {
        anchor: Some(FrameIndex(0)),
        ..Region::new(FrameKind::File, Order::FileOffset, "ext4:1:2:/bin/true")
    }];
    let frames = (0..layout.frames()).map(|i| Frame {
        kind: FrameKind::File,
        color: Color::FileCode,
        region: Some(RegionId(0)),
        position: u64::from(i / 2),
        ..Frame::default()
    });
    ColorMap::new(layout.clone(), KernelIdentity::default(), frames, regions).unwrap()
}

fn fingerprints(frames: u32, hashed: &BTreeMap<u32, [u8; 16]>) -> Fingerprints {
    let page = |(frame, bytes): (&u32, &[u8; 16])| {
        (FrameIndex(*frame), Content::Page(Fingerprint(*bytes)))
    };
    Fingerprints::new(DomainId([6; 16]), frames, hashed.iter().map(page))
}

fn address() -> impl Strategy<Value = ServerAddress> {
    let port = any::<u16>();
    prop_oneof![
        "/[a-z:. ]{1,40}".prop_map(|path| ServerAddress::Unix(path.into())),
        ("[a-z.]{1,20}", port)
            .prop_map(|(host, port)| ServerAddress::Tcp(format!("{host}:{port}"))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn descriptors_round_trip(
        is_colored: bool,
        frames in 2u64..64,
        id: [u8; 16],
        micros in prop::option::of(0u64..1 << 60),
        state in prop::collection::vec(any::<u8>(), 0..2000),
        servers in prop::collection::vec(address(), 0..=MAX_SERVERS),
        zero: bool,
        hashed in prop::option::of(prop::collection::btree_map(0u32..64, any::<[u8; 16]>(), 0..64)),
        is_hole in prop::collection::vec(any::<bool>(), 64),
    ) {
        let image = image(frames);
        let map = is_colored.then(|| map(image.layout()));
        let mut descriptor = Descriptor::of(&image, map).unwrap()
            .for_clone(CloneId(id))
            .with_free_frames(if zero { FreeFrames::Zero } else { FreeFrames::Fetch })
            .with_state(state).unwrap()
            .with_servers(servers).unwrap()
            .with_holes_of(&Sparse(image.clone(), is_hole.clone()));
        if let Some(hashed) = &hashed {
            let table = fingerprints(frames.try_into().unwrap(), hashed);
            descriptor = descriptor.with_fingerprints(table).unwrap();
        }
        if let Some(micros) = micros {
            // Nanoseconds are truncated.
            descriptor = descriptor.snapshot(instant(micros).unwrap() + Duration::from_nanos(999));
        }
        let bytes = descriptor.to_bytes().unwrap();
        let read = Descriptor::from_bytes(&bytes, &limits()).unwrap();
        prop_assert_eq!(&read, &descriptor);
        prop_assert_eq!(read.to_bytes().unwrap(), bytes, "equal descriptors are equal bytes");
        prop_assert_eq!(read.map().is_some(), is_colored);
        prop_assert_eq!(read.fingerprints().is_some(), hashed.is_some());
        let holes: Vec<u32> = read.holes().iter().cloned().flatten().collect();
        let expected = (0u32..).zip(&is_hole);
        let expected = expected.filter(|(n, is_hole)| u64::from(*n) < frames && **is_hole);
        prop_assert_eq!(holes, expected.map(|(n, _)| n).collect::<Vec<_>>());
        prop_assert!(read.holes().windows(2).all(|pair| pair[0].end < pair[1].start));
        prop_assert_eq!(read.frozen_at(), micros.and_then(instant));
        read.verify(&image).unwrap();
        let locality = read.locality().unwrap();
        prop_assert_eq!(u64::from(locality.frames()), frames);
        let original = descriptor.locality().unwrap();
        prop_assert_eq!(locality.class(FrameIndex(0)), original.class(FrameIndex(0)));
    }

    /// Any change of a single byte is detected.
    #[test]
    fn damage_is_noticed(at: prop::sample::Index, flip in 1u8..) {
        let image = image(9);
        let table = fingerprints(9, &BTreeMap::from([(3, [1; 16]), (8, [2; 16])]));
        let descriptor = Descriptor::of(&image, Some(map(image.layout()))).unwrap();
        let mut bytes = descriptor.with_fingerprints(table).unwrap().to_bytes().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Descriptor::from_bytes(&bytes, &limits()).is_err());
    }
}

#[test]
fn fingerprints_of_another_guest_are_refused() {
    let image = image(9);
    let descriptor = Descriptor::of(&image, None).unwrap();
    let of = |frames| fingerprints(frames, &BTreeMap::from([(3, [1; 16])]));
    let error = descriptor.clone().with_fingerprints(of(10)).unwrap_err().to_string();
    assert!(error.contains("fingerprints of another guest"), "{error}");
    let good = descriptor.with_fingerprints(of(9)).unwrap();
    // A frame past the end, in the file.
    let mut payload = encode::payload(&good);
    let set = payload.windows(7).rposition(|w| w == b"fhashed").unwrap() + 8;
    payload[set + 1] = 0x80;
    let bytes = container::wrap(&FAMILY, &payload).unwrap();
    let error = Descriptor::from_bytes(&bytes, &limits()).unwrap_err().to_string();
    assert!(error.contains("`fingerprints`") && error.contains("set of hashed"), "{error}");
}

#[test]
fn a_manifests_fingerprints_become_the_descriptors() {
    let image = image(9);
    let colors = map(image.layout());
    let identity = ImageIdentity::of(&image, &colors).unwrap();
    let mut manifest = Manifest::new(colors, identity);
    let table = fingerprints(9, &BTreeMap::from([(3, [1; 16])]));
    manifest.fingerprints = Some(table.clone());
    let descriptor = Descriptor::of_manifest(manifest).unwrap();
    assert_eq!(descriptor.fingerprints().map(|found| found.as_ref()), Some(&table));
}

#[test]
fn clones_share_their_template() {
    let image = image(40);
    let first = Descriptor::of(&image, Some(map(image.layout()))).unwrap();
    let clones: Vec<_> = (0..1000).map(|_| first.for_clone(CloneId::random().unwrap())).collect();
    for clone in &clones {
        assert_ne!(clone.id(), first.id());
        assert!(Arc::ptr_eq(&clone.locality().unwrap(), &first.locality().unwrap()));
    }
    let changed = clones[0].clone().with_free_frames(FreeFrames::Zero);
    assert_eq!((changed.free_frames(), first.free_frames()), (FreeFrames::Zero, FreeFrames::Fetch));
}

#[test]
fn another_image_is_refused() {
    let (first, mut other) = (image(20), image(20));
    for map in [None, Some(map(first.layout()))] {
        let descriptor = Descriptor::of(&first, map).unwrap();
        descriptor.verify(&first).unwrap();
        other.write(Gpa(0x3210), b"another").unwrap();
        assert!(matches!(descriptor.verify(&other), Err(DescriptorError::Identity(_))));
        assert!(matches!(descriptor.verify(&image(21)), Err(DescriptorError::Identity(_))));
    }
    let error = Descriptor::of(&first, Some(map(image(21).layout()))).unwrap_err();
    assert!(matches!(error, DescriptorError::Identity(IdentityError::Layout { .. })));
}

#[test]
fn too_much_is_refused_at_once() {
    let image = image(2);
    let new = || Descriptor::of(&image, None).unwrap();
    let error = new().with_state(vec![0; MAX_STATE + 1]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "67108865 bytes of device state, more than the limit of 67108864"
    );
    let address = ServerAddress::Tcp("host:1".into());
    assert!(new().with_servers(vec![address.clone(); MAX_SERVERS]).is_ok());
    let error = new().with_servers(vec![address; MAX_SERVERS + 1]).unwrap_err();
    assert_eq!(error.to_string(), "17 page servers, more than the limit of 16");
    use std::os::unix::ffi::OsStringExt;
    let bytes = std::ffi::OsString::from_vec(vec![b'/', 0xff]);
    for wrong in [
        ServerAddress::Tcp("no port".into()),
        ServerAddress::Unix("x".repeat(5000).into()),
        ServerAddress::Unix(bytes.into()),
    ] {
        let error = new().with_servers(vec![wrong]).unwrap_err();
        assert!(matches!(error, DescriptorError::Address { number: 0, .. }));
    }
}

#[test]
fn other_files_are_told_apart() {
    let image = image(2);
    let manifest_limits = limits().manifest;
    let file = Descriptor::of(&image, None).unwrap().to_bytes().unwrap();
    let error = Manifest::from_bytes(&file, &manifest_limits).unwrap_err();
    assert!(error.to_string().contains("not a manifest"), "{error}");
    let map = map(image.layout());
    let identity = ImageIdentity::of(&image, &map).unwrap();
    let manifest = Manifest::new(map, identity);
    let error = Descriptor::from_bytes(&manifest.to_bytes().unwrap(), &limits()).unwrap_err();
    assert!(error.to_string().contains("not a clone descriptor"), "{error}");
    let made = Descriptor::of_manifest(manifest).unwrap();
    assert_eq!(
        made.for_clone(CloneId([0; 16])),
        Descriptor::of(&image, made.map().cloned()).unwrap().for_clone(CloneId([0; 16]))
    );
}

/// The values of a payload's fields.
struct Fields {
    id: Vec<u8>,
    state: Vec<u8>,
    colors: Vec<u8>,
    snapshot: Vec<u64>,
    layout: Vec<[u64; 2]>,
    servers: Vec<String>,
    frames: u64,
    free_frames: &'static str,
    holes: Vec<u64>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            id: vec![7; 16],
            state: Vec::new(),
            colors: Vec::new(),
            snapshot: Vec::new(),
            layout: vec![[0, 3]],
            servers: Vec::new(),
            frames: 3,
            free_frames: "fetch",
            holes: vec![0, 1],
        }
    }
}

/// Reads a payload with these fields and an unknown one.
fn read(fields: &Fields) -> Result<Descriptor, DescriptorError> {
    let mut out = Writer::default();
    out.map(10);
    out.text("holes");
    out.array(fields.holes.len());
    fields.holes.iter().for_each(|n| out.uint(*n));
    out.text("dedup_hashes");
    out.array(2);
    out.bytes(&[1; 32]);
    out.map(0);
    out.text("id");
    out.bytes(&fields.id);
    out.text("state");
    out.bytes(&fields.state);
    out.text("colors");
    out.bytes(&fields.colors);
    out.text("frozen");
    out.array(fields.snapshot.len());
    fields.snapshot.iter().for_each(|n| out.uint(*n));
    out.text("layout");
    out.array(fields.layout.len());
    for [start, frames] in &fields.layout {
        out.array(2);
        out.uint(*start);
        out.uint(*frames);
    }
    out.text("servers");
    out.array(fields.servers.len());
    fields.servers.iter().for_each(|s| out.text(s));
    out.text("identity");
    out.map(2);
    out.text("digest");
    out.bytes(&[0xa5; 32]);
    out.text("frames");
    out.uint(fields.frames);
    out.text("free_frames");
    out.text(fields.free_frames);
    let limits = DescriptorLimits { max_state: 1000, ..limits() };
    Descriptor::from_bytes(&container::wrap(&FAMILY, &out.finish()).unwrap(), &limits)
}

#[test]
fn unknown_fields_are_skipped() {
    let read = read(&Fields::default()).unwrap();
    assert_eq!((read.layout().frames(), read.id()), (3, CloneId([7; 16])));
    assert_eq!(read.locality().unwrap().color(FrameIndex(2)), Color::Unknown);
}

#[test]
fn wrong_fields_are_named() {
    let layout = MemoryLayout::contiguous(0x3000).unwrap();
    let colors = |identity, layout: &MemoryLayout| {
        crate::manifest::encode::parts(&map(layout), &identity, &[], None)
    };
    let right = ImageIdentity { digest: [0xa5; 32], frames: 3 };
    let other = ImageIdentity { digest: [0; 32], frames: 3 };
    let two = MemoryLayout::contiguous(0x2000).unwrap();
    let colored = Fields { colors: colors(right, &layout), ..Fields::default() };
    assert!(read(&colored).unwrap().map().is_some());
    let cut = colored.colors[..colored.colors.len() - 1].to_vec();
    let server = |text: &str| Fields { servers: vec![text.into()], ..Fields::default() };
    let cases = [
        (Fields { id: vec![1; 15], ..Fields::default() }, "an id is a string of 16 bytes"),
        (Fields { state: vec![0; 1001], ..Fields::default() }, "1001 bytes of device state"),
        (Fields { colors: cut, ..Fields::default() }, "in the color map, field `colors`: "),
        (Fields { colors: colors(other, &layout), ..Fields::default() }, "is of another image"),
        (Fields { colors: colors(right, &two), ..Fields::default() }, "has another layout"),
        (Fields { snapshot: vec![1, 2], ..Fields::default() }, "2 instants of the freeze"),
        (Fields { layout: Vec::new(), ..Fields::default() }, "0 RAM regions"),
        (Fields { layout: vec![[0, 65]], ..Fields::default() }, "65 frames of RAM, more than"),
        (Fields { layout: vec![[0, 1], [1, 1]], ..Fields::default() }, "gaps between them"),
        (server("vsock:1"), "`vsock:1` is no address"),
        (server(&format!("unix:{}", "x".repeat(5000))), "5005 bytes in a page server's address"),
        (
            Fields { servers: vec!["tcp:a:1".into(); 17], ..Fields::default() },
            "17 page servers, more than the limit of 16",
        ),
        (Fields { frames: 1 << 40, ..Fields::default() }, "field `identity`"),
        (Fields { holes: vec![1], ..Fields::default() }, "1 numbers, not two for each hole"),
        (Fields { holes: vec![0, 0], ..Fields::default() }, "holes must ascend"),
        (Fields { holes: vec![0, 1, 0, 1], ..Fields::default() }, "holes must ascend"),
        (Fields { holes: vec![2, 2], ..Fields::default() }, "end by frame 3"),
        (Fields { holes: vec![u64::MAX, 9], ..Fields::default() }, "holes must ascend"),
        (
            Fields { free_frames: "keep", ..Fields::default() },
            "`keep` is no treatment of free frames",
        ),
    ];
    for (fields, expected) in cases {
        let error = read(&fields).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} has no {expected:?}");
    }
}

/// A template with this many frames, without an image.
fn of_frames(frames: u64) -> Descriptor {
    let layout = MemoryLayout::contiguous(frames << 12).unwrap();
    let identity = ImageIdentity { digest: [1; 32], frames: 1 };
    Descriptor::new(Template::new(layout, identity)).unwrap()
}

#[test]
fn writers_refuse_guests_that_readers_refuse() {
    let written = of_frames(1 << 28).to_bytes().unwrap();
    Descriptor::from_bytes(&written, &DescriptorLimits::default()).unwrap();
    let larger = of_frames((1 << 28) + 1);
    let unchecked = container::wrap(&FAMILY, &encode::payload(&larger)).unwrap();
    let error = larger.to_bytes().unwrap_err().to_string();
    assert!(error.contains("268435457 frames of RAM, more than the limit"), "{error}");
    let read = Descriptor::from_bytes(&unchecked, &DescriptorLimits::default()).unwrap_err();
    assert_eq!(read.to_string(), error);
}

#[test]
fn of_many_holes_the_longest_are_kept() {
    // Frames 4 n are data; every thousandth hole has three frames, the others one.
    let frames = 4 * 70_000;
    let is_hole = (0..frames).map(|n| n % 4 == 1 || (n % 4 != 0 && n / 4 % 1000 == 0)).collect();
    let layout = MemoryLayout::contiguous(u64::from(frames) << 12).unwrap();
    let image = Sparse(VecMemory::zeroed(layout), is_hole);
    let descriptor = of_frames(frames.into()).with_holes_of(&image);
    assert_eq!(descriptor.holes().len(), 1 << 16);
    assert_eq!(descriptor.holes().iter().filter(|hole| hole.len() == 3).count(), 70);
    let limits = DescriptorLimits::for_frames(frames);
    let read = Descriptor::from_bytes(&descriptor.to_bytes().unwrap(), &limits).unwrap();
    assert_eq!(read.holes(), descriptor.holes());
}

/// A file that claims a huge payload takes no memory for it.
#[test]
fn huge_claims_are_refused() {
    let mut bytes = Descriptor::of(&image(2), None).unwrap().to_bytes().unwrap();
    bytes[24..32].copy_from_slice(&(1u64 << 50).to_le_bytes());
    let error = Descriptor::from_bytes(&bytes, &limits()).unwrap_err();
    assert!(matches!(error, DescriptorError::File(ManifestError::Limit { .. })), "{error}");
    assert!(limits().max_memory() < 1 << 30);
}
