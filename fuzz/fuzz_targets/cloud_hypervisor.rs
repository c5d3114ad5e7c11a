//! Any bytes as a message or a configuration of cloud-hypervisor: what is accepted is written again as it was read, and the RAM of a
//! configuration is whole pages, each once.
#![no_main]

use kaleidoscope_fuzz::Input;
use kaleidoscope_kvm::cloud_hypervisor::GuestRam;
use kaleidoscope_kvm::cloud_hypervisor::codec::{Fault, MAX_PAGE, Request, Response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let bytes = input.bytes();
    match Request::parse(&bytes) {
        Ok(request) => {
            assert_eq!(
                Request::parse(&request.to_bytes()).expect("what was written can be read"),
                request
            );
            let _ = request.check_length(16);
            if let Ok(length) = request.bounded_length(1 << 20) {
                assert!((1..=1 << 20).contains(&length));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(response) = Response::parse(&bytes) {
        assert_eq!(
            Response::parse(&response.to_bytes()).expect("what was written can be read"),
            response
        );
    }
    if let Ok(fault) = Fault::parse(&bytes) {
        assert!((4096..=MAX_PAGE).contains(&fault.length));
        assert_eq!(fault.to_bytes(), bytes);
    }
    match GuestRam::parse(input.rest()) {
        Ok(ram) => {
            let slots = ram.slots();
            assert!(slots.windows(2).all(|two| two[0].gpa.0 + two[0].bytes <= two[1].gpa.0));
            assert_eq!(slots.iter().map(|slot| slot.bytes).sum::<u64>(), ram.bytes());
            assert_eq!(ram.layout().bytes(), ram.bytes());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
