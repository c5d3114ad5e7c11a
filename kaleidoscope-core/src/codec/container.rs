//! The container of all files: header, checksum and compression.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{ManifestError, to_u64, within};
#[cfg(feature = "write")]
use crate::output_file::OutputFile;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::Path;
use zstd::zstd_safe;

/// A type of file in the container.
pub(crate) struct Family {
    /// Name of the type in errors.
    pub(crate) name: &'static str,
    /// First bytes of the file. They include line endings, which reveal a transfer that converted
    /// line endings.
    pub(crate) magic: [u8; 8],
    /// Major version of the format. Additions that old readers can skip do not change it.
    pub(crate) version: u32,
}

/// Size limits of a file.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Maximum bytes of uncompressed payload.
    pub(crate) max_payload: u64,
    /// Maximum bytes of the file.
    pub(crate) max_file: u64,
}

impl Bounds {
    /// Bounds for files with up to `max_payload` bytes of payload: room for the zstd frame of an
    /// incompressible payload.
    pub(crate) fn for_payload(max_payload: u64) -> Self {
        let max_file = max_payload.saturating_add(max_payload / 128).saturating_add(1 << 10);
        Self { max_payload, max_file }
    }
}

/// Level 9 makes a map about 10 % smaller than level 3 and still takes about 0.1 ms per MiB of
/// guest RAM.
const COMPRESSION_LEVEL: i32 = 9;

/// Length of the header in bytes.
const HEADER_LEN: usize = 64;

/// Offset of the checksum, after the fields that it covers.
const CHECKSUM_AT: usize = 32;

/// The header's fields, in file order; all integers are little-endian.
struct Header {
    /// Bytes of the zstd frame after the header.
    payload_len: u64,
    /// Bytes to which the zstd frame expands.
    uncompressed_len: u64,
    /// SHA-256 of the preceding fields and the zstd frame.
    checksum: [u8; 32],
}

impl Header {
    /// The fields that the checksum covers.
    fn fields(&self, family: &Family) -> [u8; CHECKSUM_AT] {
        let mut out = [0; CHECKSUM_AT];
        let flags = 0u32;
        let parts: [&[u8]; 5] = [
            &family.magic,
            &family.version.to_le_bytes(),
            &flags.to_le_bytes(),
            &self.payload_len.to_le_bytes(),
            &self.uncompressed_len.to_le_bytes(),
        ];
        let mut at = out.as_mut_slice();
        for part in parts {
            let (head, tail) = at.split_at_mut(part.len());
            head.copy_from_slice(part);
            at = tail;
        }
        out
    }

    /// Parses and checks the header at the start of `bytes`; the checksum is not verified yet.
    fn parse(bytes: &[u8], family: &Family, bounds: Bounds) -> Result<Self, ManifestError> {
        let mut rest = bytes;
        let &Family { name, magic, version: supported } = family;
        let found = rest.get(..magic.len()).unwrap_or(rest);
        if found != magic {
            return Err(ManifestError::Magic { name, magic, found: found.to_vec() });
        }
        let truncated = || ManifestError::Truncated {
            expected: to_u64(HEADER_LEN),
            found: to_u64(bytes.len()),
        };
        take::<8>(&mut rest).ok_or_else(truncated)?;
        let version = u32::from_le_bytes(take(&mut rest).ok_or_else(truncated)?);
        if version != supported {
            return Err(ManifestError::Version { name, found: version, supported });
        }
        let flags = u32::from_le_bytes(take(&mut rest).ok_or_else(truncated)?);
        if flags != 0 {
            return Err(ManifestError::Flags { found: flags });
        }
        let payload_len = u64::from_le_bytes(take(&mut rest).ok_or_else(truncated)?);
        let uncompressed_len = u64::from_le_bytes(take(&mut rest).ok_or_else(truncated)?);
        let checksum = take(&mut rest).ok_or_else(truncated)?;
        within("bytes of payload", uncompressed_len, bounds.max_payload)?;
        within("bytes of compressed payload", payload_len, bounds.max_file)?;
        Ok(Self { payload_len, uncompressed_len, checksum })
    }

    /// Length of the whole file.
    fn file_len(&self) -> u64 {
        self.payload_len.saturating_add(to_u64(HEADER_LEN))
    }

    fn checksum_of(&self, family: &Family, payload: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(self.fields(family)).chain_update(payload).finalize().into()
    }
}

/// Encodes a payload as the bytes of a file.
pub(crate) fn wrap(family: &Family, payload: &[u8]) -> Result<Vec<u8>, ManifestError> {
    let compressed = zstd::bulk::compress(payload, COMPRESSION_LEVEL)
        .map_err(|e| ManifestError::Compression(e.to_string()))?;
    Ok(seal(family, to_u64(payload.len()), &compressed))
}

/// Prepends the header to a compressed payload.
pub(crate) fn seal(family: &Family, uncompressed_len: u64, compressed: &[u8]) -> Vec<u8> {
    let payload_len = to_u64(compressed.len());
    let mut header = Header { payload_len, uncompressed_len, checksum: [0; 32] };
    header.checksum = header.checksum_of(family, compressed);
    [header.fields(family).as_slice(), &header.checksum, compressed].concat()
}

/// Decodes the payload of a file.
pub(crate) fn unwrap(
    bytes: &[u8],
    family: &Family,
    bounds: Bounds,
) -> Result<Vec<u8>, ManifestError> {
    let header = Header::parse(bytes, family, bounds)?;
    let end = header.file_len();
    let found = to_u64(bytes.len());
    if found < end {
        return Err(ManifestError::Truncated { expected: end, found });
    }
    if found > end {
        return Err(ManifestError::TrailingBytes { end });
    }
    let compressed = bytes.get(HEADER_LEN..).unwrap_or_default();
    if header.checksum_of(family, compressed) != header.checksum {
        return Err(ManifestError::Checksum);
    }
    decompress(compressed, header.uncompressed_len)
}

/// Decompresses one zstd frame that must span its input and expand to `expected` bytes, which the
/// caller has bounded.
fn decompress(compressed: &[u8], expected: u64) -> Result<Vec<u8>, ManifestError> {
    let wrong = |problem: &str| ManifestError::Compression(problem.to_owned());
    let code = |code| ManifestError::Compression(zstd_safe::get_error_name(code).to_owned());
    if zstd_safe::find_frame_compressed_size(compressed).map_err(code)? != compressed.len() {
        return Err(wrong("bytes after the zstd frame"));
    }
    let stated = zstd_safe::get_frame_content_size(compressed)
        .map_err(|_| wrong("the zstd frame has no content size"))?;
    if stated != Some(expected) {
        return Err(wrong("the zstd frame's content size differs from the header's"));
    }
    let capacity = usize::try_from(expected).map_err(|_| wrong("larger than the address space"))?;
    // A small file may expand to a large payload. Failure to allocate is an error of this file and
    // must not abort the process.
    let mut payload = Vec::new();
    let room = payload.try_reserve_exact(capacity);
    room.map_err(|_| wrong(&format!("there is no memory for its {capacity} bytes")))?;
    zstd::bulk::Decompressor::new()
        .and_then(|mut decompressor| decompressor.decompress_to_buffer(compressed, &mut payload))
        .map_err(|e| ManifestError::Compression(e.to_string()))?;
    if payload.len() != capacity {
        return Err(wrong("the zstd frame is shorter than its content size"));
    }
    Ok(payload)
}

/// Reads a file into memory, up to the length that its header announces and within the bounds.
pub(crate) fn read_bounded(
    mut input: impl Read,
    family: &Family,
    bounds: Bounds,
) -> Result<Vec<u8>, ManifestError> {
    let mut bytes = Vec::new();
    input.by_ref().take(to_u64(HEADER_LEN)).read_to_end(&mut bytes)?;
    let header = Header::parse(&bytes, family, bounds)?;
    // One byte more than announced, to detect trailing bytes.
    input.take(header.payload_len.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Atomically replaces the file at `path` with these bytes, and syncs it to the disk.
#[cfg(feature = "write")]
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ManifestError> {
    let mut file = OutputFile::create(path)?;
    file.write_all(bytes)?;
    Ok(file.commit_synced()?)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}
