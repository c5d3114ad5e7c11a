//! The served image's memory, and what is said when it is not what it was.

use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE, FrameIndex, Gpa};
use kaleidoscope_core::fingerprint::WholeImage;
use kaleidoscope_core::image::MemoryImage;
use kaleidoscope_core::memory::{
    Backing, Extent, GuestMemory, MemoryError, MemoryLayout, SnapshotId,
};
use std::io;
use std::sync::{Arc, Once};

/// Says something to the person that runs the server.
pub(super) type Tell = Box<dyn Fn(&str) + Send + Sync>;

/// An image's memory. The first read that fails is told, and clients get errors from then on.
pub(super) struct Watched {
    image: Arc<MemoryImage>,
    /// What each page is compared with before it is handed out.
    whole: Option<WholeImage>,
    tell: Tell,
    told: Once,
}

impl Watched {
    pub(super) fn new(image: Arc<MemoryImage>, whole: Option<WholeImage>, tell: Tell) -> Self {
        Self { image, whole, tell, told: Once::new() }
    }

    /// Fails if one of the whole frames that were read is not what it was. The server reads no
    /// parts of frames.
    fn compare(&self, gpa: Gpa, buf: &[u8]) -> Result<(), MemoryError> {
        let Some(whole) = &self.whole else { return Ok(()) };
        let pages = buf.as_chunks::<FRAME_BYTES>().0;
        for (page, at) in pages.iter().zip((gpa.0..).step_by(FRAME_BYTES)) {
            let frame = self.image.layout().index_of(Gpa(at).gfn());
            let is_same = frame.is_some_and(|frame| whole.is_same(frame, page));
            if !is_same || !at.is_multiple_of(FRAME_SIZE) {
                let what = "the image has other bytes there than when the server started";
                return Err(MemoryError::Io { gpa: Gpa(at), source: io::Error::other(what) });
            }
        }
        Ok(())
    }
}

impl GuestMemory for Watched {
    fn layout(&self) -> &MemoryLayout {
        self.image.layout()
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let read = self.image.read(gpa, buf).and_then(|()| self.compare(gpa, buf));
        if let Err(error @ MemoryError::Io { .. }) = &read {
            self.told.call_once(|| {
                (self.tell)(&format!("clients of the image get errors from now on: {error}"));
            });
        }
        read
    }

    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        // What is to be compared is read.
        self.image.slice(gpa, len).filter(|_| self.whole.is_none())
    }

    fn extent(&self, frame: FrameIndex) -> Extent {
        let extent = self.image.extent(frame);
        // What is to be compared is read.
        let backing = if self.whole.is_none() { extent.backing } else { Backing::Data };
        Extent { backing, ..extent }
    }

    fn release(&self, gpa: Gpa, bytes: u64) {
        self.image.release(gpa, bytes);
    }

    fn snapshot_id(&self) -> Option<SnapshotId> {
        self.image.snapshot_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_core::image::Format;
    use parking_lot::Mutex;
    use std::num::NonZeroUsize;

    #[test]
    fn changed_pages_are_not_handed_out_and_told_once() {
        let image = |bytes: Vec<u8>| MemoryImage::from_bytes(bytes, &Format::Auto).unwrap();
        let whole = WholeImage::of(&image(vec![1; 0x4000]), &[7; 32], NonZeroUsize::MIN).unwrap();
        let mut bytes = vec![1; 0x4000];
        bytes[0x2fff] = 2;
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let tell: Tell = Box::new(move |text| heard.lock().push(text.to_owned()));
        let memory = Watched::new(Arc::new(image(bytes)), Some(whole), tell);
        let mut page = [0; 0x1000];
        memory.read(Gpa(0x1000), &mut page).unwrap();
        assert!(memory.slice(Gpa(0x1000), 0x1000).is_none(), "it would not be compared");
        assert!(memory.read(Gpa(0x8000), &mut page).is_err() && told.lock().is_empty());
        for (gpa, bytes) in [(0x2000, 0x1000), (0x1000, 0x2000)] {
            let error = memory.read(Gpa(gpa), &mut vec![0; bytes]).unwrap_err();
            assert!(matches!(error, MemoryError::Io { gpa: Gpa(0x2000), .. }), "{error}");
        }
        let told = told.lock();
        assert!(
            told.len() == 1 && told[0].contains("0x2000: the image has other bytes"),
            "{told:?}"
        );
    }
}
