//! Checks that this code writes the example in `docs/formats.md`; see the manifest's example for
//! how to regenerate it.

use super::*;
use crate::codec::doc_example::documented;
use crate::memory::VecMemory;

/// A clone of an uncolored guest of one frame, with five bytes of device state.
fn example() -> Descriptor {
    let image = VecMemory::zeroed(MemoryLayout::contiguous(0x1000).unwrap());
    let servers = ["unix:/run/parent.sock", "tcp:parent:7411"];
    let descriptor = Descriptor::of(&image, None).unwrap().for_clone(CloneId([0xc1; 16]));
    descriptor
        .snapshot(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        .with_state(b"vcpu0".to_vec())
        .and_then(|d| d.with_servers(servers.map(|s| s.parse().unwrap()).to_vec()))
        .unwrap()
}

#[test]
fn the_documented_example_is_what_is_written() {
    let example = example();
    let (file, payload) = (example.to_bytes().unwrap(), encode::payload(&example));
    let documented = documented(("descriptor", &file), ("descriptor payload", &payload));
    let limits = DescriptorLimits::for_frames(1);
    assert_eq!(Descriptor::from_bytes(&documented, &limits).unwrap(), example);
}
