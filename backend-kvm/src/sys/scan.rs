//! Which pages of a private mapping have memory of their own, and which of them were written since
//! the last look.
//!
//! The kernel keeps track of writes by itself (asynchronous write protection, Linux 6.7): no fault
//! waits for us.

#![expect(unsafe_code, reason = "an ioctl that writes to a buffer of ours")]

use super::{Mapping, Userfault};
use kaleidoscope_core::addr::FRAME_SIZE;
use linux_raw_sys::general::{
    PAGE_IS_FILE, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WRITTEN,
    PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING, UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED,
    page_region, pm_scan_arg,
};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// `PAGEMAP_SCAN` of linux/fs.h.
const SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);

/// Runs that one call returns.
const RUNS: usize = 1024;

/// Bytes whose writers wait while they are protected.
const PIECE: usize = 4 << 20;

/// Which pages of a mapping a scan is for, of those that are there.
#[derive(Clone, Copy, Debug)]
struct Which {
    /// What they are (`PAGE_IS_...`).
    are: u32,
    /// What they are not.
    are_not: u32,
}

impl Which {
    const ALL: Self = Self { are: 0, are_not: 0 };
    const WRITTEN: Self = Self { are: PAGE_IS_WRITTEN, are_not: 0 };
    /// In memory of the mapping's own: neither the file's, nor the one page of zeros that all
    /// mappings share. Looking takes ten times as long as for the others (75 ns a page here):
    /// whose a page is, is written in its own record.
    const OWN: Self = Self { are: 0, are_not: PAGE_IS_FILE | PAGE_IS_PFNZERO };
    const ZEROS: Self = Self { are: PAGE_IS_PFNZERO, are_not: 0 };
}

/// What becomes of the pages that are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Leave,
    /// The next write to each is told.
    Protect,
}

/// Tracks the writes to a private mapping. Ends on drop.
#[derive(Debug)]
pub(crate) struct Tracker {
    userfault: Userfault,
    mapping: Arc<Mapping>,
    pagemap: File,
}

impl Tracker {
    /// Starts tracking.
    ///
    /// # Errors
    /// [`Errno::INVAL`] on a kernel before 6.7.
    pub(crate) fn new(mapping: Arc<Mapping>) -> Result<Self, Errno> {
        let features = UFFD_FEATURE_WP_ASYNC
            | UFFD_FEATURE_WP_UNPOPULATED
            | UFFD_FEATURE_WP_HUGETLBFS_SHMEM
            | UFFD_FEATURE_PAGEFAULT_FLAG_WP;
        let userfault = Userfault::new(Arc::clone(&mapping), features.into())?;
        userfault.register_writes(&(0..mapping.len()))?;
        Ok(Self { userfault, mapping, pagemap: pagemap()? })
    }

    /// The pages that the mapping has of its own, as runs of bytes in it; what is written from here
    /// on is told from it.
    pub(crate) fn begin(&self) -> Result<Vec<Range<usize>>, Errno> {
        let len = self.mapping.len();
        for at in (0..len).step_by(PIECE) {
            let piece = at..at.saturating_add(PIECE).min(len);
            self.scan(piece, Which::ALL, Then::Protect)?;
        }
        self.scan(0..len, Which::OWN, Then::Leave)
    }

    /// Those among them that were written, or became its own, since this was asked last.
    pub(crate) fn written(&self) -> Result<Vec<Range<usize>>, Errno> {
        self.touched(Then::Protect)
    }

    /// The same, for the last time: later writes are not told from these.
    pub(crate) fn last_written(&self) -> Result<Vec<Range<usize>>, Errno> {
        self.touched(Then::Leave)
    }

    fn touched(&self, then: Then) -> Result<Vec<Range<usize>>, Errno> {
        let mut found = Vec::new();
        // Pages of the file that were read for the first time since are among them.
        for run in self.scan(0..self.mapping.len(), Which::WRITTEN, Then::Leave)? {
            if then == Then::Protect {
                self.scan(run.clone(), Which::WRITTEN, then)?;
            }
            found.extend(self.scan(run, Which::OWN, Then::Leave)?);
        }
        Ok(found)
    }

    fn scan(
        &self,
        range: Range<usize>,
        which: Which,
        then: Then,
    ) -> Result<Vec<Range<usize>>, Errno> {
        scan(&self.pagemap, &self.mapping, range, which, then)
    }
}

/// The pages of a mapping that are in memory of its own, as the kernel has it: ranges of bytes in
/// it.
///
/// # Errors
/// [`Errno::NOTTY`] on a kernel before 6.7.
pub(crate) fn own_pages(mapping: &Mapping) -> Result<Vec<Range<usize>>, Errno> {
    scan(&pagemap()?, mapping, 0..mapping.len(), Which::OWN, Then::Leave)
}

/// The pages of a mapping that are the one page of zeros which all mappings share, as the kernel
/// has it: ranges of bytes in it.
///
/// # Errors
/// As for [`own_pages`].
pub(crate) fn zero_pages(mapping: &Mapping) -> Result<Vec<Range<usize>>, Errno> {
    scan(&pagemap()?, mapping, 0..mapping.len(), Which::ZEROS, Then::Leave)
}

/// What the kernel says of single pages of a mapping. A scan says it of many at a time, and is the
/// slower for it.
#[derive(Debug)]
pub(crate) struct Pages<'a> {
    pagemap: File,
    mapping: &'a Mapping,
}

/// Bits of an entry of a page map (Linux `Documentation/admin-guide/mm/pagemap.rst`): the page is a
/// file's, is swapped out, is there.
const IS_FILE: u64 = 1 << 61;
const IS_SWAPPED: u64 = 1 << 62;
const IS_PRESENT: u64 = 1 << 63;

impl<'a> Pages<'a> {
    /// The pages of a mapping.
    pub(crate) fn of(mapping: &'a Mapping) -> Result<Self, Errno> {
        Ok(Self { pagemap: pagemap()?, mapping })
    }

    /// Whether the page at this offset is in memory of the mapping's own.
    pub(crate) fn is_own(&self, offset: usize) -> Result<bool, Errno> {
        let page = (self.mapping.address() + offset as u64) / FRAME_SIZE;
        let mut entry = [0; 8];
        rustix::io::pread(&self.pagemap, &mut entry, page * 8)
            .and_then(|read| if read == entry.len() { Ok(()) } else { Err(Errno::IO) })?;
        let entry = u64::from_le_bytes(entry);
        Ok(entry & (IS_PRESENT | IS_SWAPPED) != 0 && entry & IS_FILE == 0)
    }
}

fn pagemap() -> Result<File, Errno> {
    File::open("/proc/self/pagemap")
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Runs of pages in a range of bytes.
fn scan(
    pagemap: &File,
    mapping: &Mapping,
    range: Range<usize>,
    Which { are, are_not }: Which,
    then: Then,
) -> Result<Vec<Range<usize>>, Errno> {
    let flags = match then {
        Then::Leave => 0,
        Then::Protect => PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
    };
    let base = mapping.address();
    let end = base + range.end as u64;
    let mut found = Vec::new();
    let mut start = base + range.start as u64;
    let mut regions = vec![page_region { start: 0, end: 0, categories: 0 }; RUNS];
    while start < end {
        let mut request = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: flags.into(),
            start,
            end,
            walk_end: 0,
            vec: regions.as_mut_ptr().addr() as u64,
            vec_len: RUNS as u64,
            max_pages: 0,
            category_inverted: are_not.into(),
            category_mask: (are | are_not).into(),
            category_anyof_mask: (PAGE_IS_PRESENT | PAGE_IS_SWAPPED).into(),
            // Only what all pages of a run have in common is asked for, so that runs are long.
            return_mask: 0,
        };
        // SAFETY: the type is the call's.
        let call = unsafe { Updater::<SCAN, _>::new(&mut request) };
        // SAFETY: the call writes to `regions`, no more than its length, and looks at pages of this
        // process.
        unsafe { ioctl(pagemap, call) }?;
        // Regions that were not written to are empty.
        for region in regions.iter_mut() {
            if region.start >= region.end {
                break;
            }
            let from = usize::try_from(region.start - base).map_err(|_| Errno::OVERFLOW)?;
            let to = usize::try_from(region.end - base).map_err(|_| Errno::OVERFLOW)?;
            found.push(from..to);
            *region = page_region { start: 0, end: 0, categories: 0 };
        }
        if request.walk_end <= start {
            return Err(Errno::IO);
        }
        start = request.walk_end;
    }
    Ok(found)
}

impl Drop for Tracker {
    fn drop(&mut self) {
        // Closing the file descriptor would do as well.
        let _ = self.userfault.unregister(&(0..self.mapping.len()));
    }
}
