//! Where a guest's RAM lies in the process that runs it.

use crate::error::Error;
use crate::memory::PageSize;
use kaleidoscope_core::addr::{FRAME_SIZE, FrameIndex, Gpa};
use kaleidoscope_core::memory::MemoryLayout;
use std::ops::Range;

/// A piece of a guest's RAM in the address space of the process that opened the userfaultfd.
///
/// Addresses and lengths are in bytes, multiples of the page size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    address: u64,
    bytes: u64,
    start: Start,
}

/// Most regions of a VM. All that one message of the kernel removes is read at once, one event for
/// each region.
const MAX_REGIONS: usize = 128;

/// Which RAM a region is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    Gpa(Gpa),
    Offset(u64),
}

impl Region {
    /// `bytes` of RAM at host address `address`, which the guest sees from `gpa` on.
    #[must_use]
    pub fn at_gpa(address: u64, bytes: u64, gpa: Gpa) -> Self {
        Self { address, bytes, start: Start::Gpa(gpa) }
    }

    /// `bytes` of RAM at host address `address`, which lie in the memory file from `offset` on. The
    /// file holds all RAM in the order of guest-physical addresses, without the holes between.
    #[must_use]
    pub fn at_offset(address: u64, bytes: u64, offset: u64) -> Self {
        Self { address, bytes, start: Start::Offset(offset) }
    }

    /// Address of its first byte in the process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The frames of a guest that the region holds.
    fn frames(&self, layout: &MemoryLayout, pages: PageSize) -> Result<Range<u32>, Error> {
        let invalid = |why: String| Error::input(format!("{self}: {why}"));
        let page = pages.bytes() as u64;
        let end = self.address.checked_add(self.bytes);
        if self.bytes == 0 || end.is_none() {
            return Err(invalid("it is empty, or ends beyond the address space".into()));
        }
        if !self.address.is_multiple_of(page) || !self.bytes.is_multiple_of(page) {
            return Err(invalid(format!("it is not of whole pages of {page} bytes")));
        }
        let count = u32::try_from(self.bytes / FRAME_SIZE)
            .map_err(|_| invalid("it is larger than any guest".into()))?;
        let first = match self.start {
            Start::Gpa(gpa) if gpa.0.is_multiple_of(FRAME_SIZE) => layout.index_of(gpa.gfn()),
            Start::Offset(offset) if offset.is_multiple_of(FRAME_SIZE) => {
                u32::try_from(offset / FRAME_SIZE).ok().map(FrameIndex)
            }
            Start::Gpa(_) | Start::Offset(_) => None,
        };
        let is_ram = |first: &FrameIndex| first.0 < layout.frames();
        let first =
            first.filter(is_ram).ok_or_else(|| invalid("the guest has no RAM there".into()))?;
        let frames = first.0..first.0.saturating_add(count);
        // Of a region by guest-physical address, all must be RAM.
        let last = FrameIndex(frames.end - 1);
        let is_whole = match self.start {
            Start::Gpa(gpa) => {
                layout.gfn_of(last).is_some_and(|gfn| gfn.0 == gpa.gfn().0 + u64::from(count) - 1)
            }
            Start::Offset(_) => frames.end <= layout.frames(),
        };
        if !is_whole {
            return Err(invalid("it is larger than the guest's RAM there".into()));
        }
        if !frames.start.is_multiple_of(pages.frames()) {
            return Err(invalid(format!("its first frame does not begin a page of {page} bytes")));
        }
        Ok(frames)
    }
}

impl std::fmt::Display for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "region of {:#x} bytes at {:#x}, ", self.bytes, self.address)?;
        match self.start {
            Start::Gpa(gpa) => write!(f, "guest-physical {gpa}"),
            Start::Offset(offset) => write!(f, "offset {offset:#x}"),
        }
    }
}

/// The frames of each region, where together they are all of the guest's RAM, each frame once.
///
/// # Errors
/// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) that names a region, or the first
/// frame that is in none.
pub(crate) fn frames_of(
    regions: &[Region],
    layout: &MemoryLayout,
    pages: PageSize,
) -> Result<Vec<Range<u32>>, Error> {
    if regions.len() > MAX_REGIONS {
        return Err(Error::input(format!("{} regions, more than {MAX_REGIONS}", regions.len())));
    }
    let frames: Result<Vec<_>, _> =
        regions.iter().map(|region| region.frames(layout, pages)).collect();
    let frames = frames?;
    let mut sorted: Vec<_> = frames.iter().zip(regions).collect();
    sorted.sort_unstable_by_key(|(frames, _)| frames.start);
    let mut next = 0;
    for (frames, region) in sorted {
        if frames.start < next {
            return Err(Error::input(format!("{region}: another region has its RAM, too")));
        }
        if frames.start > next {
            break;
        }
        next = frames.end;
    }
    match layout.gfn_of(FrameIndex(next)) {
        Some(gfn) => Err(Error::input(format!("no region has the guest's RAM at {}", gfn.gpa()))),
        None => Ok(frames),
    }
}

/// Checks that regions of one process lie apart.
///
/// # Errors
/// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) that names a region.
pub(super) fn check_apart(regions: &[Region]) -> Result<(), Error> {
    let mut sorted: Vec<_> = regions.iter().collect();
    sorted.sort_unstable_by_key(|region| region.address);
    let mut end = 0;
    for region in sorted {
        if region.address < end {
            return Err(Error::input(format!("{region}: another region has its addresses, too")));
        }
        end = region.address.saturating_add(region.bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> MemoryLayout {
        MemoryLayout::new(&[(Gpa(0), 4 << 20), (Gpa(1 << 32), 2 << 20)]).unwrap()
    }

    fn frames(regions: &[Region], pages: PageSize) -> Result<Vec<Range<u32>>, String> {
        frames_of(regions, &layout(), pages).map_err(|error| error.to_string())
    }

    #[test]
    fn regions_are_frames() {
        let all = [
            Region::at_gpa(0x7000_0000, 2 << 20, Gpa(1 << 32)),
            Region::at_gpa(0x1000_0000, 4 << 20, Gpa(0)),
        ];
        assert_eq!(frames(&all, PageSize::Huge).unwrap(), [1024..1536, 0..1024]);
        let all = [Region::at_offset(0x1000, 6 << 20, 0)];
        assert_eq!(frames(&all, PageSize::Small).unwrap().first(), Some(&(0..1536)));
    }

    #[test]
    fn wrong_regions_are_named() {
        let cases = [
            (vec![Region::at_gpa(0, 8 << 20, Gpa(0))], "larger than the guest's RAM"),
            (vec![Region::at_gpa(0, 4096, Gpa(5 << 20))], "no RAM there"),
            (vec![Region::at_offset(0, 4096, 1 << 40)], "no RAM there"),
            (vec![Region::at_offset(0, 4096, 17)], "no RAM there"),
            (vec![Region::at_offset(0, 8 << 20, 0)], "larger than the guest's RAM"),
            (vec![Region::at_offset(1, 4096, 0)], "whole pages"),
            (vec![Region::at_offset(0, 0, 0)], "empty"),
            (vec![Region::at_offset(u64::MAX - 4095, 8192, 0)], "beyond the address space"),
            (vec![Region::at_offset(0, 4096, 0)], "no region has the guest's RAM at 0x1000"),
            (
                vec![Region::at_offset(0, 6 << 20, 0), Region::at_offset(1 << 30, 4096, 4096)],
                "another region has its RAM",
            ),
        ];
        for (regions, expected) in cases {
            let error = frames(&regions, PageSize::Small).unwrap_err();
            assert!(error.contains(expected), "{regions:?}: {error}");
        }
        let many = vec![Region::at_offset(0, 4096, 0); MAX_REGIONS + 1];
        assert!(frames(&many, PageSize::Small).unwrap_err().contains("more than 128"));
        let both = [Region::at_offset(0x2000, 4096, 0), Region::at_offset(0x1000, 8192, 4096)];
        let error = check_apart(&both).unwrap_err().to_string();
        assert!(error.contains("0x2000, offset 0x0: another region has its addresses"), "{error}");
        check_apart(&[both[0], Region::at_offset(0x1000, 4096, 4096)]).unwrap();
        let error = frames(&[Region::at_offset(0, 4096, 0)], PageSize::Huge).unwrap_err();
        assert!(error.contains("2097152"), "{error}");
    }
}
