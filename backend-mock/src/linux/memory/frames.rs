//! Ownership of frames while a guest is being built: every frame is claimed exactly once.

use crate::linux::truth::Role;
use crate::paging::FrameSource;
use crate::{MockError, Rng};
use kaleidoscope_core::addr::{FrameIndex, Gfn};
use kaleidoscope_core::memory::MemoryLayout;

/// The guest's frames and their roles.
#[derive(Clone, Debug)]
pub(in crate::linux) struct Frames {
    layout: MemoryLayout,
    roles: Vec<Option<Role>>,
    rng: Rng,
    cursor: u32,
    left: u32,
    /// Frames that boot-time allocations avoid: the image, including the part that is freed later.
    pub(in crate::linux) kept_at_boot: std::ops::Range<u64>,
}

impl Frames {
    pub(in crate::linux) fn new(layout: MemoryLayout, rng: Rng) -> Self {
        let left = layout.frames();
        Self { roles: vec![None; left as usize], layout, rng, cursor: 0, left, kept_at_boot: 0..0 }
    }

    pub(in crate::linux) fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Number of unclaimed frames.
    pub(in crate::linux) fn left(&self) -> u32 {
        self.left
    }

    pub(in crate::linux) fn role(&self, gfn: Gfn) -> Option<Role> {
        self.layout.index_of(gfn).and_then(|i| self.roles.get(i.as_usize()).copied()).flatten()
    }

    /// Whether the frame is unclaimed RAM.
    pub(in crate::linux) fn is_left(&self, gfn: Gfn) -> bool {
        let slot = self.layout.index_of(gfn).and_then(|i| self.roles.get(i.as_usize()));
        slot.is_some_and(Option::is_none)
    }

    /// Claims one frame.
    pub(in crate::linux) fn claim(&mut self, gfn: Gfn, role: Role) -> Result<(), MockError> {
        let index = self.layout.index_of(gfn).ok_or(MockError::Taken { gfn })?;
        let slot = self.roles.get_mut(index.as_usize()).filter(|s| s.is_none());
        *slot.ok_or(MockError::Taken { gfn })? = Some(role);
        self.left -= 1;
        Ok(())
    }

    fn is_block_left(&self, gfn: Gfn, order: u32) -> bool {
        (0..1 << order).all(|i| self.is_left(Gfn(gfn.0 + i)))
    }

    /// Claims an aligned block of `2^order` frames; `role` gives the role of the frame at each
    /// offset. Usually the next block, sometimes one far away, so that memory looks fragmented.
    pub(in crate::linux) fn take(
        &mut self,
        order: u32,
        role: impl Fn(u64) -> Role,
    ) -> Result<Gfn, MockError> {
        if self.rng.one_in(24) {
            self.cursor = u32::try_from(self.rng.below(self.layout.frames().into())).unwrap_or(0);
        }
        let frames = self.layout.frames();
        let step = 1u32 << order;
        let mut tried = 0;
        let mut at = self.cursor;
        while tried < frames {
            let gfn = self.layout.gfn_of(FrameIndex(at % frames)).unwrap_or_default();
            // Advance to the next aligned frame, or past a block that is not free.
            let to_aligned =
                u32::try_from(gfn.0.next_multiple_of(step.into()) - gfn.0).unwrap_or(0);
            if to_aligned == 0 && self.is_block_left(gfn, order) {
                for i in 0..u64::from(step) {
                    self.claim(Gfn(gfn.0 + i), role(i))?;
                }
                self.cursor = (at + step) % frames;
                return Ok(gfn);
            }
            let skip = if to_aligned == 0 { step } else { to_aligned };
            tried = tried.saturating_add(skip);
            at = (at % frames).saturating_add(skip);
        }
        Err(MockError::OutOfFrames { order })
    }

    /// Claims `count` contiguous frames like a boot-time allocation: from the top of memory
    /// downward.
    pub(in crate::linux) fn take_at_boot(
        &mut self,
        count: u64,
        align: u64,
        role: Role,
    ) -> Result<Gfn, MockError> {
        for region in self.layout.regions().iter().rev() {
            let end = region.start.0 + u64::from(region.frames);
            let Some(mut at) = end.checked_sub(count).map(|a| a / align * align) else { continue };
            while at >= region.start.0 {
                let is_open = |g: u64| self.is_left(Gfn(g)) && !self.kept_at_boot.contains(&g);
                if (at..at + count).all(is_open) {
                    (at..at + count).try_for_each(|g| self.claim(Gfn(g), role))?;
                    return Ok(Gfn(at));
                }
                let Some(next) = at.checked_sub(align) else { break };
                at = next;
            }
        }
        Err(MockError::OutOfFrames { order: count.next_power_of_two().trailing_zeros() })
    }

    /// Every frame's role. Unclaimed frames are free; their blocks must have been recorded before.
    pub(in crate::linux) fn into_roles(self) -> Vec<Role> {
        self.roles.into_iter().map(|r| r.unwrap_or(Role::Free { order: 0 })).collect()
    }
}

/// Source of page-table frames at boot.
pub(in crate::linux) struct BootTables<'a>(pub(in crate::linux) &'a mut Frames);

impl FrameSource for BootTables<'_> {
    fn table_frame(&mut self, level: u8) -> Option<Gfn> {
        self.0.take_at_boot(1, 1, Role::BootTable { level }).ok()
    }
}

/// Source of page-table frames from the page allocator.
pub(in crate::linux) struct LateTables<'a>(pub(in crate::linux) &'a mut Frames);

impl FrameSource for LateTables<'_> {
    fn table_frame(&mut self, level: u8) -> Option<Gfn> {
        self.0.take(0, |_| Role::PageTable { level }).ok()
    }
}

/// Source of page-table frames in the image, in the order in which mapping the image needs them.
pub(in crate::linux) struct ImageTables(pub(in crate::linux) Vec<Gfn>);

impl FrameSource for ImageTables {
    fn table_frame(&mut self, _level: u8) -> Option<Gfn> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_core::addr::Gpa;

    #[test]
    fn blocks_are_aligned_and_every_frame_goes_once() {
        let layout =
            MemoryLayout::new(&[(Gpa(0x3000), 0x3d000), (Gpa(0x10_0000), 0x21000)]).unwrap();
        let mut frames = Frames::new(layout, Rng::new(5));
        let role = Role::KernelAlloc;
        let top = frames.take_at_boot(2, 2, role).unwrap();
        assert_eq!(top, Gfn(0x11e));
        for order in [3, 0, 2, 1, 3] {
            let gfn = frames.take(order, |_| role).unwrap();
            assert_eq!(gfn.0 % (1 << order), 0);
        }
        assert!(matches!(frames.claim(top, role), Err(MockError::Taken { .. })));
        assert!(matches!(
            frames.take(5, |_| role),
            Ok(_) | Err(MockError::OutOfFrames { order: 5 })
        ));
        while frames.take(0, |_| role).is_ok() {}
        assert_eq!(frames.left(), 0);
        assert!(frames.layout().clone().iter().all(|(_, gfn)| frames.role(gfn) == Some(role)));
    }
}
