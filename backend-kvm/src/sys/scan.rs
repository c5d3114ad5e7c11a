//! Which pages of a private mapping have private memory, and which of them were written since the
//! last query.
//!
//! The kernel tracks writes by itself (asynchronous write protection, Linux 6.7): no fault waits
//! for this process.

#![expect(unsafe_code, reason = "an ioctl that writes to a buffer")]

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

/// Maximum number of runs that one call returns.
const RUNS: usize = 1024;

/// Bytes that are protected at once. Writers to them wait meanwhile.
const PIECE: usize = 4 << 20;

/// Which of the resident pages of a mapping a scan reports.
#[derive(Clone, Copy, Debug)]
struct Which {
    /// Properties that they have (`PAGE_IS_...`).
    are: u32,
    /// Properties that they do not have.
    are_not: u32,
}

impl Which {
    const ALL: Self = Self { are: 0, are_not: 0 };
    const WRITTEN: Self = Self { are: PAGE_IS_WRITTEN, are_not: 0 };
    /// In private memory: neither the file's, nor the page of zeros that all mappings share. Such a
    /// scan takes ten times as long as the others (75 ns a page here), since the kernel has to read
    /// each page's own record.
    const OWN: Self = Self { are: 0, are_not: PAGE_IS_FILE | PAGE_IS_PFNZERO };
    const ZEROS: Self = Self { are: PAGE_IS_PFNZERO, are_not: 0 };
}

/// What a scan does with the pages that it finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Leave,
    /// Write-protects them, so that the next write to each is reported.
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

    /// The pages in private memory, as runs of bytes in the mapping. Writes from now on are
    /// tracked.
    pub(crate) fn begin(&self) -> Result<Vec<Range<usize>>, Errno> {
        let len = self.mapping.len();
        for at in (0..len).step_by(PIECE) {
            let piece = at..at.saturating_add(PIECE).min(len);
            self.scan(piece, Which::ALL, Then::Protect)?;
        }
        self.scan(0..len, Which::OWN, Then::Leave)
    }

    /// The private pages that were written, or became private, since the last call.
    pub(crate) fn written(&self) -> Result<Vec<Range<usize>>, Errno> {
        self.touched(Then::Protect)
    }

    /// The same, for the last time: later writes are not told apart from these.
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

/// The pages of a mapping that are in private memory, as ranges of bytes in it.
///
/// # Errors
/// [`Errno::NOTTY`] on a kernel before 6.7.
pub(crate) fn own_pages(mapping: &Mapping) -> Result<Vec<Range<usize>>, Errno> {
    scan(&pagemap()?, mapping, 0..mapping.len(), Which::OWN, Then::Leave)
}

/// The pages of a mapping that are the page of zeros which all mappings share, as ranges of bytes
/// in it.
///
/// # Errors
/// As for [`own_pages`].
pub(crate) fn zero_pages(mapping: &Mapping) -> Result<Vec<Range<usize>>, Errno> {
    scan(&pagemap()?, mapping, 0..mapping.len(), Which::ZEROS, Then::Leave)
}

/// The page map, for queries of single pages of a mapping, which are faster than a scan.
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

    /// Whether the page at this offset is in private memory.
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
            // No property is returned, since a run ends where one of them changes.
            return_mask: 0,
        };
        // SAFETY: PAGEMAP_SCAN takes a `pm_scan_arg` (`SCAN`).
        let call = unsafe { Updater::<SCAN, _>::new(&mut request) };
        // SAFETY: the call writes to `request`, which `call` borrows, and at most `vec_len` regions
        // to `vec`: the buffer `regions` and its length, which nothing else refers to. It changes
        // no byte of the pages that it scans.
        unsafe { ioctl(pagemap, call) }?;
        // Regions that the kernel did not fill are empty.
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
        // Closing the descriptor has the same effect.
        let _ = self.userfault.unregister(&(0..self.mapping.len()));
    }
}
