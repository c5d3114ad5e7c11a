//! Memory in several files: RAM, DIMMs, virtio-mem devices.
//!
//! The image that was opened reads its own file; each further file is a separate image.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Format, ImageError, MemoryImage, RawLayout};
use crate::addr::{FRAME_SIZE, Gpa};
use crate::memory::{
    Backing, Extent, ExtentTable, GuestMemory, MemoryError, MemoryLayout, extents,
};

/// Further files of an image.
#[derive(Debug)]
pub(super) struct Parts {
    /// The RAM of the file that was opened.
    own: MemoryLayout,
    images: Vec<MemoryImage>,
}

impl MemoryImage {
    /// Opens the further files that the layout names.
    pub(super) fn with_parts(mut self, format: &Format) -> Result<Self, ImageError> {
        let Format::Raw(RawLayout::File(file)) = format else { return Ok(self) };
        let mut images = Vec::new();
        for (path, layout) in file.files() {
            // This layout does not name further files.
            images.push(Self::open(path, &Format::Raw(RawLayout::File(layout)))?);
        }
        if images.is_empty() {
            return Ok(self);
        }
        let all = images.iter().chain([&self]).flat_map(|image| image.layout.regions());
        let ram = all.map(|r| (r.start.gpa(), u64::from(r.frames).saturating_mul(FRAME_SIZE)));
        let mut ram: Vec<(Gpa, u64)> = ram.collect();
        ram.sort_unstable();
        let layout = MemoryLayout::new(&ram)?;
        let mut known: Vec<Extent> =
            images.iter().chain([&self]).flat_map(|image| image.known_in(&layout)).collect();
        known.sort_unstable_by_key(|extent| extent.frames.start);
        self.extents = ExtentTable::new(&layout, known);
        let own = std::mem::replace(&mut self.layout, layout);
        self.parts = Some(Box::new(Parts { own, images }));
        Ok(self)
    }

    /// The extents of this image that are not data, in frame indices of a layout that contains all
    /// of its frames.
    fn known_in(&self, layout: &MemoryLayout) -> Vec<Extent> {
        let all = extents(self, 0..self.layout.frames());
        let known = all.filter(|extent| extent.backing != Backing::Data);
        let moved = known.flat_map(|Extent { frames, backing }| {
            let runs = self.layout.parts_of(frames);
            let runs = runs.flat_map(|run| layout.parts(run.start, run.frames.into()));
            runs.map(move |run| {
                let first = run.first_index.0;
                Extent { frames: first..first.saturating_add(run.frames), backing }
            })
        });
        moved.collect()
    }
}

impl Parts {
    /// The part that contains `gpa`.
    fn part_at(&self, gpa: Gpa) -> Option<&MemoryImage> {
        self.images.iter().find(|image| image.layout.index_of(gpa.gfn()).is_some())
    }

    /// Whether a part holds all bytes of the frame at `gpa`.
    pub(super) fn holds(&self, gpa: Gpa) -> bool {
        let part = self.part_at(gpa);
        part.is_some_and(|part| part.layout.index_of(gpa.gfn()).is_some_and(|i| part.holds(i)))
    }

    /// Number of frames that the parts hold.
    pub(super) fn held_frames(&self) -> u32 {
        let held =
            |image: &MemoryImage| image.layout.frames().saturating_sub(image.missing_frames());
        self.images.iter().map(held).fold(0, u32::saturating_add)
    }

    /// Fails if the file of a part has changed since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), ImageError> {
        self.images.iter().try_for_each(MemoryImage::check_unchanged)
    }

    pub(super) fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        self.part_at(gpa)?.slice(gpa, len)
    }

    /// Fills `buf` with the bytes at `gpa`. A region of RAM may span several files.
    pub(super) fn read(
        &self,
        main: &MemoryImage,
        mut gpa: Gpa,
        buf: &mut [u8],
    ) -> Result<(), MemoryError> {
        let len = buf.len();
        let (_, left) = main.layout.span_at(gpa).ok_or(MemoryError::NotRam { gpa, len })?;
        if len as u64 > left {
            return Err(MemoryError::NotRam { gpa, len });
        }
        let mut rest = buf;
        while !rest.is_empty() {
            let part = self.part_at(gpa);
            let span = part.map_or(&self.own, |part| &part.layout).span_at(gpa);
            let len = rest.len();
            let (_, left) = span.ok_or(MemoryError::NotRam { gpa, len })?;
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(len);
            let (now, later) = rest.split_at_mut(now);
            match part {
                Some(part) => part.read(gpa, now)?,
                None => main.read_own(gpa, now)?,
            }
            gpa = Gpa(gpa.0.saturating_add(now.len() as u64));
            rest = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::FrameIndex;
    use crate::image::LayoutFile;
    use std::path::Path;

    /// A directory with four frames of RAM and two DIMMs, each frame filled with a different
    /// number.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, fills: &[u8]| {
            let bytes: Vec<u8> = fills.iter().flat_map(|&fill| [fill; 4096]).collect();
            std::fs::write(folder.path().join(name), bytes).unwrap();
        };
        file("ram.bin", &[1, 2, 3, 4]);
        file("dimm0", &[10, 11, 12]);
        file("dimm1", &[20]);
        let layout = "0x0 0x0 0x2000\n0x2000 0x100000000 0x2000\n\
            0x1000 0x2000 0x2000 dimm0\n0x0 0x200000000 0x1000 dimm0\n\
            0x0 0x300000000 0x1000 dimm1\n";
        std::fs::write(folder.path().join("layout.txt"), layout).unwrap();
        folder
    }

    fn open(folder: &Path) -> Result<MemoryImage, ImageError> {
        let layout = LayoutFile::open(&folder.join("layout.txt")).unwrap();
        MemoryImage::open(folder.join("ram.bin"), &Format::Raw(RawLayout::File(layout)))
    }

    #[test]
    fn several_files_are_one_memory() {
        let folder = folder();
        let image = open(folder.path()).unwrap();
        let fills: Vec<u8> = image
            .layout()
            .iter()
            .map(|(_, gfn)| {
                let mut byte = [0];
                image.read(gfn.gpa(), &mut byte).unwrap();
                byte[0]
            })
            .collect();
        assert_eq!(fills, [1, 2, 11, 12, 3, 4, 10, 20]);
        assert_eq!(image.missing_frames(), 0);
        assert!((0..8).map(FrameIndex).all(|index| image.holds(index)));
        assert!(!image.holds(FrameIndex(8)));
        let offsets: Vec<_> = (0..8).map(|i| image.file_offset(FrameIndex(i))).collect();
        assert_eq!(offsets[..3], [Some(0), Some(0x1000), None]);
        // The RAM and the DIMM that continues it are one region, and one read covers both.
        assert_eq!(image.layout().regions().len(), 4);
        let mut both = [0; 0x2000];
        image.read(Gpa(0x1800), &mut both).unwrap();
        assert_eq!((both[0x7ff], both[0x800], both[0x17ff], both[0x1800]), (2, 11, 11, 12));
        let (mut two, mut beyond) = ([0; 2], [0; 0x2001]);
        assert!(matches!(image.read(Gpa(0x3fff), &mut two), Err(MemoryError::NotRam { .. })));
        assert!(image.read(Gpa(0x2000), &mut beyond).is_err());
        assert!(image.slice(Gpa(0x1fff), 2).is_none());
    }

    #[test]
    fn a_file_that_is_not_there_or_short_is_named() {
        let folder = folder();
        std::fs::write(folder.path().join("dimm0"), [0; 0x2000]).unwrap();
        let short = open(folder.path()).unwrap_err().to_string();
        assert!(short.contains("line 3"), "{short}");
        std::fs::remove_file(folder.path().join("dimm0")).unwrap();
        let missing = open(folder.path()).unwrap_err().to_string();
        assert!(missing.contains("dimm0"), "{missing}");
    }
}
