//! Records first touches: the first read of each page of the RAM file is one.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::Instant;

/// Size of a frame in bytes.
pub(crate) const FRAME: u64 = 4096;

/// The first touch of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touch {
    /// When the read arrived.
    pub(crate) at: Instant,
    /// The frame's number in the RAM file.
    pub(crate) page: u64,
    /// The thread that touched it.
    pub(crate) thread: u32,
}

/// The touches so far, in order.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// Whether each page of the file was read.
    seen: Vec<bool>,
    touches: Vec<Touch>,
    /// Reads of pages that had been read before.
    again: u64,
    /// The first unexpected read.
    error: Option<String>,
}

impl Recorder {
    /// A recorder for a RAM file with `pages` pages.
    pub(crate) fn new(pages: usize) -> Self {
        Self { seen: vec![false; pages], touches: Vec::new(), again: 0, error: None }
    }

    /// Records a read of `size` bytes at `offset`, which should be one frame.
    pub(crate) fn read(&mut self, offset: u64, size: u64, thread: u32, at: Instant) {
        if size != FRAME || !offset.is_multiple_of(FRAME) {
            self.error.get_or_insert_with(|| {
                format!(
                    "a read of {size} bytes at offset {offset:#x} is not one frame: readahead is \
                     not off, so that touches cannot be told apart"
                )
            });
            return;
        }
        let page = offset / FRAME;
        let seen = usize::try_from(page).ok().and_then(|page| self.seen.get_mut(page));
        match seen {
            None => {
                let pages = self.seen.len();
                self.error.get_or_insert_with(|| {
                    format!("a read at offset {offset:#x} is beyond the RAM's {pages} frames")
                });
            }
            // When memory is short, the host may drop clean pages and read them again.
            Some(true) => self.again = self.again.saturating_add(1),
            Some(seen) => {
                *seen = true;
                self.touches.push(Touch { at, page, thread });
            }
        }
    }

    /// The touches so far.
    ///
    /// # Errors
    /// A description of the first read that was not of a single frame of RAM.
    pub(crate) fn touches(&self) -> Result<&[Touch], &str> {
        match &self.error {
            Some(what) => Err(what),
            None => Ok(&self.touches),
        }
    }

    /// How many reads were of pages that had been read before.
    pub(crate) fn again(&self) -> u64 {
        self.again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_frame_counts_once() {
        let mut recorder = Recorder::new(4);
        for (page, thread) in [(2, 7), (0, 8), (2, 9), (3, 7)] {
            recorder.read(page * FRAME, FRAME, thread, Instant::now());
        }
        let touches = recorder.touches().unwrap();
        let got: Vec<_> = touches.iter().map(|touch| (touch.page, touch.thread)).collect();
        assert_eq!(got, [(2, 7), (0, 8), (3, 7)]);
        assert!(touches.is_sorted_by_key(|touch| touch.at));
        assert_eq!(recorder.again(), 1);
    }

    #[test]
    fn reads_of_other_than_one_frame_are_named() {
        for (offset, size, word) in [
            (0, 8192, "readahead"),
            (2048, FRAME, "0x800"),
            (4 * FRAME, FRAME, "beyond"),
            (u64::MAX - 4095, FRAME, "beyond"),
        ] {
            let mut recorder = Recorder::new(4);
            recorder.read(offset, size, 1, Instant::now());
            recorder.read(0, FRAME, 1, Instant::now());
            let what = recorder.touches().unwrap_err();
            assert!(what.contains(word), "{what}");
        }
    }
}
