//! Structs, unions and enumerations: offsets of members, values of constants.

use super::kind::{Kind, RawType};
use super::{Btf, TypeId};
use crate::linux::bytes::u32_at;

/// Maximum nesting of anonymous structs and unions to search. Kernel code has four or five levels.
const MAX_NESTING: usize = 12;

/// Maximum number of members to examine in one search. `task_struct` has about 300; hostile types
/// could refer to each other endlessly.
const MAX_MEMBERS: usize = 1 << 13;

/// Maximum number of constants to examine in one enumeration. Kernel enumerations have a few
/// hundred; the format allows 16 million.
const MAX_CONSTANTS: usize = 1 << 13;

/// Bytes of an encoded member: name, type and offset.
const MEMBER_BYTES: usize = 12;

/// Bits in a byte.
const BYTE: u64 = 8;

/// A struct or union.
#[derive(Clone, Copy)]
pub struct StructRef<'b> {
    btf: &'b Btf<'b>,
    id: TypeId,
    raw: RawType<'b>,
}

/// Location of a member in a struct or union.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Offset in whole bytes from the start of the outermost struct.
    pub byte_offset: u64,
    /// For a bitfield, the offset of its first bit within the byte (0 to 7), counted from the least
    /// significant bit. Otherwise 0.
    pub bit_offset: u8,
    /// For a bitfield, its width in bits.
    pub bit_size: Option<u8>,
    /// Type of the member.
    pub type_id: TypeId,
}

impl std::fmt::Debug for StructRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StructRef")
            .field("id", &self.id)
            .field("name", &self.name())
            .field("size", &self.size())
            .finish()
    }
}

impl<'b> StructRef<'b> {
    /// `raw` as a struct or union; `None` if the type is neither.
    pub(super) fn new(btf: &'b Btf<'b>, id: TypeId, raw: RawType<'b>) -> Option<Self> {
        matches!(raw.kind, Kind::Struct | Kind::Union).then_some(Self { btf, id, raw })
    }

    /// Number of this type.
    #[must_use]
    pub fn id(&self) -> TypeId {
        self.id
    }

    /// Its tag; `None` if it is anonymous.
    #[must_use]
    pub fn name(&self) -> Option<&'b str> {
        self.btf.string(self.raw.name)
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.raw.size_or_type.into()
    }

    /// The member `name`, including members of nested anonymous structs and unions.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<Member> {
        let mut budget = MAX_MEMBERS;
        let (bits, bit_size, type_id) = self.search(name, 0, MAX_NESTING, &mut budget)?;
        let bit_size = bit_size.or_else(|| self.btf.narrow_int(type_id));
        let bit_offset = u8::try_from(bits % BYTE).unwrap_or(0);
        Some(Member { byte_offset: bits / BYTE, bit_offset, bit_size, type_id })
    }

    /// The member at the end of a dot-separated path. Every name except the last must denote a
    /// struct, a union, or an array of them (for which the first element is used). Pointers are not
    /// followed.
    #[must_use]
    pub fn member_path(&self, path: &str) -> Option<Member> {
        let mut at = *self;
        let mut offset = 0_u64;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let member = at.member(name)?;
            offset = offset.checked_add(member.byte_offset)?;
            if names.peek().is_none() {
                return Some(Member { byte_offset: offset, ..member });
            }
            at = self.btf.structure(self.btf.innermost_element(member.type_id)?)?;
        }
        None
    }

    /// Named members in declaration order, excluding those of anonymous structs.
    pub fn members(&self) -> impl Iterator<Item = (&'b str, TypeId)> + use<'b> {
        let btf = self.btf;
        let encoded = self.raw.trailing.chunks_exact(MEMBER_BYTES);
        encoded.filter_map(move |member| {
            Some((btf.string(u32_at(member, 0)?)?, TypeId(u32_at(member, 4)?)))
        })
    }

    /// Offset in bits, width (for a bitfield), and type of the member `name`.
    fn search(
        &self,
        name: &str,
        start: u64,
        nesting: usize,
        budget: &mut usize,
    ) -> Option<(u64, Option<u8>, TypeId)> {
        for member in self.raw.trailing.chunks_exact(MEMBER_BYTES) {
            *budget = budget.checked_sub(1)?;
            let (at, id, position) =
                (u32_at(member, 0)?, TypeId(u32_at(member, 4)?), u32_at(member, 8)?);
            // With the flag, the upper byte is the width of a bitfield, or 0.
            let (width, bits) = if self.raw.kind_flag {
                (position >> 24, position & 0x00ff_ffff)
            } else {
                (0, position)
            };
            let bits = start.checked_add(bits.into())?;
            if at == 0 {
                let inner = nesting.checked_sub(1).zip(self.btf.structure(id));
                if let Some(found) =
                    inner.and_then(|(nesting, inner)| inner.search(name, bits, nesting, budget))
                {
                    return Some(found);
                }
            } else if self.btf.string_is(at, name) {
                return Some((bits, u8::try_from(width).ok().filter(|&width| width != 0), id));
            }
        }
        None
    }
}

impl Btf<'_> {
    /// Width in bits of an integer type that is narrower than its bytes: the encoding of bitfields
    /// without the flag.
    fn narrow_int(&self, id: TypeId) -> Option<u8> {
        let (_, raw) = self.resolved(id)?;
        let width = u32_at(raw.trailing, 0)? & 0xff;
        let narrow = raw.kind == Kind::Int
            && u64::from(width) < u64::from(raw.size_or_type).checked_mul(BYTE)?;
        if narrow { u8::try_from(width).ok() } else { None }
    }

    /// The innermost element type of a multidimensional array; any other type itself.
    fn innermost_element(&self, mut id: TypeId) -> Option<TypeId> {
        for _ in 0..super::MAX_TYPE_DEPTH {
            match self.array_element(id) {
                Some(element) => id = element,
                None => return Some(id),
            }
        }
        None
    }
}

/// An enumeration.
#[derive(Clone, Copy)]
pub struct EnumRef<'b> {
    btf: &'b Btf<'b>,
    raw: RawType<'b>,
}

impl<'b> EnumRef<'b> {
    /// `raw` as an enumeration; `None` if the type is not one.
    pub(super) fn new(btf: &'b Btf<'b>, raw: RawType<'b>) -> Option<Self> {
        matches!(raw.kind, Kind::Enum | Kind::Enum64).then_some(Self { btf, raw })
    }

    /// The value of a constant. Unsigned 64-bit values are returned with the same bits. BTF of
    /// kernels before 6.0 does not distinguish unsigned 32-bit values from negative ones; they are
    /// returned as signed.
    #[must_use]
    pub fn value(&self, constant: &str) -> Option<i64> {
        self.encoded().find(|&(name, _)| self.btf.string_is(name, constant)).map(|(_, value)| value)
    }

    /// All constants with their values, in declaration order.
    pub fn constants(&self) -> impl Iterator<Item = (&'b str, i64)> + use<'b> {
        let btf = self.btf;
        self.encoded().filter_map(move |(name, value)| Some((btf.string(name)?, value)))
    }

    /// Name offset and value of each constant. Kernels before 6.0 do not mark signed enumerations,
    /// so all values are read as signed.
    fn encoded(&self) -> impl Iterator<Item = (u32, i64)> + use<'b> {
        let RawType { kind, trailing, .. } = self.raw;
        let signed = self.raw.kind_flag || !self.btf.signs_marked;
        let each = if kind == Kind::Enum64 { 12 } else { 8 };
        trailing.chunks_exact(each).take(MAX_CONSTANTS).filter_map(move |constant| {
            let low = u32_at(constant, 4)?;
            let value = match u32_at(constant, 8) {
                Some(high) => (u64::from(high) << 32 | u64::from(low)).cast_signed(),
                None if signed => i64::from(low.cast_signed()),
                None => i64::from(low),
            };
            Some((u32_at(constant, 0)?, value))
        })
    }
}
