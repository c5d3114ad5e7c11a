//! Files that change while they are open, and files that cannot.

use super::super::file::ImageFile;
use super::*;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::{self, FileTimes, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use tempfile::TempDir;

const FRAMES: u64 = 64;

/// An open raw image in its own directory.
fn image() -> (TempDir, PathBuf, MemoryImage) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ram.bin");
    fs::write(&path, self_describing_bytes(FRAMES)).unwrap();
    let image = MemoryImage::open(&path, &Format::Auto).unwrap();
    (folder, path, image)
}

fn writer(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// The errors of reading a page and of reading a small field.
fn errors(image: &MemoryImage, frame: u64) -> [String; 2] {
    let gpa = Gpa(frame * FRAME_SIZE);
    [image.read(gpa, &mut [0; 4096]), image.read(gpa, &mut [0; 8])].map(|read| {
        let error = read.unwrap_err();
        assert!(matches!(error, MemoryError::Io { gpa: at, .. } if at == gpa));
        error.to_string()
    })
}

#[test]
fn a_cut_file_is_an_error_and_ends_no_process() {
    let (_folder, path, image) = image();
    writer(&path).set_len(20 * FRAME_SIZE).unwrap();
    // A frame that was cut off, and one that was not: its bytes may have changed as well.
    for frame in [40, 3] {
        for error in errors(&image, frame) {
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains("it had 0x40000 bytes and has 0x14000"), "{error}");
        }
    }
    assert!(matches!(image.check_unchanged(), Err(ImageError::Changed(_))));
    // Extended to its old length, the file has other bytes.
    writer(&path).set_len(FRAMES * FRAME_SIZE).unwrap();
    assert!(image.check_unchanged().is_err());
    errors(&image, 3);
}

#[test]
fn a_write_is_an_error_wherever_it_is() {
    let (_folder, path, image) = image();
    assert_eq!(frame_number_at(&image, 0x5000), 5);
    image.check_unchanged().unwrap();
    writer(&path).write_at(&[1], 50 * FRAME_SIZE + 7).unwrap();
    // The frame that was written to, and one that was never read.
    for frame in [50, 20] {
        for error in errors(&image, frame) {
            assert!(error.contains("it was written to"), "{error}");
        }
    }
    // A field that was read before comes from its cached block, unchanged.
    assert_eq!(frame_number_at(&image, 0x5000), 5);
}

#[test]
fn a_write_right_after_opening_is_noticed() {
    // Writes in the same clock tick as the previous one do not change the time stamps.
    for _ in 0..20 {
        let (_folder, path, image) = image();
        writer(&path).write_at(&[1], 7).unwrap();
        errors(&image, 0);
    }
}

#[test]
fn time_stamps_that_are_put_back_hide_nothing() {
    let (_folder, path, image) = image();
    let was = fs::metadata(&path).unwrap().modified().unwrap();
    let file = writer(&path);
    file.write_at(&[1], 7).unwrap();
    file.set_times(FileTimes::new().set_modified(was)).unwrap();
    for error in errors(&image, 0) {
        assert!(error.contains("put back"), "{error}");
    }
}

#[test]
fn names_owners_and_rights_may_change() {
    let (folder, path, image) = image();
    let other = folder.path().join("other.bin");
    fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
    image.check_unchanged().unwrap();
    fs::rename(&path, &other).unwrap();
    image.check_unchanged().unwrap();
    fs::hard_link(&other, &path).unwrap();
    image.check_unchanged().unwrap();
    fs::remove_file(&path).unwrap();
    image.check_unchanged().unwrap();
    fs::remove_file(&other).unwrap();
    assert_eq!(frame_number_at(&image, 0x5000), 5);
    let mut page = [0; 4096];
    image.read(Gpa(0x7000), &mut page).unwrap();
    assert_eq!(page, self_describing_bytes(8)[0x7000..]);
}

/// A memfd with an image.
fn memfd(seals: SealFlags) -> File {
    let fd = memfd_create("ram", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.write_all_at(&self_describing_bytes(FRAMES), 0).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

#[test]
fn only_immutable_files_are_borrowed() {
    let borrowed = |file: File| {
        let image = MemoryImage::from_file(file, "memfd", &Format::Auto).unwrap();
        assert_eq!(frame_number_at(&image, 0x5000), 5);
        image.slice(Gpa(0x5000), 8).map(<[u8]>::to_vec)
    };
    let both = SealFlags::WRITE | SealFlags::SHRINK;
    assert_eq!(borrowed(memfd(both)), Some(vec![5, 0, 0, 0, 0, 0, 0, 0]));
    for seals in [
        SealFlags::empty(),
        SealFlags::SHRINK,
        SealFlags::WRITE,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE,
    ] {
        assert_eq!(borrowed(memfd(seals)), None, "{seals:?}");
    }
    let (_folder, path, image) = image();
    assert_eq!(image.slice(Gpa(0x5000), 8), None);
    fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
    let read_only = MemoryImage::open(&path, &Format::Auto).unwrap();
    assert_eq!(read_only.slice(Gpa(0x5000), 8), None, "the owner can write to it all the same");
}

#[test]
fn a_memfd_is_opened_by_its_name_in_proc() {
    use std::os::fd::AsRawFd;
    let file = memfd(SealFlags::WRITE | SealFlags::SHRINK);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let image = MemoryImage::open(&path, &Format::Auto).unwrap();
    assert!(image.slice(Gpa(0x5000), 8).is_some());
}

/// A file with these bytes.
fn bytes_file(bytes: &[u8]) -> ImageFile {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    ImageFile::new(file, PathBuf::from("bytes")).unwrap()
}

#[test]
fn reads_end_at_the_end() {
    let file = bytes_file(&self_describing_bytes(1)[..1001]);
    let mut byte = [0];
    file.read(1000, &mut byte).unwrap();
    assert!(file.read(1001, &mut byte).is_err());
    assert!(file.read(u64::MAX, &mut byte).is_err());
    assert!(file.read(u64::MAX - 1, &mut [0; 8]).is_err());
    assert!(file.read(0, &mut [0; 5000]).is_err());
    file.read(u64::MAX, &mut []).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn reads_of_all_sizes_give_the_files_bytes(
        bytes in 1usize..70_000,
        reads in prop::collection::vec((0usize..70_000, 1usize..20_000), 1..30),
    ) {
        let bytes = &self_describing_bytes(18)[..bytes];
        let file = bytes_file(bytes);
        for (at, len) in reads {
            let mut buf = vec![0; len];
            let read = file.read(at as u64, &mut buf);
            match bytes.get(at..at + len) {
                Some(expected) => {
                    prop_assert!(read.is_ok());
                    prop_assert_eq!(&buf, expected);
                }
                None => prop_assert!(read.is_err()),
            }
        }
    }
}
