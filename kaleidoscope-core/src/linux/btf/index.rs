//! Types by name. A batch of names is located in one pass over the named types, without a table of
//! all hundred thousand names.

use super::kind::Kind;
use super::{Btf, EnumRef, Member, NamedType, StructRef, TypeId};
use crate::linux::bytes::index;

/// Maximum number of types to keep for one name. Kernels have two or three; hostile BTF could give
/// all its types the same name.
const MAX_SAME_NAME: usize = 8;

/// The types with the names passed to [`Btf::index`].
pub struct TypeIndex<'b> {
    btf: &'b Btf<'b>,
    /// All types with one of the names, ordered by name, then by type number.
    found: Vec<(&'b str, TypeId)>,
}

impl<'b> TypeIndex<'b> {
    pub(super) fn new(btf: &'b Btf<'b>, names: &[&str]) -> Self {
        let mut names: Vec<&str> = names.iter().copied().filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        names.dedup();
        let buckets = first_letter_buckets(&names);
        let mut seen = vec![0_usize; names.len()];
        // Types are in the order of their numbers, so the limit keeps the lowest numbers of a name.
        let mut is_wanted = |named: &&NamedType| {
            let first = btf.strings.get(index(named.name)).copied().unwrap_or(0);
            let (from, to) = buckets.get(usize::from(first)).copied().unwrap_or_default();
            let candidates = names.get(from..to).unwrap_or_default();
            let at = candidates.iter().position(|name| btf.string_is(named.name, name));
            let count = at.and_then(|at| seen.get_mut(from.checked_add(at)?));
            count.is_some_and(|count| {
                *count = count.saturating_add(1);
                *count <= MAX_SAME_NAME
            })
        };
        let named = btf.named.iter().filter(|named| is_wanted(named));
        let mut found: Vec<(&'b str, TypeId)> =
            named.filter_map(|named| Some((btf.string(named.name)?, named.id))).collect();
        found.sort_unstable();
        Self { btf, found }
    }

    /// The type information that this index refers to.
    #[must_use]
    pub fn btf(&self) -> &'b Btf<'b> {
        self.btf
    }

    /// All structs and unions of this name. There may be several if separate parts of the kernel
    /// use the name; typedefs of structs come last.
    pub fn structs_named<'s>(&'s self, name: &'s str) -> impl Iterator<Item = StructRef<'b>> + 's {
        let is_typedef =
            |id: &TypeId| self.btf.raw(*id).is_some_and(|raw| raw.kind == Kind::Typedef);
        let tags = self.ids(name).filter(move |id| !is_typedef(id));
        let typedefs = self.ids(name).filter(is_typedef);
        tags.chain(typedefs).filter_map(|id| self.btf.structure(id))
    }

    /// The first struct or union of this name.
    #[must_use]
    pub fn struct_named(&self, name: &str) -> Option<StructRef<'b>> {
        self.structs_named(name).next()
    }

    /// The first struct or union of this name that has all of `members`.
    #[must_use]
    pub fn struct_with(&self, name: &str, members: &[&str]) -> Option<StructRef<'b>> {
        self.structs_named(name)
            .find(|found| members.iter().all(|member| found.member(member).is_some()))
    }

    /// A member by a path that starts with the name of its struct: `zone.free_area`,
    /// `task_struct.se.vruntime`.
    ///
    /// See [`StructRef::member_path`]. If several structs have this name, the first one with the
    /// member is used.
    #[must_use]
    pub fn member(&self, path: &str) -> Option<Member> {
        let (name, members) = path.split_once('.')?;
        self.structs_named(name).find_map(|found| found.member_path(members))
    }

    /// Size in bytes of the first type of this name that has a size.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        self.ids(name).find_map(|id| self.btf.type_size(id))
    }

    /// The first enumeration of this name.
    #[must_use]
    pub fn enum_named(&self, name: &str) -> Option<EnumRef<'b>> {
        self.ids(name).find_map(|id| EnumRef::new(self.btf, self.btf.resolved(id)?.1))
    }

    /// The value of `constant` in the first enumeration `name` that has it.
    #[must_use]
    pub fn enum_value(&self, name: &str, constant: &str) -> Option<i64> {
        self.ids(name)
            .find_map(|id| EnumRef::new(self.btf, self.btf.resolved(id)?.1)?.value(constant))
    }

    fn ids<'s>(&'s self, name: &str) -> impl Iterator<Item = TypeId> + use<'s, 'b> {
        let start = self.found.partition_point(|(found, _)| *found < name);
        let end = self.found.partition_point(|(found, _)| *found <= name);
        self.found.get(start..end).unwrap_or_default().iter().map(|&(_, id)| id)
    }
}

/// For each first byte, the range of the sorted names that start with it.
fn first_letter_buckets(names: &[&str]) -> [(usize, usize); 256] {
    let mut buckets = [(0, 0); 256];
    for (byte, bucket) in (0..=u8::MAX).zip(buckets.iter_mut()) {
        let first = |name: &&str| name.bytes().next();
        bucket.0 = names.partition_point(|name| first(name) < Some(byte));
        bucket.1 = names.partition_point(|name| first(name) <= Some(byte));
    }
    buckets
}
