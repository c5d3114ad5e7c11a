//! Memory that holds another kernel's pages although no other kernel runs or ran there: a nested guest, a saved image of a
//! machine in the page cache, a kernel's own file, a crash kernel that is loaded and waits.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use kaleidoscope_core::addr::{FRAME_BYTES, Gfn};
use kaleidoscope_core::color::FrameKind;
use kaleidoscope_core::coloring::{ColoringError, Options, color};
use kaleidoscope_core::linux::{LinuxError, LocateError};
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

/// Where a decoy can lie: memory whose bytes say nothing about what it is. The first page of a file may be an ELF header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Home {
    /// A process's memory, as that of a nested guest.
    Process,
    /// The page cache, as that of a saved image or of a kernel's file.
    Cache,
    /// What was set aside at boot, as for a crash kernel.
    Reserved,
}

impl Home {
    fn holds(self, role: Role) -> bool {
        match self {
            Self::Process => matches!(role, Role::Anonymous { .. }),
            Self::Cache => matches!(role, Role::Cache { index: 1.., .. }),
            Self::Reserved => matches!(role, Role::Reserved),
        }
    }
}

/// Copies pages one after another, as far as there is room, and says how many.
fn lay(running: &mut MockGuest, home: Home, pages: impl IntoIterator<Item = Page>) -> usize {
    let homes = frames(running, |role| home.holds(role));
    let mut laid = 0;
    for (gfn, page) in homes.into_iter().zip(pages) {
        running.memory.write(gfn.gpa(), &page).unwrap();
        laid += 1;
    }
    laid
}

/// Copies each page to its own address where that is a home: the other kernel's tables lead where they did.
fn lay_in_place(running: &mut MockGuest, home: Home, other: &MockGuest) -> usize {
    let mut laid = 0;
    for gfn in frames(running, |role| home.holds(role)) {
        if other.truth.layout().index_of(gfn).is_some() {
            running.memory.write(gfn.gpa(), &page(other, gfn)).unwrap();
            laid += 1;
        }
    }
    laid
}

/// The coloring is right, or an error that names two kernels. True if it is right.
fn is_right(guest: &MockGuest, registers: &[VcpuRegisters], name: &str) -> bool {
    let options = Options { registers: registers.to_vec(), ..Options::default() };
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
        Err(ColoringError::Linux(LinuxError::Locate(LocateError::Ambiguous { .. }))) => false,
        Err(error) => panic!("{name}: {error}"),
    }
}

fn guest(style: KernelStyle, seed: u64) -> MockGuest {
    // Room for what is laid there.
    let guest = GuestBuilder::new(style).ram_bytes(192 << 20).processes(6).files(40);
    guest.seed(seed).build().unwrap()
}

/// What is asked of a coloring without registers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    /// The decoy's tables lead nowhere, so there is one kernel.
    IsRight,
    /// Every page of the decoy has the address that it had in its own machine, which no hypervisor and no file system does:
    /// two kernels can then look alike. They may be told apart, or named in an error.
    MayBeATie,
}

/// Lays a decoy into guests of each style, and colors them with and without registers.
fn try_all(name: &str, without: Without, decoy: impl Fn(&mut MockGuest, &MockGuest) -> usize) {
    for (seed, style) in (1..).zip(KernelStyle::ALL) {
        for (other_seed, other_style) in (40..).zip(KernelStyle::ALL) {
            let other = GuestBuilder::new(other_style).seed(other_seed).build().unwrap();
            let mut running = guest(style, seed);
            let laid = decoy(&mut running, &other);
            assert!(laid > 16, "{name}: {laid} pages of a decoy are none");
            let name = format!("{name}: {other_style:?} in {style:?}, {laid} pages");
            assert!(is_right(&running, &running.registers, &name), "{name}: with registers");
            let is_right = is_right(&running, &[], &name);
            assert!(is_right || without == Without::MayBeATie, "{name}: without registers");
        }
    }
}

/// A nested guest's memory is its process's, whatever it holds.
#[test]
fn a_nested_guest_is_a_process() {
    try_all("nested guest", Without::IsRight, |running, other| {
        let pages = frames(other, |_| true).into_iter().map(|gfn| page(other, gfn));
        let pages: Vec<Page> = pages.collect();
        lay(running, Home::Process, pages)
    });
    try_all("nested guest in place", Without::MayBeATie, |running, other| {
        lay_in_place(running, Home::Process, other)
    });
}

/// An image of a machine that lies in the page cache is a file.
#[test]
fn a_saved_image_is_a_file() {
    try_all("saved image", Without::IsRight, |running, other| {
        let used = |role| !matches!(role, Role::Free { .. } | Role::PerCpuFree { .. });
        let pages: Vec<Page> =
            frames(other, used).into_iter().map(|gfn| page(other, gfn)).collect();
        lay(running, Home::Cache, pages)
    });
    try_all("saved image in place", Without::MayBeATie, |running, other| {
        lay_in_place(running, Home::Cache, other)
    });
}

/// The file of a kernel, another one's or the running one's, says nothing about who runs.
#[test]
fn the_file_of_a_kernel_is_a_file() {
    try_all("file of another kernel", Without::IsRight, |running, other| {
        let pages: Vec<Page> =
            frames(other, is_image).into_iter().map(|gfn| page(other, gfn)).collect();
        lay(running, Home::Cache, pages)
    });
    try_all("file of the running kernel", Without::IsRight, |running, _| {
        let pages: Vec<Page> =
            frames(running, is_image).into_iter().map(|gfn| page(running, gfn)).collect();
        lay(running, Home::Cache, pages)
    });
}

/// A crash kernel that is loaded and waits: its image, and a copy of the note for the day that the running kernel's is damaged.
#[test]
fn a_crash_kernel_that_waits_does_not_run() {
    try_all("waiting crash kernel", Without::IsRight, |running, other| {
        let starts = |page: &Page| page.starts_with(b"OSRELEASE=");
        let notes: Vec<Page> = frames(running, |_| true)
            .into_iter()
            .map(|gfn| page(running, gfn))
            .filter(starts)
            .collect();
        assert!(!notes.is_empty());
        let image = frames(other, is_image).into_iter().map(|gfn| page(other, gfn));
        let pages: Vec<Page> = notes.into_iter().chain(image).collect();
        lay(running, Home::Reserved, pages)
    });
}
