//! Any bytes as a migration stream of QEMU, or as what a destination sends back, in pieces. A VM
//! that is accepted can be written without its RAM and read back the same, and can be migrated;
//! requests lie within the RAM.
#![no_main]

use kaleidoscope_kvm::qemu::{PostcopySource, ReturnPath, SavedVm, Wanted};
use libfuzzer_sys::fuzz_target;

const RAM: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, mut data)) = data.split_first() else { return };
    if choice % 2 == 0 {
        let mut path = ReturnPath::new("ram", RAM);
        for piece in data.chunks(usize::from(choice / 2) + 1) {
            path.push(piece);
            loop {
                match path.next_wanted() {
                    Ok(Some(Wanted::Pages { offset, bytes })) => {
                        assert!(
                            bytes > 0 && offset.checked_add(bytes).is_some_and(|end| end <= RAM)
                        );
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => return assert!(!error.to_string().is_empty()),
                }
            }
        }
        return;
    }
    let mut offsets = Vec::new();
    let mut sink = |offset, _: Option<&_>| {
        offsets.push(offset);
        Ok(())
    };
    let saved = match SavedVm::read(&mut data, "ram", &mut sink) {
        Ok(saved) => saved,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let ram = saved.block("ram").expect("a VM has RAM");
    assert!(offsets.iter().all(|offset| *offset < ram.bytes && offset % 4096 == 0));
    assert_eq!(saved.has_ram(), !offsets.is_empty());
    let without = saved.without_ram();
    let again =
        SavedVm::read(&mut &without[..], "ram", &mut |_, _| Ok(())).expect("it was written here");
    assert_eq!(again.without_ram(), without);
    let mut opening = Vec::new();
    let source =
        PostcopySource::start(&saved, "ram", &mut opening).expect("it has RAM and devices");
    assert_eq!(source.ram_bytes(), ram.bytes);
    source.finish(&mut opening);
});
