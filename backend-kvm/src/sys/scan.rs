//! Which pages of a private mapping have memory of their own, and which of them were written since the last look.
//!
//! The kernel keeps track of writes by itself (asynchronous write protection, Linux 6.7): no fault waits for us.

#![expect(unsafe_code, reason = "an ioctl that writes to a buffer of ours")]

use super::{Mapping, Userfault};
use linux_raw_sys::general::{
    PAGE_IS_FILE, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WRITTEN,
    PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING, UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED,
    UFFDIO_REGISTER_MODE_WP, page_region, pm_scan_arg,
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

/// Which pages to look for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Written {
    /// All with memory of their own; from here on their writes are tracked.
    Ever,
    /// Those among them that were written, or got memory of their own, since.
    Since,
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
        userfault.register(0..mapping.len(), UFFDIO_REGISTER_MODE_WP)?;
        Ok(Self { userfault, mapping, pagemap: pagemap()? })
    }

    /// Runs of pages, as ranges of bytes in the mapping.
    pub(crate) fn runs(&self, written: Written) -> Result<Vec<Range<usize>>, Errno> {
        let (flags, written) = match written {
            Written::Ever => (PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, 0),
            Written::Since => (PM_SCAN_CHECK_WPASYNC, PAGE_IS_WRITTEN),
        };
        scan(&self.pagemap, &self.mapping, flags, written)
    }
}

/// The pages of a mapping that are in memory of its own, as the kernel has it: ranges of bytes in it.
///
/// # Errors
/// [`Errno::NOTTY`] on a kernel before 6.7.
pub(crate) fn own_pages(mapping: &Mapping) -> Result<Vec<Range<usize>>, Errno> {
    scan(&pagemap()?, mapping, 0, 0)
}

fn pagemap() -> Result<File, Errno> {
    File::open("/proc/self/pagemap")
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Runs of pages with memory of the mapping's own that have all of `written`.
fn scan(
    pagemap: &File,
    mapping: &Mapping,
    flags: u32,
    written: u32,
) -> Result<Vec<Range<usize>>, Errno> {
    let own = u64::from(PAGE_IS_PRESENT | PAGE_IS_SWAPPED);
    let base = mapping.address();
    let end = base + mapping.len() as u64;
    let mut found = Vec::new();
    let mut start = base;
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
            // Memory of the mapping's own is neither the file's nor the one page of zeros that all mappings share.
            category_inverted: u64::from(PAGE_IS_FILE | PAGE_IS_PFNZERO),
            category_mask: u64::from(PAGE_IS_FILE | PAGE_IS_PFNZERO | written),
            category_anyof_mask: own,
            // Only what all pages of a run have in common is asked for, so that runs are long.
            return_mask: 0,
        };
        // SAFETY: the type is the call's.
        let call = unsafe { Updater::<SCAN, _>::new(&mut request) };
        // SAFETY: the call writes to `regions`, no more than its length, and looks at pages of this process.
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
        let _ = self.userfault.unregister(0..self.mapping.len());
    }
}
