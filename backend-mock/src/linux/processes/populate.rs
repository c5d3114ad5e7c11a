//! The processes of a guest and their mappings.

use crate::MockError;
use crate::linux::builder::Knobs;
use crate::linux::image::Section;
use crate::linux::kernel::Kernel;
use crate::linux::processes::space::Space;
use crate::linux::processes::tasks::{Group, Tasks};
use crate::linux::vfs::File;
use crate::paging::Rights;
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gva};

/// Bytes in a GiB.
const GIB: u64 = 1 << 30;

/// Where the vDSO and its data are mapped in processes.
const VDSO: u64 = 0x7ffe_0000_0000;

/// Memory that processes can map.
struct Mappable<'a> {
    programs: Vec<&'a File>,
    libraries: Vec<&'a File>,
    /// A memory file shared by several processes.
    shared: Option<&'a File>,
    vdso: Gfn,
    zero: Gfn,
    /// Number of anonymous pages in a process's heap.
    heap: u64,
    /// Whether there is enough memory for a transparent huge page.
    huge: bool,
}

/// Number of pages from a file's start to its last cached one.
fn length(file: &File) -> u64 {
    file.folios.keys().max().map_or(0, |p| p + 1)
}

impl Kernel {
    /// Creates processes with programs, libraries, private and shared memory.
    pub(in crate::linux) fn populate_processes(
        &mut self,
        knobs: &Knobs,
        tasks: &mut Tasks,
        files: &[File],
        budget: u64,
    ) -> Result<Vec<Space>, MockError> {
        let (programs, libraries): (Vec<&File>, Vec<&File>) = files
            .iter()
            .filter(|f| f.is_program)
            .partition(|f| f.path.as_deref().is_some_and(|p| p.starts_with("/usr/bin")));
        let vdso = self.image.place(Section::Data, "raw_data", 2 * FRAME_SIZE, FRAME_SIZE)?;
        let zero = self.image.symbol("empty_zero_page")?;
        let image_gfn = |gva: Gva| Gfn(gva.0.wrapping_sub(self.image.offset()) / FRAME_SIZE);
        let mappable = Mappable {
            programs,
            libraries,
            shared: files.iter().find(|f| f.path.as_deref() == Some("/dev/shm/ring")),
            vdso: image_gfn(vdso),
            zero: image_gfn(zero),
            heap: (budget * 12 / 100 / u64::from(knobs.processes)).max(4),
            huge: budget > 6000,
        };
        let mut spaces: Vec<Space> = Vec::new();
        for number in 0..knobs.processes as usize {
            let mut space = self.new_space(knobs.isolated)?;
            let program = mappable.programs.get(number % mappable.programs.len().max(1)).copied();
            self.fill_space(&mut space, number, program, &mappable, spaces.first())?;
            let path = program.and_then(|p| p.path.as_deref());
            let name = path.and_then(|p| p.rsplit('/').next()).unwrap_or("init");
            let at = Some((number, space.mm));
            let leader = self.new_task(tasks, name, Group::Leader, at)?;
            let threads = if number == 0 { 2 } else { 0 };
            for thread in 0..threads {
                self.new_task(tasks, &format!("{name}-w{thread}"), Group::ThreadOf(leader), at)?;
            }
            spaces.push(space);
        }
        let last = spaces.len() - 1;
        for merged in 0..4u64 {
            let in_first = 0x6000_0000_0000 + merged * 0x10_0000;
            let in_last = 0x6100_0000_0000 + merged * FRAME_SIZE;
            self.map_merged(&mut spaces, &[(0, in_first), (last, in_last)])?;
        }
        self.count_mappings(&spaces)?;
        Ok(spaces)
    }

    /// Fills one process's address space. The second process is a child of the first and shares its
    /// heap; the third has JIT-compiled code.
    fn fill_space(
        &mut self,
        space: &mut Space,
        number: usize,
        program: Option<&File>,
        mappable: &Mappable<'_>,
        first: Option<&Space>,
    ) -> Result<(), MockError> {
        let base = 0x5500_0000_0000 + (self.rng.below(1 << 16) << 21);
        let mut top = 0x7f00_0000_0000 + (self.rng.below(1 << 16) << 21);
        if let Some(program) = program {
            let (middle, end) = (length(program) / 2, length(program));
            self.map_file(space, base, (program, 0..middle), Rights::USER_TEXT)?;
            self.map_file(space, base + GIB, (program, middle..end), Rights::USER_READ)?;
        }
        for library in &mappable.libraries {
            let pages = length(library);
            self.map_file(space, top, (library, 0..pages * 2 / 3), Rights::USER_TEXT)?;
            top += (pages * FRAME_SIZE).next_multiple_of(2 << 20);
            self.map_anonymous(space, (top, 3), Rights::USER_WRITE)?;
            top += 2 << 20;
        }
        if let Some(ring) = mappable.shared.filter(|_| number < 3) {
            self.map_file(space, top + GIB, (ring, 0..64), Rights::USER_WRITE)?;
        }
        let heap = base + 2 * GIB;
        if number == 1 {
            let inherited = first.map(|s| s.anonymous.clone()).unwrap_or_default();
            for (page, gfn) in inherited.into_iter().take(64) {
                self.map_user(space, (page * FRAME_SIZE, gfn), Rights::USER_READ)?;
            }
        } else {
            self.map_anonymous(space, (heap, mappable.heap), Rights::USER_WRITE)?;
        }
        if number == 2 {
            self.map_anonymous(space, (top + 2 * GIB, 8), Rights::ALL)?;
        }
        let stack = 0x7ffc_0000_0000 + self.rng.below(1 << 16) * FRAME_SIZE;
        self.map_anonymous(space, (stack, 4), Rights::USER_WRITE)?;
        // Frames of the kernel image that processes map: the vDSO, its data, and the zero page.
        let vdso_data = Gfn(mappable.vdso.0 + 1);
        self.map_user(space, (VDSO, mappable.vdso), Rights::USER_TEXT)?;
        self.map_user(space, (VDSO + FRAME_SIZE, vdso_data), Rights::USER_READ)?;
        self.map_user(space, (heap + GIB, mappable.zero), Rights::USER_READ)?;
        if number == 0 && mappable.huge {
            self.map_huge(space, heap + 3 * GIB)?;
        }
        Ok(())
    }
}
