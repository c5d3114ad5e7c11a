//! Memory that holds pages of another kernel although none runs or ran there: a nested guest, a
//! saved machine image in the page cache, a kernel file, a loaded crash kernel.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use kaleidoscope_core::addr::{FRAME_BYTES, Gfn};
use kaleidoscope_core::color::FrameKind;
use kaleidoscope_core::coloring::{ColoringError, ColoringOptions, color};
use kaleidoscope_core::guest_os::IntrospectErrorKind;
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::registers::VcpuRegisters;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest, Role};

type Page = [u8; FRAME_BYTES];

fn page(guest: &MockGuest, gfn: Gfn) -> Page {
    let mut page = [0; FRAME_BYTES];
    guest.memory.read(gfn.gpa(), &mut page).unwrap();
    page
}

fn frames(guest: &MockGuest, is_wanted: impl Fn(Role) -> bool) -> Vec<Gfn> {
    let layout = guest.truth.layout();
    let frames = layout.iter().map(|(_, gfn)| gfn);
    frames.filter(|gfn| guest.truth.role(*gfn).is_some_and(&is_wanted)).collect()
}

fn is_image(role: Role) -> bool {
    matches!(role, Role::KernelText | Role::KernelRodata | Role::KernelData)
}

/// Where a decoy is placed: memory whose contents say nothing about its use. The first page of a
/// file may be an ELF header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DecoyPlace {
    /// Memory of a process, as of a nested guest's VMM.
    Process,
    /// The page cache, as of a saved machine image or a kernel file.
    Cache,
    /// Memory reserved at boot, as for a crash kernel.
    Reserved,
}

impl DecoyPlace {
    fn holds(self, role: Role) -> bool {
        match self {
            Self::Process => matches!(role, Role::Anonymous { .. }),
            Self::Cache => matches!(role, Role::Cache { index: 1.., .. }),
            Self::Reserved => matches!(role, Role::Reserved),
        }
    }
}

/// Copies pages one after another while there is room; returns how many.
fn copy_pages(
    running: &mut MockGuest,
    place: DecoyPlace,
    pages: impl IntoIterator<Item = Page>,
) -> usize {
    let targets = frames(running, |role| place.holds(role));
    let mut copied = 0;
    for (gfn, page) in targets.into_iter().zip(pages) {
        running.memory.write(gfn.gpa(), &page).unwrap();
        copied += 1;
    }
    copied
}

/// Copies each page to its own address if the decoy may lie there, so that the other kernel's page
/// tables stay valid.
fn copy_in_place(running: &mut MockGuest, place: DecoyPlace, other: &MockGuest) -> usize {
    let mut copied = 0;
    for gfn in frames(running, |role| place.holds(role)) {
        if other.truth.layout().index_of(gfn).is_some() {
            running.memory.write(gfn.gpa(), &page(other, gfn)).unwrap();
            copied += 1;
        }
    }
    copied
}

/// Whether the coloring is right; panics unless it is right or an error that reports two kernels.
fn is_right(guest: &MockGuest, registers: &[VcpuRegisters], name: &str) -> bool {
    let options = ColoringOptions::default().registers(registers.to_vec());
    match color(&guest.memory, &options) {
        Ok(coloring) => {
            assert_eq!(coloring.map.kernel().release, guest.truth.kernel.release, "{name}");
            for (index, gfn, frame) in coloring.map.iter() {
                let is_known = frame.kind != FrameKind::Unknown;
                let truth = guest.truth.kind(index);
                assert!(!is_known || frame.kind == truth, "{name}: {gfn} {frame:?}, {truth:?}");
            }
            true
        }
        Err(ColoringError::Introspect(error)) if error.kind() == IntrospectErrorKind::Ambiguous => {
            false
        }
        Err(error) => panic!("{name}: {error}"),
    }
}

fn guest(style: KernelStyle, seed: u64) -> MockGuest {
    // Enough room for the decoy.
    let guest = GuestBuilder::new(style).ram_bytes(192 << 20).processes(6).files(40);
    guest.seed(seed).build().unwrap()
}

/// The expected result of coloring without registers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// The decoy's page tables lead nowhere, so only one kernel is found.
    Right,
    /// Every page of the decoy lies at the address that it had in its own machine, which neither a
    /// hypervisor nor a file system arranges. The two kernels may look alike: an error that names
    /// both is as good as the right coloring.
    RightOrAmbiguous,
}

/// Places a decoy in guests of each style, and colors them with and without registers.
fn try_all(name: &str, expect: Expect, decoy: impl Fn(&mut MockGuest, &MockGuest) -> usize) {
    for (seed, style) in (1..).zip(KernelStyle::ALL) {
        for (other_seed, other_style) in (40..).zip(KernelStyle::ALL) {
            let other = GuestBuilder::new(other_style).seed(other_seed).build().unwrap();
            let mut running = guest(style, seed);
            let copied = decoy(&mut running, &other);
            assert!(copied > 16, "{name}: {copied} pages are no decoy");
            let name = format!("{name}: {other_style:?} in {style:?}, {copied} pages");
            assert!(is_right(&running, &running.registers, &name), "{name}: with registers");
            let is_right = is_right(&running, &[], &name);
            let may_be_ambiguous = expect == Expect::RightOrAmbiguous;
            assert!(is_right || may_be_ambiguous, "{name}: without registers");
        }
    }
}

/// A nested guest's memory belongs to its process, whatever it contains.
#[test]
fn a_nested_guest_is_a_process() {
    try_all("nested guest", Expect::Right, |running, other| {
        let pages = frames(other, |_| true).into_iter().map(|gfn| page(other, gfn));
        let pages: Vec<Page> = pages.collect();
        copy_pages(running, DecoyPlace::Process, pages)
    });
    try_all("nested guest in place", Expect::RightOrAmbiguous, |running, other| {
        copy_in_place(running, DecoyPlace::Process, other)
    });
}

/// A machine image in the page cache is a file.
#[test]
fn a_saved_image_is_a_file() {
    try_all("saved image", Expect::Right, |running, other| {
        let used = |role| !matches!(role, Role::Free { .. } | Role::PerCpuFree { .. });
        let pages: Vec<Page> =
            frames(other, used).into_iter().map(|gfn| page(other, gfn)).collect();
        copy_pages(running, DecoyPlace::Cache, pages)
    });
    try_all("saved image in place", Expect::RightOrAmbiguous, |running, other| {
        copy_in_place(running, DecoyPlace::Cache, other)
    });
}

/// A kernel file, of another or of the running kernel, says nothing about the running kernel.
#[test]
fn the_file_of_a_kernel_is_a_file() {
    try_all("file of another kernel", Expect::Right, |running, other| {
        let pages: Vec<Page> =
            frames(other, is_image).into_iter().map(|gfn| page(other, gfn)).collect();
        copy_pages(running, DecoyPlace::Cache, pages)
    });
    try_all("file of the running kernel", Expect::Right, |running, _| {
        let pages: Vec<Page> =
            frames(running, is_image).into_iter().map(|gfn| page(running, gfn)).collect();
        copy_pages(running, DecoyPlace::Cache, pages)
    });
}

/// A loaded crash kernel: its image, and a copy of the VMCOREINFO note for the case that the
/// running kernel's is damaged.
#[test]
fn a_crash_kernel_that_waits_does_not_run() {
    try_all("waiting crash kernel", Expect::Right, |running, other| {
        let starts = |page: &Page| page.starts_with(b"OSRELEASE=");
        let notes: Vec<Page> = frames(running, |_| true)
            .into_iter()
            .map(|gfn| page(running, gfn))
            .filter(starts)
            .collect();
        assert!(!notes.is_empty());
        let image = frames(other, is_image).into_iter().map(|gfn| page(other, gfn));
        let pages: Vec<Page> = notes.into_iter().chain(image).collect();
        copy_pages(running, DecoyPlace::Reserved, pages)
    });
}
