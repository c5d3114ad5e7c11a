//! Tests of the public interface of images.

use super::*;
use crate::addr::Gfn;
use std::io::Write;
use std::str::FromStr;

mod changing;
mod special;

/// Bytes that identify their offset in the file: each frame starts with its number, the rest is a
/// function of the offset.
fn self_describing_bytes(frames: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..frames * FRAME_SIZE).map(|i| i.wrapping_mul(0x9e37).to_le_bytes()[1]).collect();
    for (number, frame) in (0u64..).zip(bytes.chunks_exact_mut(4096)) {
        frame[..8].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn frame_number_at(image: &MemoryImage, gpa: u64) -> u64 {
    let mut buf = [0; 8];
    image.read(Gpa(gpa), &mut buf).unwrap();
    u64::from_le_bytes(buf)
}

fn with_layout(frames: u64, text: &str) -> Result<MemoryImage, ImageError> {
    let layout = RawLayout::File(LayoutFile::from_str(text).unwrap());
    MemoryImage::from_bytes(self_describing_bytes(frames), &Format::Raw(layout))
}

#[test]
fn a_raw_file_is_read_from_zero() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&self_describing_bytes(3)).unwrap();
    let image = MemoryImage::open(file.path(), &Format::Auto).unwrap();
    assert_eq!(image.layout().frames(), 3);
    assert_eq!(image.missing_frames(), 0);
    assert_eq!(frame_number_at(&image, 0x2000), 2);
    assert_eq!(image.file_offset(FrameIndex(2)), Some(0x2000));
    assert!(image.holds(FrameIndex(2)) && !image.holds(FrameIndex(3)));
    assert_eq!(image.slice(Gpa(0xffe), 4), None, "the file may change");
    assert!(matches!(image.read(Gpa(0x2fff), &mut [0; 2]), Err(MemoryError::NotRam { .. })));
    assert!(matches!(image.read(Gpa(u64::MAX), &mut [0; 2]), Err(MemoryError::NotRam { .. })));
}

#[test]
fn a_layout_moves_pieces_and_joins_touching_ones() {
    let text = "0x3000 0x0 0x1000\n0x0 0x1000 0x2000\n0x5000 0x100000000 0x1000\n";
    let image = with_layout(6, text).unwrap();
    assert_eq!(image.layout().regions().len(), 2);
    assert_eq!(image.segments().len(), 3);
    assert_eq!([0, 0x1000, 0x2000, 1 << 32].map(|gpa| frame_number_at(&image, gpa)), [3, 0, 1, 5]);
    assert_eq!(image.file_offset(FrameIndex(3)), Some(0x5000));
    // A read across the boundary of two pieces of the file copies from both.
    let mut buf = [0; 16];
    assert_eq!(image.slice(Gpa(0xff8), 16), None);
    image.read(Gpa(0xff8), &mut buf).unwrap();
    let file = self_describing_bytes(6);
    assert_eq!(buf, [&file[0x3ff8..0x4000], &file[..8]].concat()[..]);
    assert_eq!(image.layout().index_of(Gfn(0x10_0000)), Some(FrameIndex(3)));
}

#[test]
fn a_layout_past_the_end_is_refused() {
    let error = with_layout(2, "0x0 0x0 0x1000\n0x1000 0x1000 0x2000\n").unwrap_err();
    assert!(
        error.to_string().contains("layout line 2: the range ends at file offset 0x3000"),
        "{error}"
    );
}

#[test]
fn odd_lengths_are_named() {
    let odd = MemoryImage::from_bytes(vec![0; 0x1801], &Format::Auto).unwrap_err();
    assert!(matches!(odd, ImageError::NotFrames { bytes: 0x1801, over: 0x801 }));
    assert!(matches!(MemoryImage::from_bytes(vec![], &Format::Auto), Err(ImageError::Empty)));
    let missing = MemoryImage::open("/nonexistent/ram", &Format::Auto).unwrap_err();
    assert!(missing.to_string().starts_with("/nonexistent/ram: "));
}

#[test]
fn large_raw_files_need_a_machine() {
    // A sparse file: nothing is written, and only the first and last frames are read.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 30).unwrap();
    let error = MemoryImage::open(file.path(), &Format::Auto).unwrap_err();
    assert!(matches!(error, ImageError::LayoutNeeded { .. }));
    assert!(error.to_string().contains("qemu-q35"));
    let format = Format::Raw(RawLayout::Preset(Preset::Firecracker));
    let image = MemoryImage::open(file.path(), &format).unwrap();
    assert_eq!(image.layout().end_gfn(), Gfn(0x14_0000));
    assert_eq!(frame_number_at(&image, 0x1_3fff_f000), 0);
    assert!(matches!(image.read(Gpa(0xc000_0000), &mut [0]), Err(MemoryError::NotRam { .. })));
    assert_eq!(image.file_offset(FrameIndex(0xc_0000)), Some(0xc000_0000));
}

#[test]
fn other_formats_are_recognized_unless_told_otherwise() {
    let mut bytes = self_describing_bytes(1);
    bytes[..8].copy_from_slice(b"KDUMP   ");
    let error = MemoryImage::from_bytes(bytes.clone(), &Format::Auto).unwrap_err().to_string();
    assert!(error.contains("kdump-compressed") && error.contains("makedumpfile cannot convert it"));
    assert!(MemoryImage::from_bytes(bytes, &Format::Raw(RawLayout::Contiguous)).is_ok());
}
