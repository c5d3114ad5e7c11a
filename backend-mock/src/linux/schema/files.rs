//! Files: super blocks, inodes, directory entries, mounts, the page cache.

use super::{Schema, held, points, text};
use crate::MockError;
use crate::linux::KernelStyle;
use crate::linux::types::{CHAR, I32, Type, U8, U32, U64, array, member, void_pointer};

/// Bytes for a short name inside a directory entry, terminator included.
pub(in crate::linux) const INLINE_NAME: u32 = 32;

impl Schema<'_> {
    pub(super) fn files(&mut self) -> Result<(), MockError> {
        let style = self.style;
        self.free(
            "file_system_type",
            vec![
                text("name"),
                member("fs_flags", I32),
                points("owner", "module"),
                points("next", "file_system_type"),
                held("fs_supers", "hlist_head"),
            ],
        )?;
        let mut space = vec![
            points("host", "inode"),
            held("i_pages", "xarray"),
            held("gfp_mask", "gfp_t"),
            held("i_mmap_writable", "atomic_t"),
            member("nrpages", U64),
            member("writeback_index", U64),
            points("a_ops", "address_space_operations"),
            member("flags", U64),
            held("i_mmap_rwsem", "rw_semaphore"),
        ];
        if style == KernelStyle::V5_10 {
            space.push(member("nrexceptional", U64));
        }
        self.free("address_space", space)?;
        self.inode()?;
        self.dentry()?;
        self.super_block()?;
        self.mount()?;
        self.containers()
    }

    fn inode(&mut self) -> Result<(), MockError> {
        let links =
            self.types.anonymous(true, vec![member("i_nlink", U32), member("__i_nlink", U32)])?;
        let aliases = vec![held("i_dentry", "hlist_head"), held("i_rcu", "callback_head")];
        let aliases = self.types.anonymous(true, aliases)?;
        let number = if self.style >= KernelStyle::V7_2 { Type::Named("u64") } else { U64 };
        self.free(
            "inode",
            vec![
                held("i_mode", "umode_t"),
                member("i_flags", U32),
                points("i_op", "inode_operations"),
                points("i_sb", "super_block"),
                points("i_mapping", "address_space"),
                member("i_ino", number),
                links,
                held("i_rdev", "dev_t"),
                held("i_size", "loff_t"),
                held("i_lock", "spinlock_t"),
                held("i_rwsem", "rw_semaphore"),
                held("i_hash", "hlist_node"),
                held("i_lru", "list_head"),
                held("i_sb_list", "list_head"),
                aliases,
                held("i_count", "atomic_t"),
                held("i_data", "address_space"),
                held("i_devices", "list_head"),
                member("i_private", void_pointer()),
            ],
        )
    }

    fn dentry(&mut self) -> Result<(), MockError> {
        let style = self.style;
        let parts = self.types.anonymous(false, vec![held("hash", "u32"), held("len", "u32")])?;
        let hash = self.types.anonymous(true, vec![parts, held("hash_len", "u64")])?;
        let name = Type::Pointer(Box::new(Type::Const(Box::new(U8))));
        self.fixed("qstr", vec![hash, member("name", name)])?;
        let alias = vec![held("d_alias", "hlist_node"), held("d_rcu", "callback_head")];
        let mut members = vec![
            member("d_flags", U32),
            member("d_seq", U32),
            held("d_hash", "hlist_bl_node"),
            points("d_parent", "dentry"),
            points("d_inode", "inode"),
            points("d_op", "dentry_operations"),
            points("d_sb", "super_block"),
            member("d_time", U64),
            member("d_fsdata", void_pointer()),
            held("d_lru", "list_head"),
        ];
        if style >= KernelStyle::V7_2 {
            let constant = Type::Const(Box::new(Type::Named("qstr")));
            let names = vec![held("__d_name", "qstr"), member("d_name", constant)];
            members.push(self.types.anonymous(true, names)?);
            let text = array(U8, INLINE_NAME);
            self.types.union(
                "shortname_store",
                vec![member("string", text), member("words", array(U64, INLINE_NAME / 8))],
            )?;
            members.push(held("d_shortname", "shortname_store"));
            members.push(self.types.anonymous(true, alias)?);
        } else {
            members.push(held("d_name", "qstr"));
            members.push(member("d_iname", array(U8, INLINE_NAME)));
            let alias = self.types.lay_out(true, alias)?;
            members.push(member("d_u", Type::Anonymous(alias)));
        }
        if style >= KernelStyle::V6_12 {
            members.extend([held("d_sib", "hlist_node"), held("d_children", "hlist_head")]);
        } else {
            members.extend([held("d_child", "list_head"), held("d_subdirs", "list_head")]);
        }
        self.free("dentry", members)
    }

    fn super_block(&mut self) -> Result<(), MockError> {
        let mounts = match self.style {
            KernelStyle::V5_10 | KernelStyle::V6_1 | KernelStyle::V6_12 => {
                held("s_mounts", "list_head")
            }
            KernelStyle::V7_2 => points("s_mounts", "mount"),
        };
        self.free(
            "super_block",
            vec![
                held("s_list", "list_head"),
                held("s_dev", "dev_t"),
                member("s_blocksize", U64),
                points("s_type", "file_system_type"),
                points("s_op", "super_operations"),
                member("s_flags", U64),
                member("s_magic", U64),
                points("s_root", "dentry"),
                held("s_umount", "rw_semaphore"),
                held("s_active", "atomic_t"),
                mounts,
                points("s_bdev", "block_device"),
                held("s_instances", "hlist_node"),
                member("s_id", array(CHAR, 32)),
                held("s_inode_list_lock", "spinlock_t"),
                held("s_inodes", "list_head"),
            ],
        )
    }

    fn mount(&mut self) -> Result<(), MockError> {
        let mut inner = vec![
            points("mnt_root", "dentry"),
            points("mnt_sb", "super_block"),
            member("mnt_flags", I32),
        ];
        if self.style >= KernelStyle::V6_12 {
            inner.push(points("mnt_idmap", "mnt_idmap"));
        }
        self.free("vfsmount", inner)?;
        let mut members = vec![
            held("mnt_hash", "hlist_node"),
            points("mnt_parent", "mount"),
            points("mnt_mountpoint", "dentry"),
            held("mnt", "vfsmount"),
            held("mnt_mounts", "list_head"),
            held("mnt_child", "list_head"),
            text("mnt_devname"),
            held("mnt_list", "list_head"),
            points("mnt_ns", "mnt_namespace"),
            member("mnt_id", I32),
        ];
        if self.style >= KernelStyle::V7_2 {
            let back = Type::Pointer(Box::new(Type::Pointer(Box::new(Type::Named("mount")))));
            members.extend([points("mnt_next_for_sb", "mount"), member("mnt_pprev_for_sb", back)]);
        } else {
            members.push(held("mnt_instance", "list_head"));
        }
        self.free("mount", members)
    }

    /// What file systems embed an inode in.
    fn containers(&mut self) -> Result<(), MockError> {
        self.free(
            "block_device",
            vec![
                held("bd_dev", "dev_t"),
                member("bd_openers", I32),
                points("bd_disk", "gendisk"),
                member("bd_nr_sectors", U64),
                points("bd_inode", "inode"),
            ],
        )?;
        self.free("bdev_inode", vec![held("bdev", "block_device"), held("vfs_inode", "inode")])?;
        self.free(
            "ext4_inode_info",
            vec![
                member("i_data", array(U32, 15)),
                member("i_disksize", U64),
                held("i_data_sem", "rw_semaphore"),
                held("vfs_inode", "inode"),
                member("i_block_group", U32),
            ],
        )?;
        self.free(
            "shmem_inode_info",
            vec![
                held("lock", "spinlock_t"),
                member("alloced", U64),
                member("swapped", U64),
                held("swaplist", "list_head"),
                held("vfs_inode", "inode"),
            ],
        )
    }
}
