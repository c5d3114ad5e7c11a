//! The kernel's data types: their members, and the offsets in this guest's kernel.

use crate::{MockError, Rng};
use std::collections::BTreeMap;

/// A C type, as far as kernel structures need it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Type {
    /// An integer of this name, size in bytes and signedness.
    Int(&'static str, u32, bool),
    /// `void`; only behind a pointer.
    Void,
    /// A function; only behind a pointer.
    Function,
    Pointer(Box<Type>),
    Const(Box<Type>),
    Array(Box<Type>, u32),
    /// A structure, union, enumeration or typedef by name. Behind a pointer, it may be undefined.
    Named(&'static str),
    /// A structure or union without name.
    Anonymous(Composite),
}

/// A member of a structure or union.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Member {
    /// Empty for an anonymous structure or union, whose members are accessed directly.
    pub(super) name: String,
    pub(super) ty: Type,
    /// Offset from the start of the enclosing structure, in bits.
    pub(super) bit_offset: u32,
    /// Width in bits of a bit field.
    pub(super) bits: Option<u32>,
}

/// A structure or union whose members have offsets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Composite {
    pub(super) is_union: bool,
    pub(super) members: Vec<Member>,
    pub(super) size: u32,
    pub(super) align: u32,
}

/// Definition of a name.
#[derive(Clone, Debug)]
pub(super) enum Definition {
    Composite(Composite),
    Enumeration(Vec<(&'static str, u32)>),
    Typedef(Type),
}

/// Location of a member in its outermost structure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Field {
    /// Offset in bytes.
    pub(super) offset: u64,
    /// Size in bytes.
    pub(super) size: u64,
}

/// Whether a structure's members may be reordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Placement {
    /// In the order given.
    Fixed,
    /// In random order, with unrelated members between them.
    Shuffled,
}

/// Every type of the kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Types {
    definitions: Vec<(&'static str, Definition)>,
    /// Indices in `definitions` by name.
    indices: BTreeMap<&'static str, usize>,
}

/// Creates a member of a type.
pub(super) fn member(name: &str, ty: Type) -> Member {
    Member { name: name.to_owned(), ty, bit_offset: 0, bits: None }
}

/// A pointer to a named type.
pub(super) fn pointer(target: &'static str) -> Type {
    Type::Pointer(Box::new(Type::Named(target)))
}

/// An array.
pub(super) fn array(of: Type, length: u32) -> Type {
    Type::Array(Box::new(of), length)
}

pub(super) const U8: Type = Type::Int("unsigned char", 1, false);
pub(super) const U16: Type = Type::Int("short unsigned int", 2, false);
pub(super) const U32: Type = Type::Int("unsigned int", 4, false);
pub(super) const I32: Type = Type::Int("int", 4, true);
pub(super) const U64: Type = Type::Int("long unsigned int", 8, false);
pub(super) const CHAR: Type = Type::Int("char", 1, true);

/// A pointer to `void`.
pub(super) fn void_pointer() -> Type {
    Type::Pointer(Box::new(Type::Void))
}

impl Types {
    /// All definitions, in order.
    pub(super) fn definitions(&self) -> &[(&'static str, Definition)] {
        &self.definitions
    }

    pub(super) fn definition(&self, name: &str) -> Option<&Definition> {
        let index = self.indices.get(name)?;
        self.definitions.get(*index).map(|d| &d.1)
    }

    fn define(&mut self, name: &'static str, definition: Definition) {
        self.indices.insert(name, self.definitions.len());
        self.definitions.push((name, definition));
    }

    /// Defines an enumeration.
    pub(super) fn enumeration(&mut self, name: &'static str, values: &[(&'static str, u32)]) {
        self.define(name, Definition::Enumeration(values.to_vec()));
    }

    /// Defines a typedef.
    pub(super) fn typedef(&mut self, name: &'static str, ty: Type) {
        self.define(name, Definition::Typedef(ty));
    }

    /// Defines a structure. Types that it embeds must be defined already.
    pub(super) fn structure(
        &mut self,
        name: &'static str,
        placement: Placement,
        rng: &mut Rng,
        mut members: Vec<Member>,
    ) -> Result<(), MockError> {
        if placement == Placement::Shuffled {
            let foreign = rng.below(members.len() as u64 / 2 + 2);
            for number in 0..foreign {
                let kinds = [U8, U16, U32, U64, pointer("module"), array(U64, 3), void_pointer()];
                let ty = kinds.get(rng.index(kinds.len())).cloned().unwrap_or(U64);
                members.push(member(&format!("android_kabi_reserved{number}"), ty));
            }
            rng.shuffle(&mut members);
        }
        let composite = self.lay_out(false, members)?;
        self.define(name, Definition::Composite(composite));
        Ok(())
    }

    /// Defines a union.
    pub(super) fn union(
        &mut self,
        name: &'static str,
        members: Vec<Member>,
    ) -> Result<(), MockError> {
        let composite = self.lay_out(true, members)?;
        self.define(name, Definition::Composite(composite));
        Ok(())
    }

    /// Defines a structure whose members already have offsets.
    pub(super) fn placed(&mut self, name: &'static str, composite: Composite) {
        self.define(name, Definition::Composite(composite));
    }

    /// An anonymous structure or union as a member.
    pub(super) fn anonymous(
        &self,
        is_union: bool,
        members: Vec<Member>,
    ) -> Result<Member, MockError> {
        Ok(member("", Type::Anonymous(self.lay_out(is_union, members)?)))
    }

    /// Assigns offsets by the rules of the System V ABI for x86-64.
    pub(super) fn lay_out(
        &self,
        is_union: bool,
        mut members: Vec<Member>,
    ) -> Result<Composite, MockError> {
        let (mut end_bits, mut align) = (0u32, 1u32);
        let mut size = 0;
        for m in &mut members {
            let (bytes, alignment) = self.size_align(&m.ty)?;
            align = align.max(alignment);
            if let Some(width) = m.bits {
                // A bit field does not straddle a unit of its declared type.
                let unit = bytes * 8;
                if end_bits / unit != (end_bits + width - 1) / unit {
                    end_bits = end_bits.next_multiple_of(unit);
                }
                m.bit_offset = if is_union { 0 } else { end_bits };
                end_bits = m.bit_offset + width;
            } else {
                m.bit_offset = if is_union { 0 } else { end_bits.next_multiple_of(alignment * 8) };
                end_bits = m.bit_offset + bytes * 8;
            }
            size = size.max(end_bits.div_ceil(8));
        }
        Ok(Composite { is_union, members, size: size.next_multiple_of(align), align })
    }

    /// Size and alignment in bytes.
    pub(super) fn size_align(&self, ty: &Type) -> Result<(u32, u32), MockError> {
        match ty {
            Type::Int(_, size, _) => Ok((*size, *size)),
            Type::Pointer(_) => Ok((8, 8)),
            Type::Const(inner) => self.size_align(inner),
            Type::Array(inner, length) => {
                let (size, align) = self.size_align(inner)?;
                Ok((size * length, align))
            }
            Type::Anonymous(composite) => Ok((composite.size, composite.align)),
            Type::Void | Type::Function => Err(MockError::NoSuchType { name: "void".to_owned() }),
            Type::Named(name) => match self.definition(name) {
                Some(Definition::Composite(c)) => Ok((c.size, c.align)),
                Some(Definition::Enumeration(_)) => Ok((4, 4)),
                Some(Definition::Typedef(inner)) => self.size_align(inner),
                None => Err(MockError::NoSuchType { name: (*name).to_owned() }),
            },
        }
    }

    /// Size of a named type in bytes.
    pub(super) fn size_of(&self, name: &'static str) -> Result<u64, MockError> {
        Ok(self.size_align(&Type::Named(name))?.0.into())
    }

    /// Location of `path` (`member` or `member.member`) in the structure `name`.
    pub(super) fn field(&self, name: &str, path: &str) -> Result<Field, MockError> {
        let missing = || MockError::NoSuchType { name: format!("{name}.{path}") };
        let mut composite = self.composite_named(name);
        let (mut offset, mut size) = (0, 0);
        for part in path.split('.') {
            let (bits, ty) =
                Self::find(composite.ok_or_else(missing)?, part).ok_or_else(missing)?;
            offset += u64::from(bits / 8);
            size = self.size_align(ty)?.0.into();
            composite = self.composite_of(ty);
        }
        Ok(Field { offset, size })
    }

    /// Offset of a field in bytes.
    pub(super) fn offset(&self, name: &str, path: &str) -> Result<u64, MockError> {
        self.field(name, path).map(|f| f.offset)
    }

    fn composite_named(&self, name: &str) -> Option<&Composite> {
        match self.definition(name)? {
            Definition::Composite(c) => Some(c),
            Definition::Enumeration(_) => None,
            Definition::Typedef(ty) => self.composite_of(ty),
        }
    }

    fn composite_of<'a>(&'a self, ty: &'a Type) -> Option<&'a Composite> {
        match ty {
            Type::Anonymous(c) => Some(c),
            Type::Named(name) => self.composite_named(name),
            Type::Const(inner) => self.composite_of(inner),
            Type::Int(..) | Type::Void | Type::Function | Type::Pointer(_) | Type::Array(..) => {
                None
            }
        }
    }

    /// Finds a member by name, including members of anonymous members.
    fn find<'a>(composite: &'a Composite, name: &str) -> Option<(u32, &'a Type)> {
        composite.members.iter().find_map(|m| {
            if m.name == name {
                return Some((m.bit_offset, &m.ty));
            }
            let Type::Anonymous(inner) = &m.ty else { return None };
            let found = Self::find(inner, name).filter(|_| m.name.is_empty());
            found.map(|(bits, ty)| (m.bit_offset + bits, ty))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_lie_where_a_c_compiler_puts_them() {
        let (mut types, mut rng) = (Types::default(), Rng::new(1));
        let list = vec![member("next", pointer("list_head")), member("prev", pointer("list_head"))];
        types.structure("list_head", Placement::Fixed, &mut rng, list).unwrap();
        let inner = types.anonymous(true, vec![member("a", U32), member("b", U64)]).unwrap();
        let bit = |name: &str, width| Member { bits: Some(width), ..member(name, U32) };
        let members = vec![
            member("c", U8),
            inner,
            bit("x", 16),
            bit("y", 15),
            bit("z", 2),
            member("l", Type::Named("list_head")),
            member("s", array(U16, 3)),
        ];
        types.structure("t", Placement::Fixed, &mut rng, members).unwrap();
        let at = |path| types.field("t", path).unwrap();
        assert_eq!(at("b"), Field { offset: 8, size: 8 });
        assert_eq!(at("a").offset, 8);
        assert_eq!(at("x").offset, 16);
        assert_eq!(at("y").offset, 18);
        // A new unit, since the first has one bit left.
        assert_eq!(at("z").offset, 20);
        assert_eq!(at("l.prev").offset, 32);
        assert_eq!(at("s"), Field { offset: 40, size: 6 });
        assert_eq!(types.size_of("t").unwrap(), 48);
        assert!(types.field("t", "nobody").is_err());
        assert!(types.field("t", "c.x").is_err());
        assert!(types.field("u", "x").is_err());
    }

    #[test]
    fn the_seed_chooses_the_order() {
        let offsets = |seed| {
            let (mut types, mut rng) = (Types::default(), Rng::new(seed));
            let members = ["a", "b", "c", "d", "e", "f"].map(|n| member(n, U64)).to_vec();
            types.structure("t", Placement::Shuffled, &mut rng, members).unwrap();
            ["a", "b", "c", "d", "e", "f"].map(|n| types.offset("t", n).unwrap())
        };
        assert_eq!(offsets(1), offsets(1));
        assert_ne!(offsets(1), offsets(2));
    }
}
