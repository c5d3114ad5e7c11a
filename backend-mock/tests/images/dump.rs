//! ELF dumps with omitted pages, as makedumpfile writes them.

use super::{assert_same, linux};
use kaleidoscope_core::addr::{Gfn, Gva};
use kaleidoscope_core::color::FrameKind;
use kaleidoscope_core::image::{Format, MemoryImage};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest};

/// A `PT_LOAD` segment: frames in the file, and the number of omitted frames after them.
struct Load {
    first: Gfn,
    held: u64,
    absent: u64,
}

/// Segments of a guest: runs of held frames, each with the omitted ones that follow.
fn loads(guest: &MockGuest, is_held: impl Fn(Gfn) -> bool) -> Vec<Load> {
    let mut loads: Vec<Load> = Vec::new();
    for (_, gfn) in guest.truth.layout().iter() {
        let held = is_held(gfn);
        match loads.last_mut() {
            Some(load)
                if load.first.0 + load.held + load.absent == gfn.0
                    && (!held || load.absent == 0) =>
            {
                load.held += u64::from(held);
                load.absent += u64::from(!held);
            }
            _ => loads.push(Load { first: gfn, held: held.into(), absent: (!held).into() }),
        }
    }
    loads
}

/// Bytes of the dump file.
fn write(guest: &MockGuest, is_held: impl Fn(Gfn) -> bool) -> Vec<u8> {
    let loads = loads(guest, is_held);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([4u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([0u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    let count = u16::try_from(loads.len()).unwrap();
    file.extend([64u16, 56, count, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let mut offset = (64 + 56 * loads.len() as u64).next_multiple_of(4096);
    for load in &loads {
        file.extend([1u32, 7].iter().flat_map(|word| word.to_le_bytes()));
        let (held, all) = (load.held << 12, (load.held + load.absent) << 12);
        let gpa = load.first.gpa().0;
        let words = [offset, 0, gpa, held, all, 0];
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        offset += held;
    }
    file.resize(file.len().next_multiple_of(4096), 0);
    for load in &loads {
        let mut bytes = vec![0; usize::try_from(load.held << 12).unwrap()];
        guest.memory.read(load.first.gpa(), &mut bytes).unwrap();
        file.extend(bytes);
    }
    file
}

fn is_zero(guest: &MockGuest, gfn: Gfn) -> bool {
    let mut page = [0; 4096];
    guest.memory.read(gfn.gpa(), &mut page).unwrap();
    page == [0; 4096]
}

/// `-d 31` also omits page cache, process memory and free pages.
fn is_filtered(guest: &MockGuest, gfn: Gfn) -> bool {
    let kind = guest.truth.kind(guest.truth.layout().index_of(gfn).unwrap());
    matches!(
        kind,
        FrameKind::File
            | FrameKind::Shared
            | FrameKind::BlockDevice
            | FrameKind::Anonymous
            | FrameKind::Hugetlb
            | FrameKind::Free
            | FrameKind::Offline
    )
}

/// Kinds, names and processes equal those of the whole guest, even if pages of the kernel image are
/// missing.
#[test]
fn pages_left_out_cost_no_name() {
    for style in KernelStyle::ALL {
        let guest = GuestBuilder::new(style).ram_bytes(32 << 20).seed(71).build().unwrap();
        let whole = linux(&guest.memory, &guest.registers);
        let text = guest.physical(guest.truth.kernel.text.start).unwrap().gfn();
        let rodata = &guest.truth.kernel.rodata;
        let first = guest.physical(rodata.start).unwrap().gfn();
        let constants = first.0..first.0 + (rodata.end.0 - rodata.start.0) / 4096;
        let levels: [(&str, &dyn Fn(Gfn) -> bool); 3] = [
            ("-d 1", &|gfn| !is_zero(&guest, gfn)),
            ("-d 31", &|gfn| !is_zero(&guest, gfn) && !is_filtered(&guest, gfn)),
            // A page of code lost to a disk error.
            ("text", &|gfn| gfn != Gfn(text.0 + 5)),
        ];
        for (level, is_held) in levels {
            let name = format!("{style:?} {level}");
            let image = MemoryImage::from_bytes(write(&guest, is_held), &Format::Elf).unwrap();
            assert!(image.missing_frames() > 0, "{name}");
            // Code is not read, so its absence is not reported.
            let lost = constants.clone().filter(|&gfn| !is_held(Gfn(gfn))).count();
            let found = linux(&image, &guest.registers);
            assert_same(&name, &found, &whole);
            let told = found.notes().iter().filter(|note| note.subject == "kernel image").count();
            assert_eq!(told, usize::from(lost > 0), "{name}: {:?}", found.notes());
        }
    }
}

/// A missing page of the frame table affects the frames that it describes, and few others.
#[test]
fn a_page_of_the_frame_table_costs_its_own_frames() {
    let guest = GuestBuilder::new(KernelStyle::V6_12).ram_bytes(32 << 20).seed(72).build().unwrap();
    let whole = linux(&guest.memory, &guest.registers);
    let record = guest.truth.kernel.vmemmap.0 + 3000 * 64;
    let lost = guest.physical(Gva(record)).unwrap().gfn();
    let dump = write(&guest, |gfn| gfn != lost);
    let image = MemoryImage::from_bytes(dump, &Format::Elf).unwrap();
    let found = linux(&image, &guest.registers);
    let pairs = found.map.iter().zip(whole.map.iter());
    let other = pairs.filter(|(a, b)| a.2.kind != b.2.kind).count();
    // A page holds 64 records, and blocks that start there are longer.
    assert!((64..200).contains(&other), "{other} frames of another kind");
    assert!(found.notes().iter().any(|note| note.subject == "frame table"));
}
