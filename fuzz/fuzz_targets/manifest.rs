//! Any bytes as a manifest, or as the payload of a manifest whose checksum is right. What is accepted can be written again and
//! read back the same.
#![no_main]

use kaleidoscope_core::manifest::{Limits, Manifest};
use kaleidoscope_fuzz::file_around;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let file = if choice % 4 == 0 { data.to_vec() } else { file_around(*b"KSCOPE\r\n", data) };
    let limits = Limits::for_frames(1 << 16);
    match Manifest::from_bytes(&file, &limits) {
        Ok(manifest) => {
            let again = manifest.to_bytes().expect("what was read can be written");
            let read = Manifest::from_bytes(&again, &limits).expect("what was written can be read");
            assert_eq!(read, manifest);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
