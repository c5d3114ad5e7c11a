//! The guest's extra disks.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "the guest's folder is renamed when it is whole")
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::lab::command::{MKFS_XFS, MKSQUASHFS};
use crate::lab::error::{Error, Result};

/// Size of the swap disk, in pages.
const SWAP_PAGES: u32 = 256 << 8;
/// Smallest file system that `mkfs.xfs` makes, in bytes.
const XFS_SIZE: u64 = 320 << 20;
const PAGE_SIZE: u64 = 4096;

/// Makes a sparse file of `size` bytes.
///
/// # Errors
/// If it cannot be created.
pub(crate) fn empty(path: &Path, size: u64) -> Result<File> {
    let file = File::create(path).map_err(Error::io("create", path))?;
    file.set_len(size).map_err(Error::io("size", path))?;
    Ok(file)
}

/// Makes an empty swap area (mkswap(8), version 1). The first page has the version and the last
/// page's number at byte 1024, and the signature in the last ten bytes.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn swap(path: &Path) -> Result<()> {
    const VERSION: u32 = 1;
    const SIGNATURE: &[u8] = b"SWAPSPACE2";
    let file = empty(path, u64::from(SWAP_PAGES) * PAGE_SIZE)?;
    let header = [VERSION.to_le_bytes(), (SWAP_PAGES - 1).to_le_bytes()].concat();
    file.write_all_at(&header, 1024).map_err(Error::io("write", path))?;
    let end = PAGE_SIZE - SIGNATURE.len() as u64;
    file.write_all_at(SIGNATURE, end).map_err(Error::io("write", path))
}

/// Makes an empty xfs.
///
/// # Errors
/// If mkfs.xfs is missing or fails.
pub(crate) fn xfs(path: &Path) -> Result<()> {
    empty(path, XFS_SIZE)?;
    MKFS_XFS.run(MKFS_XFS.command().args(["-q", "-f"]).arg(path)).map(drop)
}

/// Makes a squashfs of `folder`.
///
/// # Errors
/// If mksquashfs is missing or fails.
pub(crate) fn squashfs(path: &Path, folder: &Path) -> Result<()> {
    MKSQUASHFS
        .run(MKSQUASHFS.command().args([folder, path]).args([
            "-noappend",
            "-no-progress",
            "-all-root",
            "-comp",
            "gzip",
        ]))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_area_has_its_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("swap");
        swap(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 256 << 20);
        assert_eq!(&bytes[4086..4096], b"SWAPSPACE2");
        assert_eq!(bytes[1024..1032], [1, 0, 0, 0, 0xff, 0xff, 0, 0]);
    }
}
