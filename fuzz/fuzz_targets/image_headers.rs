//! Any bytes as a memory image, as the text of its layout, as the text of its registers.
#![no_main]

use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::image::{Format, LayoutFile, MemoryImage, RawLayout};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::registers::parse_qemu_text;
use libfuzzer_sys::fuzz_target;

fn look(image: &MemoryImage) {
    let mut frame = [0; 4096];
    assert!(image.missing_frames() <= image.layout().frames());
    for (index, gfn) in image.layout().iter().take(64) {
        let read = image.read(gfn.gpa(), &mut frame);
        assert_eq!(read.is_ok(), image.holds(index), "{gfn}");
        if let Some(slice) = image.slice(gfn.gpa(), 4096) {
            assert_eq!(slice, frame);
        }
    }
    let end = image.layout().end_gfn().gpa();
    assert!(image.read(end, &mut frame).is_err() && image.read(Gpa(u64::MAX), &mut frame).is_err());
    let _ = (image.vcpus().iter().map(|v| v.paging_mode()).count(), image.vmcoreinfo());
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let text = || std::str::from_utf8(data).ok();
    match choice % 4 {
        0 | 1 => {
            let format = if choice % 4 == 0 { Format::Auto } else { Format::Elf };
            match MemoryImage::from_bytes(data.to_vec(), &format) {
                Ok(image) => look(&image),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        2 => {
            if let Some(Ok(layout)) = text().map(str::parse::<LayoutFile>) {
                let format = Format::Raw(RawLayout::File(layout));
                match MemoryImage::from_bytes(vec![7; 1 << 16], &format) {
                    Ok(image) => look(&image),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
        _ => {
            if let Some(Ok(vcpus)) = text().map(parse_qemu_text) {
                for vcpu in &vcpus {
                    let _ = vcpu.paging_mode();
                }
            }
        }
    }
});
