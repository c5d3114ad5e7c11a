//! Any bytes as a recording, or as the payload of a recording whose checksum is right. What is accepted can be written again and
//! read back the same, translates to frames of a guest, and merges with itself.
#![no_main]

use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_core::recording::{Recording, RecordingLimits};
use kaleidoscope_fuzz::{file_around, guest};
use kaleidoscope_mock::linux::KernelStyle;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static ATLAS: LazyLock<LocalityOrder> = LazyLock::new(|| {
    let guest = guest(KernelStyle::ALL[0]);
    let options = ColoringOptions::default().registers(guest.registers.clone());
    LocalityOrder::new(color(&guest.memory, &options).expect("a synthetic guest is colored").map)
});

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let file = if choice % 4 == 0 { data.to_vec() } else { file_around(*b"KREC\x1a\r\n\n", data) };
    let limits = RecordingLimits::for_entries(1 << 14);
    let recording = match Recording::from_bytes(&file, &limits) {
        Ok(recording) => recording,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let again = recording.to_bytes().expect("what was read can be written");
    let read = Recording::from_bytes(&again, &limits).expect("what was written can be read");
    assert_eq!(read, recording);
    let image = (choice & 16 != 0).then(|| recording.image());
    for found in recording.translate(&ATLAS, image.as_ref()).frames {
        assert!(!ATLAS.is_free(found.frame) && (0.0..=1.0).contains(&found.confidence));
    }
    let merged = Recording::merge(&[recording.clone(), recording]);
    if let Ok(merged) = merged {
        let bytes = merged.to_bytes().expect("what was merged can be written");
        assert_eq!(Recording::from_bytes(&bytes, &limits).expect("and read"), merged);
    }
});
