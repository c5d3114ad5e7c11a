//! ELF dumps made by a writer that shares no code with the reader.

use super::*;
use crate::addr::{FrameIndex, GPA_LIMIT, Gfn};
use crate::image::{Format, ImageError, MemoryImage};
use crate::memory::{GuestMemory, MemoryError};
use crate::registers::PagingMode;
use proptest::prelude::*;

/// One PT_LOAD: physical address, bytes in the file, and further bytes that are only described.
struct Load {
    paddr: u64,
    data: Vec<u8>,
    absent: u64,
}

/// Writes dumps.
struct Writer {
    class: u8,
    machine: u16,
    notes: Vec<u8>,
    loads: Vec<Load>,
    /// Put the number of program headers into section header 0.
    extended: bool,
}

impl Writer {
    fn new() -> Self {
        Self { class: 2, machine: 62, notes: Vec::new(), loads: Vec::new(), extended: false }
    }

    fn load(mut self, paddr: u64, data: Vec<u8>, absent: u64) -> Self {
        self.loads.push(Load { paddr, data, absent });
        self
    }

    fn note(mut self, name: &str, kind: u32, contents: &[u8]) -> Self {
        let mut name = name.as_bytes().to_vec();
        name.push(0);
        for number in [name.len(), contents.len()] {
            self.notes.extend(u32::try_from(number).unwrap().to_le_bytes());
        }
        self.notes.extend(kind.to_le_bytes());
        for part in [&name[..], contents] {
            self.notes.extend(part);
            self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        }
        self
    }

    fn write(&self) -> Vec<u8> {
        let wide = self.class == 2;
        let word = |out: &mut Vec<u8>, value: u64| {
            out.extend(&value.to_le_bytes()[..if wide { 8 } else { 4 }]);
        };
        let (header, section, program) = if wide { (64u64, 64u64, 56u64) } else { (52, 40, 32) };
        let headers = 1 + self.loads.len();
        let first_byte = header + section + program * headers as u64;
        let mut out = vec![0x7f, b'E', b'L', b'F', self.class, 1, 1];
        out.resize(16, 0);
        out.extend(4u16.to_le_bytes());
        out.extend(self.machine.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        for value in [0, header + section, header] {
            word(&mut out, value);
        }
        out.extend(0u32.to_le_bytes());
        let phnum = if self.extended { 0xffff } else { u16::try_from(headers).unwrap() };
        for half in
            [8, u16::try_from(program).unwrap(), phnum, u16::try_from(section).unwrap(), 1, 0]
        {
            out.extend(half.to_le_bytes());
        }
        // Section header 0 up to sh_info, which is followed by two words.
        let mut section_header = vec![0; usize::try_from(section).unwrap()];
        let info = section_header.len() - if wide { 20 } else { 12 };
        section_header[info..info + 4]
            .copy_from_slice(&u32::try_from(headers).unwrap().to_le_bytes());
        out.extend(section_header);
        let mut at = first_byte;
        let mut program_header =
            |out: &mut Vec<u8>, kind: u32, paddr: u64, file: u64, memory: u64| {
                out.extend(kind.to_le_bytes());
                if wide {
                    out.extend(7u32.to_le_bytes());
                }
                for value in [at, 0, paddr, file, memory] {
                    word(out, value);
                }
                if !wide {
                    out.extend(7u32.to_le_bytes());
                }
                word(out, 0);
                at += file;
            };
        program_header(&mut out, 4, 0, self.notes.len() as u64, 0);
        for load in &self.loads {
            let file = load.data.len() as u64;
            program_header(&mut out, 1, load.paddr, file, file + load.absent);
        }
        out.extend(&self.notes);
        self.loads.iter().for_each(|load| out.extend(&load.data));
        out
    }

    fn open(&self) -> Result<MemoryImage, ImageError> {
        MemoryImage::from_bytes(self.write(), &Format::Auto)
    }

    fn elf_error(&self) -> ElfError {
        parse(&self.write()).unwrap_err()
    }
}

fn frames(count: usize, fill: u8) -> Vec<u8> {
    vec![fill; count * 0x1000]
}

/// A note as QEMU writes it, with a different number in every register.
fn qemu_note(version: u32, cr0: u64, cr4: u64) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend(version.to_le_bytes());
    note.extend(440u32.to_le_bytes());
    // RAX RBX RCX RDX RSI RDI RSP RBP R8-R15 RIP RFLAGS
    (0x100..0x112u64).for_each(|register| note.extend(register.to_le_bytes()));
    // CS DS ES FS GS SS LDT TR GDT IDT
    for segment in 0..10u32 {
        for half in [0x33, 0xffff, 0x00a0_fb00, 0] {
            note.extend(u32::to_le_bytes(half));
        }
        note.extend(u64::from(0x200 + segment).to_le_bytes());
    }
    for register in [cr0, 0x302, 0x302, 0x303, cr4, 0x400] {
        note.extend(u64::to_le_bytes(register));
    }
    note
}

/// `struct elf_prstatus` with RIP, CS and RSP, or their 32-bit counterparts.
fn prstatus(wide: bool) -> Vec<u8> {
    let registers: [usize; 3] = [16, 17, 19];
    if wide {
        let mut note = vec![0; 112 + 27 * 8 + 8];
        for (value, at) in [0x1001u64, 0x33, 0x1003].iter().zip(registers) {
            note[112 + at * 8..][..8].copy_from_slice(&value.to_le_bytes());
        }
        note
    } else {
        let mut note = vec![0; 72 + 17 * 4 + 4];
        for (value, at) in [0x1001u32, 0x60, 0x1003].iter().zip([12, 13, 15]) {
            note[72 + at * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        note
    }
}

#[test]
fn reads_memory_of_both_classes_and_both_counts() {
    for (class, extended) in [(1, false), (2, false), (1, true), (2, true)] {
        let mut writer = Writer::new().load(0x10_0000, frames(2, 5), 0).load(0, frames(1, 7), 0);
        (writer.class, writer.extended) = (class, extended);
        let image = writer.open().unwrap();
        assert_eq!(image.layout().frames(), 3);
        assert_eq!(image.missing_frames(), 0);
        assert_eq!(image.slice(Gpa(0xff0), 16).unwrap(), [7; 16]);
        assert_eq!(image.slice(Gpa(0x10_0ff0), 32).unwrap(), [5; 32]);
        let offset = usize::try_from(image.file_offset(FrameIndex(0)).unwrap()).unwrap();
        assert_eq!(writer.write()[offset..], frames(1, 7));
    }
}

#[test]
fn described_memory_without_bytes_is_missing_and_not_zero() {
    let image =
        Writer::new().load(0, frames(1, 1), 0x2000).load(0x3000, frames(1, 1), 0).open().unwrap();
    assert_eq!(image.layout().frames(), 4);
    assert_eq!(image.missing_frames(), 2);
    assert_eq!([0, 1, 2, 3].map(|i| image.holds(FrameIndex(i))), [true, false, false, true]);
    let missing = image.read(Gpa(0xff8), &mut [0; 16]).unwrap_err();
    assert!(matches!(missing, MemoryError::Missing { gpa: Gpa(0x1000), len: 8 }));
    assert_eq!(image.slice(Gpa(0xff8), 16), None);
    assert_eq!(image.file_offset(FrameIndex(1)), None);
}

#[test]
fn a_frame_held_in_part_is_ram_but_not_held() {
    let image = Writer::new().load(0x1000, vec![9; 0x1c00], 0).open().unwrap();
    assert_eq!(image.layout().frames(), 2);
    assert!(image.holds(FrameIndex(0)) && !image.holds(FrameIndex(1)));
    image.read(Gpa(0x2bff), &mut [0]).unwrap();
    assert!(matches!(image.read(Gpa(0x2c00), &mut [0]), Err(MemoryError::Missing { .. })));
}

#[test]
fn frames_in_two_pieces_are_read_whole() {
    let image =
        Writer::new().load(0x800, vec![2; 0x800], 0).load(0, vec![1; 0x800], 0).open().unwrap();
    let mut frame = [0; 0x1000];
    image.read(Gpa(0), &mut frame).unwrap();
    assert!(frame[..0x800] == [1; 0x800] && frame[0x800..] == [2; 0x800]);
    assert!(image.holds(FrameIndex(0)));
}

#[test]
fn the_same_memory_twice_is_accepted_if_it_is_the_same() {
    let memory: Vec<u8> = (0..0x6000u32).map(|i| i.wrapping_mul(0x9e37).to_le_bytes()[1]).collect();
    let twice = |copy: Vec<u8>| {
        let writer = Writer::new().load(0x3000, copy, 0x2000);
        writer.load(0x1000, memory.clone(), 0).load(0x8000, frames(1, 3), 0)
    };
    let image = twice(memory[0x2000..0x4000].to_vec()).open().unwrap();
    assert_eq!(image.slice(Gpa(0x1000), 0x6000).unwrap(), memory);
    assert_eq!(image.missing_frames(), 0);
    assert_eq!(image.layout().regions().len(), 2);
    let mut changed = memory[0x2000..0x4000].to_vec();
    changed[0x1fff] ^= 1;
    assert_eq!(twice(changed).elf_error(), ElfError::Conflict { gpa: Gpa(0x3000) });
    // A copy that continues past the end of the first adds the rest.
    let mut longer = memory[0x5000..].to_vec();
    longer.extend(frames(1, 8));
    let writer = Writer::new().load(0x1000, memory.clone(), 0).load(0x6000, longer, 0);
    let image = writer.open().unwrap();
    assert_eq!((image.layout().frames(), image.missing_frames()), (7, 0));
    let mut last = [0; 2];
    image.read(Gpa(0x6fff), &mut last).unwrap();
    assert_eq!(last, [memory[0x5fff], 8]);
}

#[test]
fn endless_repetition_is_refused() {
    // 3000 program headers for the same half of the file, which would take long to compare.
    let writer = Writer::new().load(0, frames(4, 0), 0).load(0x8000, frames(4, 0), 0);
    let mut loads = vec![(0u64, 0u64)];
    loads.extend((0..3000u64).map(|i| (0, i * 8)));
    let mut file = writer.write();
    let base = file.len() as u64;
    file.extend(vec![0; 0x10000]);
    let table = file.len() as u64;
    for (paddr, offset) in &loads {
        file.extend([1u32, 7].map(u32::to_le_bytes).concat());
        let words = [base + offset, 0, *paddr, 0x8000, 0x8000, 0];
        file.extend(words.map(u64::to_le_bytes).concat());
    }
    file[32..40].copy_from_slice(&table.to_le_bytes());
    file[56..58].copy_from_slice(&u16::try_from(loads.len()).unwrap().to_le_bytes());
    assert_eq!(parse(&file).unwrap_err(), ElfError::TooMuchOverlap { gpa: Gpa(0) });
    // Headers with equal file offsets need no comparison.
    for header in file[usize::try_from(table).unwrap()..].chunks_exact_mut(56) {
        header[8..16].copy_from_slice(&base.to_le_bytes());
    }
    assert_eq!(parse(&file).unwrap().ram, [(Gpa(0), 0x8000)]);
}

#[test]
fn registers_come_from_qemu_notes() {
    let writer = Writer::new()
        .load(0, frames(1, 0), 0)
        .note("CORE", 1, &prstatus(true))
        .note("QEMU", 0, &qemu_note(1, 0x8005_0033, 0x6b0))
        .note("QEMU", 0, &qemu_note(1, 0x8005_0033, 0x16b0)[..432])
        .note("QEMU", 0, &qemu_note(2, 0, 0))
        .note("VMCOREINFO", 0, b"OSRELEASE=6.1\n")
        .note("VMCOREINFO", 0, b"OSRELEASE=no\n");
    let image = writer.open().unwrap();
    assert_eq!(image.vmcoreinfo(), Some(&b"OSRELEASE=6.1\n"[..]));
    let expected = VcpuRegisters {
        cpu: 0,
        rip: 0x110,
        rsp: 0x106,
        cr0: Some(0x8005_0033),
        cr3: Some(0x303),
        cr4: Some(0x6b0),
        efer: None,
        long_mode: Some(true),
        gs_base: Some(0x204),
        kernel_gs_base: Some(0x400),
        idt_base: Some(0x209),
        gdt_base: Some(0x208),
        cpl: Some(3),
    };
    assert_eq!(image.vcpus()[0], expected);
    assert_eq!(image.vcpus().len(), 2);
    assert_eq!((image.vcpus()[1].cpu, image.vcpus()[1].kernel_gs_base), (1, None));
    let modes: Vec<_> = image.vcpus().iter().map(VcpuRegisters::paging_mode).collect();
    assert_eq!(modes, [Some(PagingMode::Long4), Some(PagingMode::Long5)]);
}

#[test]
fn crash_dumps_have_few_registers() {
    for (class, machine, wide, cpl) in [(2, 62, true, 3), (1, 3, false, 0)] {
        let mut writer = Writer::new().load(0, frames(1, 0), 0).note("CORE", 1, &prstatus(wide));
        (writer.class, writer.machine) = (class, machine);
        let expected =
            VcpuRegisters { rip: 0x1001, rsp: 0x1003, cpl: Some(cpl), ..VcpuRegisters::default() };
        assert_eq!(writer.open().unwrap().vcpus(), [expected]);
    }
}

#[test]
fn bad_headers_are_named() {
    let good = Writer::new().load(0, frames(1, 0), 0).write();
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        parse(&file).unwrap_err()
    };
    let load = 64 + 64 + 56;
    assert_eq!(parse(b"KDUMP   ").unwrap_err(), ElfError::NotElf);
    assert_eq!(parse(&good[..50]).unwrap_err(), ElfError::HeaderCut);
    assert_eq!(with(5, &[2]), ElfError::Ident { class: 2, data: 2 });
    assert_eq!(with(16, &[2]), ElfError::NotCore { kind: 2 });
    assert_eq!(with(18, &[183]), ElfError::Machine { machine: 183 });
    assert_eq!(with(54, &[32]), ElfError::HeaderSize { size: 32, expected: 56 });
    assert_eq!(with(56, &[0]), ElfError::HeaderCount { count: 0, max: 1 << 20 });
    assert_eq!(with(32, &[0xff; 8]), ElfError::HeadersCut { offset: u64::MAX, count: 2 });
    let mut extended = good.clone();
    extended[40..48].copy_from_slice(&[0; 8]);
    extended[56..58].copy_from_slice(&[0xff; 2]);
    assert_eq!(parse(&extended).unwrap_err(), ElfError::NoSectionHeader { offset: 0 });
    assert_eq!(with(load, &[2]), ElfError::NoMemory);
    assert!(matches!(
        with(load + 8, &[0xfe; 8]),
        ElfError::SegmentCut { header: 1, bytes: 0x1000, .. }
    ));
    assert_eq!(
        with(load + 40, &[1, 0]),
        ElfError::FileLarger { header: 1, file: 0x1000, memory: 1 }
    );
    let none = ElfError::NoPhysicalAddresses { segments: 1 };
    assert_eq!((with(load + 24, &[0xff; 8]), with(load + 46, &[0xff])), (none.clone(), none));
    let mut sections = good.clone();
    sections[56..58].copy_from_slice(&[0, 0]);
    sections[60..62].copy_from_slice(&[9, 0]);
    assert_eq!(parse(&sections).unwrap_err(), ElfError::Sections);
}

#[test]
fn segments_without_a_physical_address_are_passed_over() {
    for (class, none) in [(1, 0xffff_ffff), (2, u64::MAX)] {
        let mut writer = Writer::new().load(none, frames(1, 9), 0).load(0, frames(2, 5), 0).load(
            none,
            frames(1, 8),
            0x1000,
        );
        writer.class = class;
        let image = writer.open().unwrap();
        assert_eq!((image.layout().frames(), image.missing_frames()), (2, 0));
        let mut page = [0; 0x1000];
        image.read(Gpa(0x1000), &mut page).unwrap();
        assert_eq!(page, [5; 0x1000]);
        let skipped = image.skipped();
        let [text] = skipped.as_slice() else { panic!("{skipped:?}") };
        assert!(text.starts_with("program header 1 is passed over"), "{text}");
        assert!(text.ends_with("(1 more like it)"), "{text}");
    }
    // Segments past the address space, or reaching past it; their bytes may lie past the end of the
    // file.
    let mut file = Writer::new()
        .load(0, frames(1, 5), 0)
        .load(GPA_LIMIT - 0x1000, frames(2, 9), 0)
        .load(GPA_LIMIT * 4, frames(1, 9), 0)
        .write();
    file.truncate(file.len() - 0x1000);
    let core = parse(&file).unwrap();
    assert_eq!((core.ram, core.skipped[0].count), (vec![(Gpa(0), 0x1000)], 2));
    let only = Writer::new().load(u64::MAX, frames(1, 9), 0).elf_error();
    assert_eq!(only, ElfError::NoPhysicalAddresses { segments: 1 });
}

#[test]
fn core_dumps_of_processes_are_named() {
    let at = |vaddrs: &[u64]| {
        let mut writer = Writer::new();
        for vaddr in vaddrs {
            writer = writer.load(0, frames(1, u8::try_from(vaddr >> 16).unwrap()), 0);
        }
        let mut file = writer.write();
        for (number, vaddr) in vaddrs.iter().enumerate() {
            // p_vaddr of the program headers, the first of which is for notes.
            let at = 64 + 64 + 56 * (number + 1) + 16;
            file[at..at + 8].copy_from_slice(&vaddr.to_le_bytes());
        }
        parse(&file)
    };
    let error = at(&[0x40_0000, 0x41_0000, 0x42_0000]).unwrap_err();
    assert_eq!(error, ElfError::Process);
    assert!(error.to_string().contains("core dump of a process"));
    // One segment at 0 is a small machine, whatever its virtual address.
    assert_eq!(at(&[0x40_0000]).unwrap().ram, [(Gpa(0), 0x1000)]);
    assert!(at(&[0x40_0000, 0x40_0000]).is_ok());
}

#[test]
fn damaged_and_unknown_notes_are_passed_over() {
    let writer = || Writer::new().load(0, frames(1, 0), 0);
    let skipped = |writer: &Writer| parse(&writer.write()).unwrap().skipped;
    let first = 64 + 64 + 2 * 56;
    let one = |first| vec![Skipped { first, count: 1 }];
    let short = writer().note("QEMU", 0, &qemu_note(1, 0, 0)[..100]);
    let vcpu = |bytes| one(SkippedPart::VcpuNote { offset: first, bytes });
    assert_eq!(skipped(&short), vcpu(100));
    for bytes in [0, 296, 335, 337, 352] {
        let odd = writer().note("CORE", 1, &vec![0; bytes]).note("CORE", 1, &prstatus(true));
        assert_eq!(skipped(&odd), vcpu(bytes));
        let text = skipped(&odd)[0].to_string();
        assert!(text.contains(&format!("{first:#x}")) && text.contains(&format!("{bytes} bytes")));
        assert_eq!(odd.open().unwrap().vcpus().len(), 1, "the one that is known is read");
    }
    let mut cut = writer().note("CORE", 1, &prstatus(true)).note("VMCOREINFO", 0, b"x");
    let second = cut.notes.len() - 12 - 12 - 4;
    cut.notes[second + 4..second + 8].copy_from_slice(&[0xff; 4]);
    let offset = first + second as u64;
    assert_eq!(skipped(&cut), one(SkippedPart::NoteCut { offset }));
    assert_eq!(cut.open().unwrap().vcpus().len(), 1, "notes before the damage are read");
    let mut padded = writer().note("VMCOREINFO", 0, b"x");
    padded.notes.extend([0; 50]);
    assert_eq!(padded.open().unwrap().vmcoreinfo(), Some(&b"x"[..]));
    let mut many = writer();
    for _ in 0..crate::registers::MAX_VCPUS + 3 {
        many = many.note("CORE", 1, &prstatus(false));
    }
    assert!(matches!(
        skipped(&many)[..],
        [Skipped { first: SkippedPart::TooManyVcpus { .. }, count: 3 }]
    ));
    assert_eq!(many.open().unwrap().vcpus().len(), crate::registers::MAX_VCPUS);
    let mut large = writer();
    large.notes = vec![0; (64 << 20) + 4];
    let max = 64 << 20;
    assert_eq!(skipped(&large), one(SkippedPart::TooManyNotes { header: 0, max }));
    let mut past = writer().note("CORE", 1, &prstatus(true)).write();
    past[64 + 64 + 8..][..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert_eq!(parse(&past).unwrap().skipped, one(SkippedPart::NotesCut { header: 0 }));
}

#[test]
fn described_device_mappings_are_no_ram() {
    let mut file = Writer::new().load(0, frames(1, 0), 0).load(0xfec0_0000, vec![], 0x1000).write();
    assert_eq!(parse(&file).unwrap().ram.len(), 2);
    let offset = 64 + 64 + 2 * 56 + 8;
    file[offset..offset + 8].copy_from_slice(&[0xff; 8]);
    assert_eq!(parse(&file).unwrap().ram, [(Gpa(0), 0x1000)]);
}

/// A dump with all kinds of parts.
fn full_dump() -> Writer {
    Writer::new()
        .load(0x1000, frames(2, 1), 0x1000)
        .load(0x2000, frames(1, 1), 0)
        .load(0x10_0000, vec![2; 0x1800], 0)
        .note("CORE", 1, &prstatus(true))
        .note("QEMU", 0, &qemu_note(1, 0x8005_0033, 0x6b0))
        .note("VMCOREINFO", 0, b"OSRELEASE=6.1\n")
}

/// Opens a file and, if it is accepted, queries every frame.
fn exercise(file: Vec<u8>) {
    let Ok(image) = MemoryImage::from_bytes(file, &Format::Elf) else { return };
    let _ = (image.vcpus().len(), image.vmcoreinfo());
    let mut held = 0;
    for (index, gfn) in image.layout().iter().take(1 << 16) {
        let mut frame = [0; 0x1000];
        let read = image.read(gfn.gpa(), &mut frame).is_ok();
        assert_eq!(read, image.holds(index));
        held += u32::from(read);
        if image.file_offset(index).is_some() {
            assert!(read);
            assert_eq!(image.slice(gfn.gpa(), 0x1000).unwrap(), frame);
        }
    }
    if image.layout().frames() <= 1 << 16 {
        assert_eq!(image.missing_frames(), image.layout().frames() - held);
    }
}

#[test]
fn every_flipped_bit_of_the_headers_is_survived() {
    for class in [1, 2] {
        let mut writer = full_dump();
        writer.class = class;
        let file = writer.write();
        let headers = file.len() - 0x4800;
        for bit in 0..headers * 8 {
            let mut flipped = file.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = parse(&flipped);
        }
    }
}

proptest! {
    #[test]
    fn damaged_dumps_are_read_or_refused(
        class in 1u8..=2,
        extended: bool,
        damage in prop::collection::vec((0usize..2000, any::<u8>()), 0..6),
        cut in prop::option::of(0usize..0x5000),
    ) {
        let mut writer = full_dump();
        (writer.class, writer.extended) = (class, extended);
        let mut file = writer.write();
        for (at, byte) in damage {
            file[at] = byte;
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        exercise(file);
    }

    #[test]
    fn random_segments_agree_with_a_byte_map(
        pieces in prop::collection::vec((0u64..24, 1u64..8, 0u64..4), 1..6),
    ) {
        // Units of 1 KiB; a byte's value depends on its address only, so overlaps agree.
        let value = |unit: u64| u8::try_from(unit * 7 % 251).unwrap();
        let mut writer = Writer::new();
        let (mut held, mut ram) = ([false; 64], [false; 64]);
        for (start, len, absent) in pieces {
            let data = (start..start + len).flat_map(|unit| vec![value(unit); 0x400]).collect();
            writer = writer.load(start * 0x400, data, absent * 0x400);
            for unit in start..start + len + absent {
                let at = usize::try_from(unit).unwrap();
                held[at] |= unit < start + len;
                ram[at / 4 * 4..][..4].fill(true);
            }
        }
        let image = writer.open().unwrap();
        for unit in 0..64u64 {
            let at = usize::try_from(unit).unwrap();
            let mut buf = [0; 0x400];
            match image.read(Gpa(unit * 0x400), &mut buf) {
                Ok(()) => prop_assert!(held[at] && buf == [value(unit); 0x400]),
                Err(MemoryError::Missing { .. }) => prop_assert!(ram[at] && !held[at]),
                Err(MemoryError::NotRam { .. }) => prop_assert!(!ram[at]),
                Err(MemoryError::Io { .. }) => prop_assert!(false),
            }
        }
        let whole = held.chunks(4).filter(|units| units.iter().all(|&h| h)).count();
        prop_assert_eq!(image.layout().frames() as usize - image.missing_frames() as usize, whole);
        let first = ram.iter().position(|&r| r).unwrap() as u64 / 4;
        prop_assert_eq!(image.layout().gfn_of(FrameIndex(0)), Some(Gfn(first)));
        exercise(writer.write());
    }
}
