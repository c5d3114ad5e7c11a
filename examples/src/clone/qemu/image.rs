//! The memory image: written page by page, copied, or made of the same blocks as the original.

use crate::failure::Failure;
use crate::outfile::Output;
use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE};
use kaleidoscope_core::memory::{Page, ZERO_PAGE, is_zero};
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Pages that are written at once.
const RUN: usize = 256 * FRAME_BYTES;

/// A memory image that is being made.
pub(super) struct Image {
    output: Output,
    bytes: u64,
    /// A bit for each page that was written: zeros need not be written elsewhere.
    written: Vec<u64>,
    /// Bytes that are not written yet, and where they begin.
    run: Vec<u8>,
    start: u64,
    /// Pages that were written, counted each time.
    pub(super) pages: u64,
}

impl Image {
    /// An image of `bytes` bytes, all zero.
    pub(super) fn create(path: &Path, bytes: u64) -> Result<Self, Failure> {
        let output = Output::memory(path, bytes)?;
        let words = usize::try_from(bytes / FRAME_SIZE / 64 + 1).map_err(Failure::new)?;
        let (written, run) = (vec![0; words], Vec::with_capacity(RUN));
        Ok(Self { output, bytes, written, run, start: 0, pages: 0 })
    }

    /// Writes a page, `None` for zeros. The last one of several counts.
    pub(super) fn page(&mut self, offset: u64, page: Option<&Page>) -> io::Result<()> {
        let end = offset.checked_add(FRAME_SIZE).filter(|end| *end <= self.bytes);
        if end.is_none() || !offset.is_multiple_of(FRAME_SIZE) {
            return Err(io::Error::new(ErrorKind::InvalidData, "a page outside of the RAM"));
        }
        let number = offset / FRAME_SIZE;
        let word = usize::try_from(number / 64).map_err(io::Error::other)?;
        let word = self.written.get_mut(word).ok_or(ErrorKind::InvalidData)?;
        let bit = 1 << (number % 64);
        if page.is_none() && *word & bit == 0 {
            return Ok(());
        }
        *word |= bit;
        self.pages += 1;
        if self.start + self.run.len() as u64 != offset || self.run.len() >= RUN {
            self.flush()?;
            self.start = offset;
        }
        self.run.extend(page.unwrap_or(&ZERO_PAGE));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let file = self.output.file().ok_or(ErrorKind::NotFound)?;
        file.write_all_at(&self.run, self.start)?;
        self.run.clear();
        Ok(())
    }

    /// Makes the image of the same blocks as `from`, which copies nothing. `false` if the file
    /// system cannot.
    pub(super) fn reflink(&mut self, from: &File) -> io::Result<bool> {
        let file = self.output.file().ok_or(ErrorKind::NotFound)?;
        match ioctl_ficlone(file, from) {
            Ok(()) => {
                // The original may be longer.
                file.set_len(self.bytes)?;
                Ok(true)
            }
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::TXTBSY) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Copies all pages of `from` that are not zero.
    pub(super) fn copy(&mut self, from: &File) -> io::Result<()> {
        let mut buffer = vec![0; RUN];
        let mut offset = 0;
        while offset < self.bytes {
            // Holes are zero. File systems report data in their own block size.
            offset = match seek(from, SeekFrom::Data(offset)) {
                Ok(data) => data - data % FRAME_SIZE,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let left = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(RUN);
            let Some(part) = buffer.get_mut(..left.min(RUN)).filter(|part| !part.is_empty()) else {
                break;
            };
            from.read_exact_at(part, offset)?;
            for (page, at) in
                part.as_chunks::<FRAME_BYTES>().0.iter().zip((0..).step_by(FRAME_BYTES))
            {
                self.page(offset + at, (!is_zero(page)).then_some(page))?;
            }
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Gives the image its name.
    pub(super) fn keep(mut self) -> Result<(), Failure> {
        let path = self.output.path().to_owned();
        self.flush().map_err(|error| Failure::unwritable(&path, &error))?;
        self.output.keep()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_last_page_counts_and_zeros_are_holes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ram");
        let mut image = Image::create(&path, 1 << 20).unwrap();
        let page = |byte| [byte; FRAME_BYTES];
        for (offset, byte) in [(0, 1), (4096, 2), (0x8000, 3), (0, 4), (0x8000, 0), (0xf000, 0)] {
            let content = page(byte);
            image.page(offset, (byte != 0).then_some(&content)).unwrap();
        }
        assert!(image.page(1 << 20, None).is_err() && image.page(5, None).is_err());
        image.keep().unwrap();
        let mut expected = vec![0; 1 << 20];
        expected[..4096].fill(4);
        expected[4096..8192].fill(2);
        assert!(std::fs::read(&path).unwrap() == expected);
        assert!(path.metadata().unwrap().blocks() * 512 < 1 << 19);

        let copy = folder.path().join("copy");
        let mut image = Image::create(&copy, 1 << 20).unwrap();
        image.copy(&File::open(&path).unwrap()).unwrap();
        assert_eq!(image.pages, 2);
        image.keep().unwrap();
        assert!(std::fs::read(&copy).unwrap() == expected);
    }
}
