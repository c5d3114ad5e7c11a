//! The processes of a guest and what they map.

use super::builder::Knobs;
use super::image::Section;
use super::kernel::Kernel;
use super::space::{Mappings, Space};
use super::tasks::{Group, Tasks};
use super::vfs::File;
use crate::MockError;
use crate::paging::Rights;
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gva};

impl Kernel {
    /// Processes: programs and libraries they run, their own memory, and what they share.
    pub(super) fn populate_processes(
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
        let shared = files.iter().find(|f| f.path.as_deref() == Some("/dev/shm/ring"));
        let vdso = self.image.place(Section::Data, "raw_data", 2 * FRAME_SIZE, FRAME_SIZE)?;
        let zero = self.image.symbol("empty_zero_page")?;
        let image_gfn = |gva: Gva| Gfn(gva.0.wrapping_sub(self.image.offset()) / FRAME_SIZE);
        let (vdso, zero) = (image_gfn(vdso), image_gfn(zero));
        let mut mappings = Mappings::new();
        let mut spaces: Vec<Space> = Vec::new();
        let heap = (budget * 12 / 100 / u64::from(knobs.processes)).max(4);
        for number in 0..u64::from(knobs.processes) {
            let mut space = self.new_space(knobs.isolated)?;
            let program =
                programs.get(usize::try_from(number).unwrap_or(0) % programs.len().max(1)).copied();
            let base = 0x5500_0000_0000 + (self.rng.below(1 << 16) << 21);
            let mut top = 0x7f00_0000_0000 + (self.rng.below(1 << 16) << 21);
            let count = &mut mappings;
            if let Some(program) = program {
                let pages = program.folios.keys().max().map_or(0, |p| p + 1);
                self.map_file(&mut space, count, base, (program, 0..pages / 2), Rights::USER_TEXT)?;
                self.map_file(
                    &mut space,
                    count,
                    base + (1 << 30),
                    (program, pages / 2..pages),
                    Rights::USER_READ,
                )?;
            }
            for library in &libraries {
                let pages = library.folios.keys().max().map_or(0, |p| p + 1);
                self.map_file(
                    &mut space,
                    count,
                    top,
                    (library, 0..pages * 2 / 3),
                    Rights::USER_TEXT,
                )?;
                top += (pages * FRAME_SIZE).next_multiple_of(2 << 20);
                self.map_anonymous(&mut space, count, (top, 3), Rights::USER_WRITE)?;
                top += 2 << 20;
            }
            if let Some(ring) = shared.filter(|_| number < 3) {
                self.map_file(
                    &mut space,
                    count,
                    top + (1 << 30),
                    (ring, 0..64),
                    Rights::USER_WRITE,
                )?;
            }
            let heap_at = base + (2 << 30);
            if number == 1 {
                // A child that its parent's memory is still shared with.
                let parent: Vec<_> = spaces
                    .first()
                    .map(|s| s.anonymous.clone())
                    .unwrap_or_default()
                    .into_iter()
                    .collect();
                for (page, gfn) in
                    parent.into_iter().filter(|p| p.0 * FRAME_SIZE >= 0x5500_0000_0000).take(64)
                {
                    self.map_user(&mut space, count, (page * FRAME_SIZE, gfn), Rights::USER_READ)?;
                }
            } else {
                self.map_anonymous(&mut space, count, (heap_at, heap), Rights::USER_WRITE)?;
            }
            if number == 2 {
                let code = Rights { write: true, ..Rights::USER_TEXT };
                self.map_anonymous(&mut space, count, (top + (2 << 30), 8), code)?;
            }
            let stack = 0x7ffc_0000_0000 + self.rng.below(1 << 16) * FRAME_SIZE;
            self.map_anonymous(&mut space, count, (stack, 4), Rights::USER_WRITE)?;
            self.map_user(&mut space, count, (0x7ffe_0000_0000, vdso), Rights::USER_TEXT)?;
            self.map_user(
                &mut space,
                count,
                (0x7ffe_0000_1000, Gfn(vdso.0 + 1)),
                Rights::USER_READ,
            )?;
            self.map_user(&mut space, count, (heap_at + (1 << 30), zero), Rights::USER_READ)?;
            if number == 0 && budget > 6000 {
                self.map_huge(&mut space, heap_at + (3 << 30))?;
            }
            let name =
                program.and_then(|p| p.path.as_deref()?.rsplit('/').next()).unwrap_or("init");
            let at = (spaces.len(), space.mm);
            let leader = self.new_task(tasks, name, Group::Leader, Some(at))?;
            for thread in 0..if number == 0 { 2 } else { 0 } {
                self.new_task(
                    tasks,
                    &format!("{name}-w{thread}"),
                    Group::ThreadOf(leader),
                    Some(at),
                )?;
            }
            spaces.push(space);
        }
        for merged in 0..4u64 {
            let places = [
                (0, 0x6000_0000_0000 + merged * 0x10_0000),
                (spaces.len() - 1, 0x6100_0000_0000 + merged * FRAME_SIZE),
            ];
            self.map_merged(&mut spaces, &mut mappings, &places)?;
        }
        for (gfn, count) in mappings {
            let counted = self.frames.role(gfn).is_some_and(|r| !r.is_reserved());
            if counted {
                self.page_mapped(gfn, count)?;
            }
        }
        Ok(spaces)
    }
}
