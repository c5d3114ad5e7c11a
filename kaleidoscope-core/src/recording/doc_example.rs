//! Checks that this code writes the example in `docs/formats.md`; see the manifest's example for
//! how to regenerate it.

use super::*;
use crate::codec::doc_example::documented;
use crate::color::{FrameKind, Order};

/// Two runs: a page of a file in both, and a page of a process in the second one.
fn example() -> Recording {
    let region = |kind, order, name: &str, stretches| RecordedRegion {
        kind,
        order,
        name: name.into(),
        frames: 2,
        stretches,
    };
    let regions = vec![
        region(FrameKind::File, Order::FileOffset, "ext4:65024:12:/etc/passwd", Vec::new()),
        region(
            FrameKind::Anonymous,
            Order::UserAddress,
            "sh[7]",
            vec![PageRange { start: 0x1000, pages: 1 }, PageRange { start: 0x1010, pages: 1 }],
        ),
    ];
    let entries = vec![
        Entry {
            gfn: Some(Gfn(1)),
            key: Key::Position { region: 0, position: 1, nth: 0 },
            color: Color::FileMapped,
            runs: 2,
            ranks: 0,
        },
        Entry {
            gfn: Some(Gfn(256)),
            key: Key::Position { region: 1, position: 0x1010, nth: 0 },
            color: Color::Anonymous,
            runs: 1,
            ranks: RANK_ONE / 2,
        },
    ];
    let kernel = KernelIdentity {
        os: "linux".into(),
        release: "6.1.0".into(),
        banner: String::new(),
        build_id: "c0ffee".into(),
        paging: "x86-64 4-level".into(),
    };
    let image = ImageIdentity { digest: [0xa5; 32], frames: 4 };
    Recording { kernel, image, runs: 2, salt: None, regions, entries }
}

#[test]
fn the_documented_example_is_what_is_written() {
    let example = example();
    let (file, payload) = (example.to_bytes().unwrap(), encode::payload(&example));
    let documented = documented(("recording", &file), ("recording payload", &payload));
    let limits = RecordingLimits::for_entries(2);
    assert_eq!(Recording::from_bytes(&documented, &limits).unwrap(), example);
}
