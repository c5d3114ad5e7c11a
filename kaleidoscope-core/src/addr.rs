//! Addresses and frame numbers as types, so that no bare `u64` crosses a module border.

use std::fmt;

/// Base-2 logarithm of [`FRAME_SIZE`].
pub const FRAME_SHIFT: u32 = 12;

/// Bytes in a frame. All memory is counted in 4 KiB frames; larger mappings are runs of frames.
pub const FRAME_SIZE: u64 = 1 << FRAME_SHIFT;

/// [`FRAME_SIZE`] as a `usize`.
pub const FRAME_BYTES: usize = 1 << FRAME_SHIFT;

/// One past the highest guest-physical address of x86-64 (52 bits).
pub const GPA_LIMIT: u64 = 1 << 52;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// This address plus `bytes`, or `None` past the end of the 64-bit space.
            #[must_use]
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }

            /// Bytes past the start of its 4 KiB frame or page.
            #[must_use]
            pub fn offset_in_frame(self) -> usize {
                // A value below FRAME_SIZE fits every `usize`.
                usize::try_from(self.0 % FRAME_SIZE).unwrap_or(0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// A guest-physical address, in bytes.
    Gpa
}

address! {
    /// A guest-virtual address, in bytes, canonical (sign-extended) if the paging mode has 64-bit
    /// addresses.
    Gva
}

/// A guest frame number: a guest-physical address divided by [`FRAME_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Gfn(pub u64);

/// Dense index of a frame in the guest's RAM, without holes. It indexes every per-frame table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct FrameIndex(pub u32);

impl Gpa {
    /// The frame that holds this address.
    #[must_use]
    pub fn gfn(self) -> Gfn {
        Gfn(self.0 >> FRAME_SHIFT)
    }
}

impl Gfn {
    /// Address of the frame's first byte. Frame numbers past the address space saturate.
    #[must_use]
    pub fn gpa(self) -> Gpa {
        Gpa(self.0.saturating_mul(FRAME_SIZE))
    }
}

impl FrameIndex {
    /// The index as a position in a slice.
    #[must_use]
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for FrameIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpa_and_gfn_convert() {
        assert_eq!(Gpa(0x1fff).gfn(), Gfn(1));
        assert_eq!(Gfn(2).gpa(), Gpa(0x2000));
        assert_eq!(Gpa(0x1fff).offset_in_frame(), 0xfff);
        assert_eq!(Gfn(u64::MAX).gpa(), Gpa(u64::MAX));
    }
}
