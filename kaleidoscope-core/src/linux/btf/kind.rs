//! Raw BTF types: a 12-byte header and kind-specific data.
//!
//! Layout: the kernel's `include/uapi/linux/btf.h` and `Documentation/bpf/btf.rst`.

use crate::linux::bytes::{index, u32_at};

/// Bytes of the header of every type: name offset, info, and size or type.
pub(super) const TYPE_HEADER_BYTES: usize = 12;

/// The kinds of BTF types, numbered as in BTF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    DataSec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl Kind {
    pub(super) const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Int,
            2 => Self::Ptr,
            3 => Self::Array,
            4 => Self::Struct,
            5 => Self::Union,
            6 => Self::Enum,
            7 => Self::Fwd,
            8 => Self::Typedef,
            9 => Self::Volatile,
            10 => Self::Const,
            11 => Self::Restrict,
            12 => Self::Func,
            13 => Self::FuncProto,
            14 => Self::Var,
            15 => Self::DataSec,
            16 => Self::Float,
            17 => Self::DeclTag,
            18 => Self::TypeTag,
            19 => Self::Enum64,
            _ => return None,
        })
    }

    /// Bytes after the header: a fixed part, and a part for each of the `vlen` elements.
    const fn trailing(self) -> (usize, usize) {
        match self {
            Self::Int | Self::Var | Self::DeclTag => (4, 0),
            Self::Array => (12, 0),
            Self::Struct | Self::Union | Self::DataSec | Self::Enum64 => (0, 12),
            Self::Enum | Self::FuncProto => (0, 8),
            Self::Ptr | Self::Fwd | Self::Typedef | Self::Volatile | Self::Const => (0, 0),
            Self::Restrict | Self::Func | Self::Float | Self::TypeTag => (0, 0),
        }
    }

    /// Whether the type is only an alias or a qualified version of the type that it refers to.
    pub(super) const fn is_modifier(self) -> bool {
        matches!(
            self,
            Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag
        )
    }
}

/// One encoded type.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawType<'a> {
    /// Offset of the name in the string section; 0 for anonymous types.
    pub(super) name: u32,
    pub(super) kind: Kind,
    /// For structs and unions: member offsets include bitfield sizes. For enumerations: values are
    /// signed.
    pub(super) kind_flag: bool,
    /// The size in bytes, or the type that is referred to, depending on the kind.
    pub(super) size_or_type: u32,
    /// The bytes after the header: exactly the fixed part and all elements.
    pub(super) trailing: &'a [u8],
}

/// Why a type cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadType {
    Truncated,
    UnknownKind(u32),
}

impl<'a> RawType<'a> {
    /// Reads the type at `at` in the type section.
    ///
    /// The kind and the number of elements have five and sixteen bits. The adjacent bits have
    /// always been zero; they are read as additional high bits, so that types are rejected rather
    /// than misread if the bits come into use.
    #[inline]
    pub(super) fn read(types: &'a [u8], at: usize) -> Result<Self, BadType> {
        let bytes = types.get(at..).ok_or(BadType::Truncated)?;
        let (header, rest) =
            bytes.split_first_chunk::<TYPE_HEADER_BYTES>().ok_or(BadType::Truncated)?;
        let word = |at| u32_at(header, at).ok_or(BadType::Truncated);
        let info = word(4)?;
        let number = (info >> 24) & 0x7f;
        let kind = Kind::from_number(number).ok_or(BadType::UnknownKind(number))?;
        let (fixed, each) = kind.trailing();
        // No overflow: at most 12 + 2^24 * 12.
        let length = index(info & 0x00ff_ffff).saturating_mul(each).saturating_add(fixed);
        let trailing = rest.get(..length).ok_or(BadType::Truncated)?;
        Ok(Self {
            name: word(0)?,
            kind,
            kind_flag: info >> 31 != 0,
            size_or_type: word(8)?,
            trailing,
        })
    }

    /// Bytes of the type in the type section.
    #[inline]
    pub(super) fn encoded_bytes(&self) -> usize {
        self.trailing.len().saturating_add(TYPE_HEADER_BYTES)
    }

    /// Element type and number of elements of an array.
    pub(super) fn array(&self) -> Option<(u32, u32)> {
        (self.kind == Kind::Array).then_some((u32_at(self.trailing, 0)?, u32_at(self.trailing, 8)?))
    }
}
