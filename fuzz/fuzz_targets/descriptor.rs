//! Any bytes as a clone descriptor, or as the payload of one whose checksum is right. What is accepted can be written again and
//! read back the same, and has a locality order of all its frames.
#![no_main]

use kaleidoscope_core::clone::{CloneId, Descriptor, DescriptorLimits, MAX_SERVERS};
use kaleidoscope_fuzz::file_around;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let file = if choice % 4 == 0 { data.to_vec() } else { file_around(*b"KCLONE\r\n", data) };
    let limits = DescriptorLimits::for_frames(1 << 14);
    let descriptor = match Descriptor::from_bytes(&file, &limits) {
        Ok(descriptor) => descriptor,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(descriptor.servers().len() <= MAX_SERVERS);
    let again = descriptor.to_bytes().expect("what was read can be written");
    let read = Descriptor::from_bytes(&again, &limits).expect("what was written can be read");
    assert_eq!(read, descriptor);
    let locality = descriptor.locality().expect("a guest has a locality order");
    assert_eq!(locality.layout(), descriptor.layout());
    assert!(descriptor.map().is_none_or(|map| map == locality.map()));
    let other = descriptor.for_clone(CloneId([choice; 16]));
    assert_eq!((other.id(), other.identity()), (CloneId([choice; 16]), read.identity()));
});
