//! Files: super blocks, inodes, directory entries, mounts, the page cache.

use super::{Schema, embedded, pointer_to, text};
use crate::MockError;
use crate::linux::KernelStyle;
use crate::linux::types::{CHAR, I32, Type, U8, U32, U64, array, member, void_pointer};

/// Bytes of a short name inside a directory entry, including the terminator.
pub(in crate::linux) const INLINE_NAME: u32 = 32;

impl Schema<'_> {
    pub(super) fn files(&mut self) -> Result<(), MockError> {
        let style = self.style;
        self.shuffled(
            "file_system_type",
            vec![
                text("name"),
                member("fs_flags", I32),
                pointer_to("owner", "module"),
                pointer_to("next", "file_system_type"),
                embedded("fs_supers", "hlist_head"),
            ],
        )?;
        let mut space = vec![
            pointer_to("host", "inode"),
            embedded("i_pages", "xarray"),
            embedded("gfp_mask", "gfp_t"),
            embedded("i_mmap_writable", "atomic_t"),
            member("nrpages", U64),
            member("writeback_index", U64),
            pointer_to("a_ops", "address_space_operations"),
            member("flags", U64),
            embedded("i_mmap_rwsem", "rw_semaphore"),
        ];
        if style == KernelStyle::V5_10 {
            space.push(member("nrexceptional", U64));
        }
        self.shuffled("address_space", space)?;
        self.inode()?;
        self.dentry()?;
        self.super_block()?;
        self.mount()?;
        self.containers()
    }

    fn inode(&mut self) -> Result<(), MockError> {
        let links =
            self.types.anonymous(true, vec![member("i_nlink", U32), member("__i_nlink", U32)])?;
        let aliases = vec![embedded("i_dentry", "hlist_head"), embedded("i_rcu", "callback_head")];
        let aliases = self.types.anonymous(true, aliases)?;
        let number = if self.style >= KernelStyle::V7_2 { Type::Named("u64") } else { U64 };
        self.shuffled(
            "inode",
            vec![
                embedded("i_mode", "umode_t"),
                member("i_flags", U32),
                pointer_to("i_op", "inode_operations"),
                pointer_to("i_sb", "super_block"),
                pointer_to("i_mapping", "address_space"),
                member("i_ino", number),
                links,
                embedded("i_rdev", "dev_t"),
                embedded("i_size", "loff_t"),
                embedded("i_lock", "spinlock_t"),
                embedded("i_rwsem", "rw_semaphore"),
                embedded("i_hash", "hlist_node"),
                embedded("i_lru", "list_head"),
                embedded("i_sb_list", "list_head"),
                aliases,
                embedded("i_count", "atomic_t"),
                embedded("i_data", "address_space"),
                embedded("i_devices", "list_head"),
                member("i_private", void_pointer()),
            ],
        )
    }

    fn dentry(&mut self) -> Result<(), MockError> {
        let style = self.style;
        let parts =
            self.types.anonymous(false, vec![embedded("hash", "u32"), embedded("len", "u32")])?;
        let hash = self.types.anonymous(true, vec![parts, embedded("hash_len", "u64")])?;
        let name = Type::Pointer(Box::new(Type::Const(Box::new(U8))));
        self.fixed("qstr", vec![hash, member("name", name)])?;
        let alias = vec![embedded("d_alias", "hlist_node"), embedded("d_rcu", "callback_head")];
        let mut members = vec![
            member("d_flags", U32),
            member("d_seq", U32),
            embedded("d_hash", "hlist_bl_node"),
            pointer_to("d_parent", "dentry"),
            pointer_to("d_inode", "inode"),
            pointer_to("d_op", "dentry_operations"),
            pointer_to("d_sb", "super_block"),
            member("d_time", U64),
            member("d_fsdata", void_pointer()),
            embedded("d_lru", "list_head"),
        ];
        if style >= KernelStyle::V7_2 {
            let constant = Type::Const(Box::new(Type::Named("qstr")));
            let names = vec![embedded("__d_name", "qstr"), member("d_name", constant)];
            members.push(self.types.anonymous(true, names)?);
            let text = array(U8, INLINE_NAME);
            self.types.union(
                "shortname_store",
                vec![member("string", text), member("words", array(U64, INLINE_NAME / 8))],
            )?;
            members.push(embedded("d_shortname", "shortname_store"));
            members.push(self.types.anonymous(true, alias)?);
        } else {
            members.push(embedded("d_name", "qstr"));
            members.push(member("d_iname", array(U8, INLINE_NAME)));
            let alias = self.types.lay_out(true, alias)?;
            members.push(member("d_u", Type::Anonymous(alias)));
        }
        if style >= KernelStyle::V6_12 {
            members.extend([embedded("d_sib", "hlist_node"), embedded("d_children", "hlist_head")]);
        } else {
            members.extend([embedded("d_child", "list_head"), embedded("d_subdirs", "list_head")]);
        }
        self.shuffled("dentry", members)
    }

    fn super_block(&mut self) -> Result<(), MockError> {
        let mounts = match self.style {
            KernelStyle::V5_10 | KernelStyle::V6_1 | KernelStyle::V6_12 => {
                embedded("s_mounts", "list_head")
            }
            KernelStyle::V7_2 => pointer_to("s_mounts", "mount"),
        };
        self.shuffled(
            "super_block",
            vec![
                embedded("s_list", "list_head"),
                embedded("s_dev", "dev_t"),
                member("s_blocksize", U64),
                pointer_to("s_type", "file_system_type"),
                pointer_to("s_op", "super_operations"),
                member("s_flags", U64),
                member("s_magic", U64),
                pointer_to("s_root", "dentry"),
                embedded("s_umount", "rw_semaphore"),
                embedded("s_active", "atomic_t"),
                mounts,
                pointer_to("s_bdev", "block_device"),
                embedded("s_instances", "hlist_node"),
                member("s_id", array(CHAR, 32)),
                embedded("s_inode_list_lock", "spinlock_t"),
                embedded("s_inodes", "list_head"),
            ],
        )
    }

    fn mount(&mut self) -> Result<(), MockError> {
        let mut inner = vec![
            pointer_to("mnt_root", "dentry"),
            pointer_to("mnt_sb", "super_block"),
            member("mnt_flags", I32),
        ];
        if self.style >= KernelStyle::V6_12 {
            inner.push(pointer_to("mnt_idmap", "mnt_idmap"));
        }
        self.shuffled("vfsmount", inner)?;
        let mut members = vec![
            embedded("mnt_hash", "hlist_node"),
            pointer_to("mnt_parent", "mount"),
            pointer_to("mnt_mountpoint", "dentry"),
            embedded("mnt", "vfsmount"),
            embedded("mnt_mounts", "list_head"),
            embedded("mnt_child", "list_head"),
            text("mnt_devname"),
            embedded("mnt_list", "list_head"),
            pointer_to("mnt_ns", "mnt_namespace"),
            member("mnt_id", I32),
        ];
        if self.style >= KernelStyle::V7_2 {
            let back = Type::Pointer(Box::new(Type::Pointer(Box::new(Type::Named("mount")))));
            members
                .extend([pointer_to("mnt_next_for_sb", "mount"), member("mnt_pprev_for_sb", back)]);
        } else {
            members.push(embedded("mnt_instance", "list_head"));
        }
        self.shuffled("mount", members)
    }

    /// Structures in which file systems embed an inode.
    fn containers(&mut self) -> Result<(), MockError> {
        self.shuffled(
            "block_device",
            vec![
                embedded("bd_dev", "dev_t"),
                member("bd_openers", I32),
                pointer_to("bd_disk", "gendisk"),
                member("bd_nr_sectors", U64),
                pointer_to("bd_inode", "inode"),
            ],
        )?;
        self.shuffled(
            "bdev_inode",
            vec![embedded("bdev", "block_device"), embedded("vfs_inode", "inode")],
        )?;
        self.shuffled(
            "ext4_inode_info",
            vec![
                member("i_data", array(U32, 15)),
                member("i_disksize", U64),
                embedded("i_data_sem", "rw_semaphore"),
                embedded("vfs_inode", "inode"),
                member("i_block_group", U32),
            ],
        )?;
        self.shuffled(
            "shmem_inode_info",
            vec![
                embedded("lock", "spinlock_t"),
                member("alloced", U64),
                member("swapped", U64),
                embedded("swaplist", "list_head"),
                embedded("vfs_inode", "inode"),
            ],
        )
    }
}
