//! Any bytes as the message of a Firecracker that loads a snapshot. Regions of one that is accepted
//! follow each other in the memory file, are of whole pages, and fit a layout only if that has as
//! many bytes.
#![no_main]

use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_kvm::firecracker::Handshake;
use libfuzzer_sys::fuzz_target;

const RAM: u64 = 48 << 20;

fuzz_target!(|data: &[u8]| {
    let vm = match Handshake::parse(data) {
        Ok(vm) => vm,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let page = vm.page_size().bytes() as u64;
    let sum: u64 = vm.regions().iter().map(|region| region.bytes()).sum();
    assert_eq!(sum, vm.bytes());
    for region in vm.regions() {
        assert!(region.bytes() > 0 && region.bytes() % page == 0 && region.address() % page == 0);
        assert!(region.address().checked_add(region.bytes()).is_some());
    }
    let layout = MemoryLayout::contiguous(RAM).expect("a layout");
    if vm.check_layout(&layout).is_ok() {
        assert_eq!(vm.bytes(), RAM);
    }
});
