//! The file that a guest's memory is pulled into.

use super::source::Frames;
use crate::failure::Failure;
use crate::outfile::Output;
use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE, FrameIndex, Gpa};
use kaleidoscope_core::clone::ports::{InstallError, Installed, PageInstaller};
use kaleidoscope_core::memory::{GuestMemory, MemoryError, MemoryLayout, Page};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A guest's memory in a file, in frame-index order. It is sparse at first, and has its name when
/// it is whole.
pub(super) struct Copy {
    output: Output,
    /// Why a page could not be written.
    failed: Mutex<Option<io::Error>>,
    layout: MemoryLayout,
    /// Frames that are as they should be.
    placed: Frames,
    /// Frames that the image does not hold.
    unavailable: Frames,
    /// Holes of the image, which are holes of the file, too.
    holes: Vec<Range<u32>>,
}

impl Copy {
    /// A file of holes. Those of the image are as they should be, and need not be fetched.
    pub(super) fn create(
        path: &Path,
        layout: &MemoryLayout,
        holes: &[Range<u32>],
    ) -> Result<Self, Failure> {
        let placed = Frames::none_of(layout.frames());
        holes.iter().cloned().flatten().for_each(|frame| placed.add(FrameIndex(frame)));
        Ok(Self {
            output: Output::memory(path, layout.bytes())?,
            failed: Mutex::new(None),
            layout: layout.clone(),
            placed,
            unavailable: Frames::none_of(layout.frames()),
            holes: holes.to_vec(),
        })
    }

    fn file(&self) -> io::Result<&File> {
        self.output.file().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Why the file could not be written, if that is so.
    pub(super) fn failure(&self) -> Option<Failure> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map(|error| Failure::unwritable(self.output.path(), &error))
    }

    /// The image does not hold the frame, so the file does not, either.
    pub(super) fn lack(&self, frame: FrameIndex) {
        self.unavailable.add(frame);
    }

    /// How many frames the image does not hold.
    pub(super) fn unavailable(&self) -> u32 {
        self.unavailable.count()
    }

    /// The first of these frames that is neither there nor unavailable.
    pub(super) fn first_gap(
        &self,
        mut frames: impl Iterator<Item = FrameIndex>,
    ) -> Option<FrameIndex> {
        frames.find(|frame| !self.placed.has(*frame) && !self.unavailable.has(*frame))
    }

    /// Gives the file its name, and has the disk keep it. No other thread uses it any more.
    pub(super) fn keep(self: Arc<Self>) -> Result<(), Failure> {
        let copy = Arc::into_inner(self);
        let copy =
            copy.ok_or_else(|| Failure::new("internal error: the file is still being written"))?;
        copy.output.keep()
    }
}

fn offset(frame: FrameIndex) -> u64 {
    u64::from(frame.0) * FRAME_SIZE
}

/// The engine places each frame once, and no vCPU runs here: no thread waits, and nothing changes
/// meanwhile.
impl PageInstaller for Copy {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        let written = self.file().and_then(|file| file.write_all_at(page, offset(frame)));
        if let Err(error) = written {
            let what = format!("frame {frame} of {}: {error}", self.output.path().display());
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return Err(InstallError::new(what));
        }
        self.placed.add(frame);
        Ok(Installed::Installed)
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        // What was never written is a hole, which reads as zeros.
        self.placed.add(frame);
        Ok(Installed::Installed)
    }

    fn zero_run(&self, frames: Range<u32>) -> Result<u32, InstallError> {
        frames.clone().for_each(|frame| self.placed.add(FrameIndex(frame)));
        Ok(frames.end.saturating_sub(frames.start))
    }

    fn wake(&self, _frame: FrameIndex) -> Result<(), InstallError> {
        Ok(())
    }

    fn shown(&self) -> Vec<Range<u32>> {
        self.holes.clone()
    }
}

/// The memory as it is in the file, to be compared with the image.
impl GuestMemory for Copy {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        let not_ram = || MemoryError::NotRam { gpa, len };
        let (_, left) = self.layout.span_at(gpa).ok_or_else(not_ram)?;
        let first = self.layout.index_of(gpa.gfn()).ok_or_else(not_ram)?;
        if u64::try_from(len).map_or(true, |len| len > left) {
            return Err(not_ram());
        }
        let frames = (gpa.offset_in_frame() + len).div_ceil(FRAME_BYTES);
        if (first.0..).take(frames).any(|frame| self.unavailable.has(FrameIndex(frame))) {
            return Err(MemoryError::Missing { gpa, len });
        }
        let at = offset(first) + gpa.0 % FRAME_SIZE;
        let read = self.file().and_then(|file| file.read_exact_at(buf, at));
        read.map_err(|source| MemoryError::Io { gpa, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_its_name_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy.bin");
        let layout = MemoryLayout::new(&[(Gpa(0), 0x2000), (Gpa(0x8000), 0x2000)]).unwrap();
        let names = || std::fs::read_dir(folder.path()).unwrap().count();
        drop(Copy::create(&path, &layout, &[]).unwrap());
        assert_eq!(names(), 0, "given up, it is gone");

        let copy = Arc::new(Copy::create(&path, &layout, &[]).unwrap());
        let all = || (0..4).map(FrameIndex);
        assert_eq!(copy.first_gap(all()), Some(FrameIndex(0)));
        assert_eq!(copy.zero_run(0..2).unwrap(), 2);
        assert_eq!(copy.install(FrameIndex(2), &[7; FRAME_BYTES]).unwrap(), Installed::Installed);
        assert_eq!(copy.first_gap(all()), Some(FrameIndex(3)));
        assert!(!path.exists());
        let mut buf = [0; 8];
        copy.read(Gpa(0x8ffc), &mut buf).unwrap();
        assert_eq!(buf, [7, 7, 7, 7, 0, 0, 0, 0]);
        assert!(matches!(copy.read(Gpa(0x2000), &mut buf), Err(MemoryError::NotRam { .. })));
        assert!(matches!(copy.read(Gpa(0x1ffc), &mut buf), Err(MemoryError::NotRam { .. })));
        copy.lack(FrameIndex(3));
        assert_eq!((copy.first_gap(all()), copy.unavailable()), (None, 1));
        assert!(matches!(copy.read(Gpa(0x8ffc), &mut buf), Err(MemoryError::Missing { .. })));
        copy.keep().unwrap();
        let expected = [vec![0; 0x2000], vec![7; 0x1000], vec![0; 0x1000]].concat();
        assert_eq!(std::fs::read(&path).unwrap(), expected);
        assert_eq!(names(), 1);
    }

    #[test]
    fn holes_of_the_image_are_holes_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let layout = MemoryLayout::contiguous(0x4000).unwrap();
        let holes = [0..1, 2..4];
        let copy = Copy::create(&folder.path().join("copy.bin"), &layout, &holes).unwrap();
        assert_eq!(copy.shown(), holes);
        let gap = |copy: &Copy| copy.first_gap((0..4).map(FrameIndex));
        assert_eq!(gap(&copy), Some(FrameIndex(1)));
        assert_eq!(copy.install(FrameIndex(1), &[3; FRAME_BYTES]).unwrap(), Installed::Installed);
        assert_eq!(gap(&copy), None);
    }
}
