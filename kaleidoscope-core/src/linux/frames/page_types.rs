//! Flag bits and page types of `struct page`, which differ between kernels.
//!
//! Source: `enum pageflags` and `enum pagetype` of Linux's `include/linux/page-flags.h`, as
//! reported by the kernel's own BTF and VMCOREINFO. The page type shares a word with the mapping
//! count. Two encodings exist: until 6.11, a type is a cleared bit below an all-ones top nibble;
//! since 6.12, it is the top byte.

/// How page types are encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TypeScheme {
    /// A type is one cleared bit; the top nibble stays all ones.
    ClearedBit,
    /// A type is the value of the top byte.
    TopByte,
}

/// Bits that are set in every typed word in the cleared-bit encoding (`PAGE_TYPE_BASE`).
const TYPE_BASE: u32 = 0xf000_0000;

/// Page types as the kernel's number for each: a bit or a top-byte value. `None` if this kernel
/// lacks the type or does not report it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageTypes {
    pub(crate) scheme: TypeScheme,
    pub(crate) buddy: Option<u32>,
    pub(crate) offline: Option<u32>,
    pub(crate) table: Option<u32>,
    pub(crate) hugetlb: Option<u32>,
    pub(crate) slab: Option<u32>,
    pub(crate) large_kmalloc: Option<u32>,
}

impl PageTypes {
    /// The encoding indicated by the word of the buddy type (`PAGE_BUDDY_MAPCOUNT_VALUE`), with no
    /// other types known yet.
    pub(crate) fn from_buddy_word(word: u32) -> Option<Self> {
        let scheme =
            if word & 0x00ff_ffff == 0 { TypeScheme::TopByte } else { TypeScheme::ClearedBit };
        let mut types = Self {
            scheme,
            buddy: None,
            offline: None,
            table: None,
            hugetlb: None,
            slab: None,
            large_kmalloc: None,
        };
        types.buddy = types.number(word);
        types.buddy.map(|_| types)
    }

    /// The number of the single type that a word carries.
    pub(crate) fn number(&self, word: u32) -> Option<u32> {
        match self.scheme {
            TypeScheme::TopByte => Some(word >> 24).filter(|&t| t >= 0xf0 && t != 0xff),
            TypeScheme::ClearedBit => Some(!word).filter(|bit| bit.is_power_of_two()),
        }
    }

    /// Whether a word is of this type.
    #[inline]
    pub(crate) fn is(&self, word: u32, number: Option<u32>) -> bool {
        match (self.scheme, number) {
            (_, None) => false,
            (TypeScheme::TopByte, Some(n)) => word >> 24 == n,
            (TypeScheme::ClearedBit, Some(bit)) => word & (TYPE_BASE | bit) == TYPE_BASE,
        }
    }

    /// Whether a word carries any type.
    #[inline]
    pub(crate) fn is_typed(&self, word: u32) -> bool {
        match self.scheme {
            TypeScheme::TopByte => (0xf0..0xff).contains(&(word >> 24)),
            // An untyped word is minus one plus the number of mappings. With mappings, the top
            // nibble has overflowed to zero.
            TypeScheme::ClearedBit => word & TYPE_BASE == TYPE_BASE && word != u32::MAX,
        }
    }
}

/// Masks of the page flags that coloring uses; 0 for a flag that this kernel lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct PageFlags {
    pub(crate) referenced: u64,
    pub(crate) lru: u64,
    pub(crate) active: u64,
    pub(crate) slab: u64,
    pub(crate) reserved: u64,
    pub(crate) head: u64,
    pub(crate) swap_cache: u64,
    pub(crate) swap_backed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleared_bit_encoding() {
        let types = PageTypes::from_buddy_word(0xffff_ff7f).unwrap();
        assert_eq!((types.scheme, types.buddy), (TypeScheme::ClearedBit, Some(0x80)));
        assert!(types.is(0xffff_ff7f, types.buddy));
        assert!(!types.is(u32::MAX, types.buddy));
        assert!(!types.is(0, types.buddy));
        assert!(types.is_typed(0xffff_fbff) && !types.is_typed(u32::MAX) && !types.is_typed(3));
    }

    #[test]
    fn top_byte_encoding() {
        let types = PageTypes::from_buddy_word(0xf000_0000).unwrap();
        assert_eq!((types.scheme, types.buddy), (TypeScheme::TopByte, Some(0xf0)));
        assert!(types.is(0xf000_0007, types.buddy));
        assert!(types.is_typed(0xf500_0000) && !types.is_typed(u32::MAX) && !types.is_typed(1));
        assert_eq!(PageTypes::from_buddy_word(0), None);
    }
}
