//! Opens image files: only files that can be read at offsets.

use super::ImageError;
use rustix::fs::{OFlags, SeekFrom, seek};
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Names of memory files in the directories that VMMs and the guest lab create.
const USUAL_NAMES: [&str; 5] = ["ram.bin", "memory-ranges", "memory", "mem", "vmcore"];

/// Opens the file for reading.
pub(super) fn open(path: &Path) -> Result<File, ImageError> {
    let failed = |source| ImageError::Io { path: path.to_owned(), source };
    // Checked before opening: opening a FIFO waits for a writer, and opening a device may have side
    // effects.
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    refuse_special(path, kind)?;
    // Another file may have replaced it since the check; a FIFO must not block then.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    refuse_special(path, kind)?;
    Ok(file)
}

/// Fails for files that cannot be read at offsets.
pub(super) fn refuse_special(path: &Path, kind: FileType) -> Result<(), ImageError> {
    let (kind, advice) = if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        ("a folder", in_folder(path))
    } else if kind.is_fifo() {
        let advice = "an image is read at any offset, which a pipe cannot do: write its contents \
                      to a file first, and give that";
        ("a pipe", advice.to_owned())
    } else if kind.is_socket() {
        ("a socket", "give a file with the guest's memory".to_owned())
    } else {
        let advice = "give a file or a block device: copy its contents to a file first";
        ("a character device", advice.to_owned())
    };
    Err(ImageError::Special { path: path.to_owned(), kind, advice })
}

fn in_folder(folder: &Path) -> String {
    let known = USUAL_NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    match known {
        Some(path) => format!("give the memory file in it: {}", path.display()),
        None => "give the file in it that holds the guest's memory".to_owned(),
    }
}

/// Length of a file or block device in bytes.
pub(super) fn length(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        // The metadata of a block device has no length. The file position is not used otherwise.
        return Ok(seek(file, SeekFrom::End(0))?);
    }
    Ok(metadata.len())
}
