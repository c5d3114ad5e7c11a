//! What several fuzz targets share.

use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest};

/// The fuzzer's bytes, taken piece by piece. Where they end, zeros follow.
#[derive(Clone, Copy)]
pub struct Input<'d> {
    rest: &'d [u8],
}

impl<'d> Input<'d> {
    /// All of `data`.
    #[must_use]
    pub fn new(data: &'d [u8]) -> Self {
        Self { rest: data }
    }

    /// The next `N` bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (now, later) = self.rest.split_at(N.min(self.rest.len()));
        self.rest = later;
        let mut bytes = [0; N];
        bytes.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.bytes())
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// Everything not yet taken.
    #[must_use]
    pub fn rest(&self) -> &'d [u8] {
        self.rest
    }

    /// Whether everything was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// The synthetic guest of a style that targets and seeds begin with.
///
/// # Panics
/// Never: the knobs describe a machine.
#[must_use]
pub fn guest(style: KernelStyle) -> MockGuest {
    let builder = GuestBuilder::new(style).seed(1).ram_bytes(16 << 20);
    builder.build().expect("16 MiB are enough for a synthetic guest")
}

/// A file around a payload, with a header and checksum that are right: a manifest's for the magic `KSCOPE\r\n`.
///
/// # Panics
/// When zstd runs out of memory.
#[must_use]
pub fn file_around(magic: [u8; 8], payload: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let frame = zstd::bulk::compress(payload, 1).expect("zstd has enough memory");
    let mut file = [magic.as_slice(), b"\x01\0\0\0\0\0\0\0"].concat();
    file.extend((frame.len() as u64).to_le_bytes());
    file.extend((payload.len() as u64).to_le_bytes());
    let checksum = Sha256::new().chain_update(&file).chain_update(&frame).finalize();
    file.extend_from_slice(&checksum);
    file.extend(frame);
    file
}

/// The payload of such a file that is right.
#[must_use]
pub fn payload_of(file: &[u8]) -> Option<Vec<u8>> {
    zstd::stream::decode_all(file.get(64..)?).ok()
}
