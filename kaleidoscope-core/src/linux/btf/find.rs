//! Finds the kernel's BTF in its image.

use super::{Btf, BtfError, MAGIC, Sections};

/// Minimum size of BTF for which a `struct page` ends the search, in bytes: distribution kernels
/// have 3 to 6 MB, the BTF of programs a few KiB.
const KERNEL_BYTES: usize = 1 << 20;

/// Maximum number of candidates of either size to parse, since hostile memory may be full of
/// headers.
const MAX_PARSED: usize = 8;

pub(super) fn find(image: &[u8]) -> Result<Btf<'_>, BtfError> {
    let mut large = 0_usize;
    let mut small: Vec<(usize, &[u8])> = Vec::new();
    for at in memchr::memmem::find_iter(image, &MAGIC) {
        let Some(bytes) = image.get(at..) else { continue };
        let Ok(sections) = Sections::read(bytes) else { continue };
        if sections.len() < KERNEL_BYTES {
            small.push((sections.len(), bytes));
            if small.len() > 8 * MAX_PARSED {
                keep_largest(&mut small);
            }
        } else if large < MAX_PARSED {
            large = large.saturating_add(1);
            if let Some(btf) = of_kernel(bytes) {
                return Ok(btf);
            }
        }
    }
    keep_largest(&mut small);
    let candidates = large.saturating_add(small.len());
    let found = small.into_iter().find_map(|(_, bytes)| of_kernel(bytes));
    found.ok_or(BtfError::NotFound { image_bytes: image.len(), candidates })
}

/// Keeps the [`MAX_PARSED`] largest, largest first.
fn keep_largest(candidates: &mut Vec<(usize, &[u8])>) {
    candidates.sort_by_key(|&(length, _)| std::cmp::Reverse(length));
    candidates.truncate(MAX_PARSED);
}

fn of_kernel(bytes: &[u8]) -> Option<Btf<'_>> {
    Btf::parse(bytes).ok().filter(|btf| btf.struct_named("page").is_some())
}
