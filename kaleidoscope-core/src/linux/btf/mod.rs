//! BTF: the kernel's own type information, which gives the offsets of structure fields.
//!
//! Since 5.2, kernels may include a compact description of all their types in read-only data, and
//! distribution kernels do: a header, a section of types numbered from 1, and a section of
//! NUL-terminated strings. Format: the kernel's `Documentation/bpf/btf.rst`.
//!
//! ```no_run
//! # fn example(image: &[u8]) -> Option<()> {
//! use kaleidoscope_core::internals::btf::Btf;
//! let btf = Btf::find(image).ok()?;
//! let types = btf.index(&["page", "zone", "pageflags"]); // one pass for all names
//! let mapping = types.member("page.mapping")?.byte_offset;
//! let locked = types.enum_value("pageflags", "PG_locked")?;
//! # Some(()) }
//! ```

mod find;
mod index;
mod kind;
mod structure;
#[cfg(test)]
mod synthetic;
#[cfg(test)]
mod tests;

pub use index::TypeIndex;
pub use structure::{EnumRef, Member, StructRef};

use super::bytes::{index, u32_at};
use kind::{BadType, Kind, RawType, TYPE_HEADER_BYTES};
use thiserror::Error;

/// First bytes of BTF in little-endian order: magic 0xeb9f, version 1, flags 0.
pub const MAGIC: [u8; 4] = [0x9f, 0xeb, 0x01, 0x00];

/// Bytes of the original header, without later extensions.
const HEADER_BYTES: u32 = 24;

/// Bytes of a pointer. Introspection supports only 64-bit kernels.
const POINTER_BYTES: u64 = 8;

/// Maximum number of typedefs, qualifiers and array dimensions to follow for one type; C code has
/// less than ten. Terminates cycles.
const MAX_TYPE_DEPTH: usize = 32;

/// Maximum number of types; distribution kernels have about 100,000.
const MAX_TYPES: usize = 1 << 20;

/// Maximum length of a name in bytes: the kernel's `KSYM_NAME_LEN`, which also bounds names in BTF.
const MAX_NAME_BYTES: usize = 512;

/// Why bytes are not usable BTF.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BtfError {
    /// No valid BTF in the image describes a kernel.
    #[error(
        "no BTF in the {image_bytes:#x} bytes of kernel image \
         ({candidates} candidates had no struct page)"
    )]
    NotFound {
        /// Length of the searched image in bytes.
        image_bytes: usize,
        /// Number of well-formed BTF candidates that do not describe a kernel.
        candidates: usize,
    },
    /// The magic, version or flags differ from those of little-endian BTF version 1.
    #[error("no BTF header: the first bytes are {found:02x?}")]
    NoMagic {
        /// The first bytes, padded with zeros.
        found: [u8; 4],
    },
    /// A section lies outside the bytes, or the sections overlap.
    #[error("the BTF {section} section, {length:#x} bytes at offset {offset:#x}, does not fit")]
    BadSection {
        /// `header`, `type` or `string`.
        section: &'static str,
        /// The section's offset in bytes from the start of the BTF.
        offset: u64,
        /// The section's length in bytes.
        length: u64,
    },
    /// The string section does not start or does not end with a NUL.
    #[error("the BTF string section is not delimited by NULs")]
    BadStrings,
    /// A type extends past the end of its section.
    #[error("BTF type {id} at offset {offset:#x} of the type section is cut off")]
    TruncatedType {
        /// Number of the type.
        id: u32,
        /// Offset of the type in bytes in the type section.
        offset: usize,
    },
    /// A type of a kind whose size this parser does not know.
    #[error("BTF type {id} at offset {offset:#x} of the type section has unknown kind {kind}")]
    UnknownKind {
        /// Number of the type.
        id: u32,
        /// Offset of the type in bytes in the type section.
        offset: usize,
        /// The unknown kind.
        kind: u32,
    },
    /// More types than any kernel has.
    #[error("more than {MAX_TYPES} BTF types")]
    TooManyTypes,
}

/// Number of a type. Zero is `void`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub u32);

/// A named struct, union, enumeration or typedef.
#[derive(Clone, Copy)]
struct NamedType {
    name: u32,
    id: TypeId,
}

/// Parsed BTF of one kernel.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset in `types` of type `i + 1`.
    offsets: Vec<u32>,
    /// The types that can be looked up by name, in type order.
    named: Vec<NamedType>,
    /// Whether enumerations record their signedness (since 6.0).
    signs_marked: bool,
}

impl std::fmt::Debug for Btf<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Btf")
            .field("types", &self.offsets.len())
            .field("named", &self.named.len())
            .finish_non_exhaustive()
    }
}

impl<'a> Btf<'a> {
    /// Finds the kernel's BTF in the bytes of its image: the largest BTF that describes `struct
    /// page`.
    ///
    /// If its address is known (symbol `__start_BTF`), [`parse`](Self::parse) avoids the search.
    ///
    /// # Errors
    /// [`BtfError::NotFound`] if no BTF in the image describes a kernel.
    pub fn find(image: &'a [u8]) -> Result<Self, BtfError> {
        find::find(image)
    }

    /// Parses the BTF at the start of `bytes`, in one pass over the types. Ignores bytes after the
    /// BTF.
    ///
    /// # Errors
    /// If the header, a section or a type is malformed, or if a type is of an unknown kind.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let Sections { types, strings } = Sections::read(bytes)?;
        // A type has 24 bytes on average.
        let expected = types.len() / TYPE_HEADER_BYTES / 2;
        let (mut offsets, mut named) =
            (Vec::with_capacity(expected), Vec::with_capacity(expected / 8));
        let mut signs_marked = false;
        let mut at = 0_usize;
        let mut id = 0_u32;
        while at < types.len() {
            id = id.saturating_add(1);
            let raw = RawType::read(types, at).map_err(|bad| match bad {
                BadType::Truncated => BtfError::TruncatedType { id, offset: at },
                BadType::UnknownKind(kind) => BtfError::UnknownKind { id, offset: at, kind },
            })?;
            let by_name = matches!(
                raw.kind,
                Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Typedef
            );
            if by_name && raw.name != 0 {
                named.push(NamedType { name: raw.name, id: TypeId(id) });
            }
            signs_marked |= raw.kind == Kind::Enum64 || raw.kind == Kind::Enum && raw.kind_flag;
            if offsets.len() >= MAX_TYPES {
                return Err(BtfError::TooManyTypes);
            }
            // Sections are at most 4 GiB long.
            offsets.push(u32::try_from(at).unwrap_or(u32::MAX));
            at = at.saturating_add(raw.encoded_bytes());
        }
        Ok(Self { types, strings, offsets, named, signs_marked })
    }

    /// Number of types, excluding `void`.
    #[must_use]
    pub fn type_count(&self) -> usize {
        self.offsets.len()
    }

    /// Locates all types with these names in one pass. The returned index gives access to their
    /// members and values.
    #[must_use]
    pub fn index<'b>(&'b self, names: &[&str]) -> TypeIndex<'b> {
        TypeIndex::new(self, names)
    }

    /// The struct or union `name`. To look up several names, use [`index`](Self::index).
    #[must_use]
    pub fn struct_named<'b>(&'b self, name: &str) -> Option<StructRef<'b>> {
        self.index(&[name]).struct_named(name)
    }

    /// The value of `constant` in the enumeration `name`. To look up several names, use
    /// [`index`](Self::index).
    #[must_use]
    pub fn enum_value(&self, name: &str, constant: &str) -> Option<i64> {
        self.index(&[name]).enum_value(name, constant)
    }

    /// Size in bytes of a type, through typedefs, qualifiers and arrays; `None` for functions and
    /// incomplete types.
    #[must_use]
    pub fn type_size(&self, id: TypeId) -> Option<u64> {
        let (mut id, mut elements) = (id, 1_u64);
        for _ in 0..MAX_TYPE_DEPTH {
            let raw = self.raw(id)?;
            match raw.kind {
                Kind::Int
                | Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Float
                | Kind::DataSec => {
                    return elements.checked_mul(raw.size_or_type.into());
                }
                Kind::Ptr => return elements.checked_mul(POINTER_BYTES),
                Kind::Array => {
                    let (element, length) = raw.array()?;
                    elements = elements.checked_mul(length.into())?;
                    id = TypeId(element);
                }
                Kind::Typedef
                | Kind::Volatile
                | Kind::Const
                | Kind::Restrict
                | Kind::TypeTag
                | Kind::Var => {
                    id = TypeId(raw.size_or_type);
                }
                Kind::Fwd | Kind::Func | Kind::FuncProto | Kind::DeclTag => return None,
            }
        }
        None
    }

    /// Number of elements of an array type (its first dimension), through typedefs and qualifiers;
    /// 0 for flexible arrays.
    #[must_use]
    pub fn array_len(&self, id: TypeId) -> Option<u32> {
        Some(self.resolved(id)?.1.array()?.1)
    }

    /// Type of the elements of an array type.
    #[must_use]
    pub fn array_element(&self, id: TypeId) -> Option<TypeId> {
        Some(TypeId(self.resolved(id)?.1.array()?.0))
    }

    /// The type that a pointer type points to.
    #[must_use]
    pub fn pointee(&self, id: TypeId) -> Option<TypeId> {
        let (_, raw) = self.resolved(id)?;
        (raw.kind == Kind::Ptr).then_some(TypeId(raw.size_or_type))
    }

    /// The struct or union behind a type, through typedefs and qualifiers.
    #[must_use]
    pub fn structure(&self, id: TypeId) -> Option<StructRef<'_>> {
        let (id, raw) = self.resolved(id)?;
        StructRef::new(self, id, raw)
    }

    /// Name of a type; `None` for anonymous types and `void`.
    #[must_use]
    pub fn type_name(&self, id: TypeId) -> Option<&'a str> {
        self.string(self.raw(id)?.name)
    }

    fn raw(&self, id: TypeId) -> Option<RawType<'a>> {
        let at = *self.offsets.get(index(id.0.checked_sub(1)?))?;
        RawType::read(self.types, index(at)).ok()
    }

    /// The type with typedefs and qualifiers removed.
    fn resolved(&self, mut id: TypeId) -> Option<(TypeId, RawType<'a>)> {
        for _ in 0..MAX_TYPE_DEPTH {
            let raw = self.raw(id)?;
            if !raw.kind.is_modifier() {
                return Some((id, raw));
            }
            id = TypeId(raw.size_or_type);
        }
        None
    }

    /// A nonempty string of at most [`MAX_NAME_BYTES`] bytes.
    fn string(&self, at: u32) -> Option<&'a str> {
        let text = self.strings.get(index(at)..)?;
        let text = text.get(..=MAX_NAME_BYTES).unwrap_or(text);
        let end = memchr::memchr(0, text)?;
        std::str::from_utf8(text.get(..end)?).ok().filter(|text| !text.is_empty())
    }

    /// Whether the string at `at` is `text`.
    #[inline]
    fn string_is(&self, at: u32, text: &str) -> bool {
        let rest =
            self.strings.get(index(at)..).and_then(|rest| rest.strip_prefix(text.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// The two sections of BTF.
struct Sections<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Sections<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, BtfError> {
        if !bytes.starts_with(&MAGIC) {
            let mut found = [0; 4];
            found.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
            return Err(BtfError::NoMagic { found });
        }
        let bad =
            |section, offset: u64, length: u64| BtfError::BadSection { section, offset, length };
        let word = |at| {
            u32_at(bytes, at).map(u64::from).ok_or_else(|| bad("header", 0, HEADER_BYTES.into()))
        };
        let header = word(4)?;
        if header < HEADER_BYTES.into() {
            return Err(bad("header", 0, header));
        }
        // No overflow: all terms are `u32`.
        let section = |name, offset: u64, length: u64| {
            let start = header.saturating_add(offset);
            let range =
                usize::try_from(start).ok()..usize::try_from(start.saturating_add(length)).ok();
            let bytes = range.start.zip(range.end).and_then(|(start, end)| bytes.get(start..end));
            bytes.ok_or_else(|| bad(name, start, length))
        };
        let (type_offset, type_bytes, string_offset, string_bytes) =
            (word(8)?, word(12)?, word(16)?, word(20)?);
        let types = section("type", type_offset, type_bytes)?;
        let strings = section("string", string_offset, string_bytes)?;
        if string_offset < type_offset.saturating_add(type_bytes) {
            return Err(bad("string", header.saturating_add(string_offset), string_bytes));
        }
        if strings.first() != Some(&0) || strings.last() != Some(&0) {
            return Err(BtfError::BadStrings);
        }
        Ok(Self { types, strings })
    }

    /// Total length of both sections, in bytes.
    fn len(&self) -> usize {
        self.types.len().saturating_add(self.strings.len())
    }
}
