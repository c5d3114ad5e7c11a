//! Files that are not regular files.

use super::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::{fs, io};

fn message(path: &Path) -> String {
    let error = MemoryImage::open(path, &Format::Auto).unwrap_err();
    assert!(matches!(error, ImageError::Special { .. }), "{error}");
    error.to_string()
}

#[test]
fn pipes_sockets_folders_and_devices_are_named() {
    let folder = tempfile::tempdir().unwrap();
    // Opening a FIFO without a writer blocks.
    let fifo = folder.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let text = message(&fifo);
    assert!(text.starts_with(fifo.to_str().unwrap()) && text.contains("is a pipe"), "{text}");
    assert!(text.contains("write its contents to a file first"), "{text}");
    let (reader, _writer) = io::pipe().unwrap();
    let unnamed = format!("/proc/self/fd/{}", reader.as_raw_fd());
    assert!(message(Path::new(&unnamed)).contains("is a pipe"));

    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(message(&socket).contains("is a socket"));
    assert!(message(Path::new("/dev/null")).contains("is a character device"));

    let text = message(folder.path());
    assert!(text.contains("is a folder: give the file in it"), "{text}");
    fs::write(folder.path().join("ram.bin"), [0; 4096]).unwrap();
    let text = message(folder.path());
    assert!(text.ends_with(folder.path().join("ram.bin").to_str().unwrap()), "{text}");
}

#[test]
fn a_file_through_links_is_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("ram.bin"), folder.path().join("link"));
    fs::write(&file, self_describing_bytes(2)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let image = MemoryImage::open(&link, &Format::Auto).unwrap();
    assert_eq!(frame_number_at(&image, 0x1000), 1);
}

/// Needs a readable block device, which usually requires root.
#[test]
fn a_block_device_has_the_length_of_its_device() {
    let Ok(devices) = fs::read_dir("/sys/class/block") else { return };
    for device in devices.flatten() {
        let path = Path::new("/dev").join(device.file_name());
        let sectors = fs::read_to_string(device.path().join("size")).unwrap();
        let expected = sectors.trim().parse::<u64>().unwrap() * 512;
        if File::open(&path).is_err() || expected == 0 {
            continue;
        }
        let raw = Format::Raw(RawLayout::Contiguous);
        let bytes = match MemoryImage::open(&path, &raw) {
            Ok(image) => image.layout().bytes(),
            Err(ImageError::LayoutNeeded { bytes } | ImageError::NotFrames { bytes, .. }) => bytes,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        assert_eq!(bytes, expected, "{}", path.display());
        return;
    }
}
