//! Structures of each kernel version, by name and member.
//!
//! Facts come from the kernels' own BTF. The seed chooses the offsets of members, unless the
//! kernel's algorithms (or all kernels so far) fix them, so that introspection cannot rely on
//! memorized offsets.

mod files;
mod memory;
mod page;
mod tasks;

pub(super) use files::INLINE_NAME;
pub(super) use memory::{BUDDY_ORDERS, ZONES};

use super::KernelStyle;
use super::types::{
    CHAR, I32, Member, Placement, Type, Types, U8, U32, U64, array, member, pointer, void_pointer,
};
use crate::{MockError, Rng};

/// All types of a kernel of this style. With `move_page`, the seed also chooses offsets in `struct
/// page`.
pub(super) fn types(
    style: KernelStyle,
    rng: &mut Rng,
    move_page: bool,
) -> Result<Types, MockError> {
    let mut schema = Schema { style, rng, types: Types::default() };
    schema.basics()?;
    schema.page(move_page)?;
    schema.memory()?;
    schema.files()?;
    schema.tasks()?;
    Ok(schema.types)
}

struct Schema<'a> {
    style: KernelStyle,
    rng: &'a mut Rng,
    types: Types,
}

/// A member that is an embedded structure.
fn embedded(name: &str, ty: &'static str) -> Member {
    member(name, Type::Named(ty))
}

/// A member that is a pointer to a named type.
fn pointer_to(name: &str, target: &'static str) -> Member {
    member(name, pointer(target))
}

fn constant(ty: Type) -> Type {
    Type::Const(Box::new(ty))
}

/// A member that is a `const char *`.
fn text(name: &str) -> Member {
    member(name, Type::Pointer(Box::new(constant(CHAR))))
}

impl Schema<'_> {
    /// Defines a structure whose members keep their order.
    fn fixed(&mut self, name: &'static str, members: Vec<Member>) -> Result<(), MockError> {
        self.types.structure(name, Placement::Fixed, self.rng, members)
    }

    /// Defines a structure whose members are shuffled.
    fn shuffled(&mut self, name: &'static str, members: Vec<Member>) -> Result<(), MockError> {
        self.types.structure(name, Placement::Shuffled, self.rng, members)
    }

    fn basics(&mut self) -> Result<(), MockError> {
        for (name, ty) in [
            ("u8", U8),
            ("u32", U32),
            ("u64", Type::Int("long long unsigned int", 8, false)),
            ("pid_t", I32),
            ("dev_t", U32),
            ("gfp_t", U32),
            ("loff_t", Type::Int("long long int", 8, true)),
            ("umode_t", Type::Int("short unsigned int", 2, false)),
        ] {
            self.types.typedef(name, ty);
        }
        let counter = vec![member("counter", I32)];
        let atomic = Type::Anonymous(self.types.lay_out(false, counter)?);
        self.types.typedef("atomic_t", atomic);
        let counter = vec![member("counter", Type::Int("long long int", 8, true))];
        let atomic = Type::Anonymous(self.types.lay_out(false, counter)?);
        self.types.typedef("atomic64_t", atomic.clone());
        self.types.typedef("atomic_long_t", atomic);
        self.fixed(
            "list_head",
            vec![pointer_to("next", "list_head"), pointer_to("prev", "list_head")],
        )?;
        self.fixed(
            "hlist_node",
            vec![
                pointer_to("next", "hlist_node"),
                member("pprev", Type::Pointer(Box::new(pointer("hlist_node")))),
            ],
        )?;
        self.fixed("hlist_head", vec![pointer_to("first", "hlist_node")])?;
        self.fixed(
            "hlist_bl_node",
            vec![
                pointer_to("next", "hlist_bl_node"),
                member("pprev", Type::Pointer(Box::new(pointer("hlist_bl_node")))),
            ],
        )?;
        self.fixed(
            "callback_head",
            vec![
                pointer_to("next", "callback_head"),
                member("func", Type::Pointer(Box::new(Type::Function))),
            ],
        )?;
        self.fixed("spinlock", vec![embedded("rlock", "atomic_t")])?;
        self.types.typedef("spinlock_t", Type::Named("spinlock"));
        self.fixed(
            "rw_semaphore",
            vec![
                embedded("count", "atomic_long_t"),
                embedded("owner", "atomic_long_t"),
                embedded("wait_lock", "spinlock_t"),
                embedded("wait_list", "list_head"),
            ],
        )?;
        self.fixed(
            "rb_node",
            vec![
                member("__rb_parent_color", U64),
                pointer_to("rb_right", "rb_node"),
                pointer_to("rb_left", "rb_node"),
            ],
        )?;
        self.fixed(
            "xarray",
            vec![
                embedded("xa_lock", "spinlock_t"),
                embedded("xa_flags", "gfp_t"),
                member("xa_head", void_pointer()),
            ],
        )?;
        let list = self.types.anonymous(
            true,
            vec![embedded("private_list", "list_head"), embedded("callback_head", "callback_head")],
        )?;
        let marks = self
            .types
            .anonymous(true, vec![member("tags", array(U64, 3)), member("marks", array(U64, 3))])?;
        self.shuffled(
            "xa_node",
            vec![
                member("shift", U8),
                member("offset", U8),
                member("count", U8),
                member("nr_values", U8),
                pointer_to("parent", "xa_node"),
                pointer_to("array", "xarray"),
                list,
                member("slots", array(void_pointer(), 64)),
                marks,
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_has_its_names() {
        let has = |style, path: (&str, &str)| {
            types(style, &mut Rng::new(3), false).unwrap().field(path.0, path.1).is_ok()
        };
        use KernelStyle::{V5_10, V6_1, V6_12, V7_2};
        for (path, styles) in [
            (("page", "index"), &[V5_10, V6_1, V6_12][..]),
            (("page", "__folio_index"), &[V7_2]),
            (("page", "compound_head"), &[V5_10, V6_1, V6_12]),
            (("page", "compound_info"), &[V7_2]),
            (("page", "compound_dtor"), &[V5_10, V6_1]),
            (("page", "slab_cache"), &[V5_10]),
            (("slab", "slab_cache"), &[V6_1, V6_12, V7_2]),
            (("zone", "pageset"), &[V5_10]),
            (("zone", "per_cpu_pageset"), &[V6_1, V6_12, V7_2]),
            (("dentry", "__d_name"), &[V7_2]),
            (("dentry", "d_u.d_alias"), &[V5_10, V6_1, V6_12]),
            (("dentry", "d_alias"), &[V7_2]),
            (("mount", "mnt_instance"), &[V5_10, V6_1, V6_12]),
            (("mount", "mnt_next_for_sb"), &[V7_2]),
            (("dentry", "d_child"), &[V5_10, V6_1]),
            (("dentry", "d_sib"), &[V6_12, V7_2]),
        ] {
            for style in KernelStyle::ALL {
                assert_eq!(has(style, path), styles.contains(&style), "{path:?} in {style:?}");
            }
        }
    }

    #[test]
    fn places_follow_the_seed_but_the_page_keeps_its_words() {
        for style in KernelStyle::ALL {
            let places = |seed, name, path| {
                types(style, &mut Rng::new(seed), false).unwrap().offset(name, path).unwrap()
            };
            let tasks: Vec<_> = (0..6).map(|seed| places(seed, "task_struct", "tasks")).collect();
            assert!(tasks.iter().any(|&t| t != tasks[0]));
            for seed in 0..3 {
                assert_eq!(places(seed, "page", "mapping"), 24);
                assert_eq!(
                    types(style, &mut Rng::new(seed), true).unwrap().size_of("page").unwrap(),
                    64
                );
            }
        }
    }
}
