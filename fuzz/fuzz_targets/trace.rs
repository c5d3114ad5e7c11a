//! Any bytes as a trace. What is accepted is in order, names every frame once, and can be written and read back the same.
#![no_main]

use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::prefetch::Access;
use kaleidoscope_core::replay::Trace;
use libfuzzer_sys::fuzz_target;
use std::collections::HashSet;
use std::fmt::Write;

fuzz_target!(|data: &[u8]| {
    let layout = MemoryLayout::new(&[(Gpa(0), 0x10_0000), (Gpa(1 << 32), 0x10_0000)]);
    let layout = layout.expect("two regions of 1 MiB");
    let trace = match Trace::from_csv(data, &layout) {
        Ok(trace) => trace,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let touches = trace.touches();
    assert!(touches.is_sorted_by_key(|touch| touch.at_us));
    let frames: HashSet<_> = touches.iter().map(|touch| touch.frame).collect();
    assert_eq!(frames.len(), touches.len());
    let mut text = String::from("t_us,vcpu,gfn,event,access_write\n");
    for touch in touches {
        let gfn = layout.gfn_of(touch.frame).expect("frames are in the guest").0;
        let write = match touch.access {
            Access::Unknown => "",
            Access::Read => "0",
            Access::Write => "1",
        };
        writeln!(text, "{},{},{gfn:x},touch,{write}", touch.at_us, touch.vcpu)
            .expect("a string takes everything");
    }
    let again = Trace::from_csv(text.as_bytes(), &layout).expect("what was accepted is right");
    assert_eq!(again, trace);
    assert_eq!(Trace::new(touches.iter().copied(), &layout), trace);
});
