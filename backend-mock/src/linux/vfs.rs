//! File systems in the kernel: super blocks, mounts, directory entries, inodes.

use super::KernelStyle;
use super::image::Section;
use super::kernel::{Kernel, Object};
use super::schema::INLINE_NAME;
use super::truth::FileKind;
use crate::MockError;
use kaleidoscope_core::addr::Gfn;
use std::collections::BTreeMap;

/// Mode bits of a directory, a regular file and a block device.
const DIRECTORY: u64 = 0o040_755;
const REGULAR: u64 = 0o100_644;
const BLOCK: u64 = 0o060_660;

/// A mounted or internal file system.
#[derive(Clone, Debug)]
pub(super) struct FileSystem {
    pub(super) ty: &'static str,
    pub(super) device: u32,
    pub(super) super_block: Object,
    pub(super) root: Object,
    /// Its mount point; `None` for internal file systems.
    pub(super) at: Option<String>,
    mount: Option<Object>,
    next_inode: u64,
}

/// A directory.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    pub(super) fs: usize,
    pub(super) dentry: Object,
    /// Absolute path without a trailing slash; empty for the root.
    pub(super) path: String,
}

/// A file with its page cache.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) kind: FileKind,
    pub(super) fs: usize,
    pub(super) inode: u64,
    pub(super) path: Option<String>,
    pub(super) mapping: Object,
    pub(super) folios: BTreeMap<u64, (Gfn, u32)>,
    /// Whether it is an executable program.
    pub(super) is_program: bool,
}

/// All file systems.
#[derive(Clone, Debug, Default)]
pub(super) struct Vfs {
    pub(super) systems: Vec<FileSystem>,
    pub(super) directories: Vec<Directory>,
    types: BTreeMap<&'static str, Object>,
}

/// How a file system stores its inodes: cache, structure, member.
fn container(ty: &str) -> (&'static str, &'static str, &'static str) {
    match ty {
        "ext4" => ("ext4_inode_cache", "ext4_inode_info", "vfs_inode"),
        "tmpfs" | "devtmpfs" | "rootfs" => ("shmem_inode_cache", "shmem_inode_info", "vfs_inode"),
        "bdev" => ("bdev_cache", "bdev_inode", "vfs_inode"),
        _ => ("inode_cache", "inode", ""),
    }
}

impl Kernel {
    /// Allocates an object from the general cache for its size.
    pub(super) fn new_general(&mut self, ty: &'static str) -> Result<Object, MockError> {
        let size = self.types.size_of(ty)?.next_power_of_two().max(8);
        let name = if size < 1024 {
            format!("kmalloc-{size}")
        } else {
            format!("kmalloc-{}k", size / 1024)
        };
        self.new_object(&name, ty)
    }

    /// Creates a super block with its root directory, not mounted yet.
    pub(super) fn new_file_system(
        &mut self,
        vfs: &mut Vfs,
        ty: &'static str,
        device: u32,
        id: &str,
    ) -> Result<usize, MockError> {
        let type_object = match vfs.types.get(ty) {
            Some(&known) => known,
            None => {
                let bytes = self.types.size_of("file_system_type")?;
                let gva = self.image.place(Section::Data, &format!("{ty}_fs_type"), bytes, 8)?;
                let object = self.object(gva, "file_system_type")?;
                let name = self.image.place(Section::Rodata, "", ty.len() as u64 + 1, 1)?;
                self.store_bytes(name.0, ty.as_bytes())?;
                self.set(object, "name", name.0)?;
                vfs.types.insert(ty, object);
                object
            }
        };
        let super_block = self.new_general("super_block")?;
        self.set(super_block, "s_dev", device.into())?;
        self.set(super_block, "s_type", type_object.gva.0)?;
        self.set(super_block, "s_blocksize", 4096)?;
        self.set_text(super_block, "s_id", id)?;
        let inodes = self.address(super_block, "s_inodes")?;
        self.list_init(inodes)?;
        if self.style < KernelStyle::V7_2 {
            let mounts = self.address(super_block, "s_mounts")?;
            self.list_init(mounts)?;
        }
        let (all, node) =
            (self.image.symbol("super_blocks")?, self.address(super_block, "s_list")?);
        self.list_append(all.0, node)?;
        let number = vfs.systems.len();
        let root = Object { ty: "dentry", ..super_block };
        let next_inode = 2;
        vfs.systems.push(FileSystem {
            ty,
            device,
            super_block,
            root,
            at: None,
            mount: None,
            next_inode,
        });
        let inode = self.new_inode(vfs, number, DIRECTORY)?.0;
        let root = self.new_dentry(super_block, None, "/", Some(inode))?;
        self.set(super_block, "s_root", root.gva.0)?;
        if let Some(system) = vfs.systems.get_mut(number) {
            system.root = root;
        }
        Ok(number)
    }

    /// Creates an inode; returns it and its number.
    pub(super) fn new_inode(
        &mut self,
        vfs: &mut Vfs,
        fs: usize,
        mode: u64,
    ) -> Result<(Object, u64), MockError> {
        let skipped = 1 + self.rng.below(40);
        let system = vfs.systems.get_mut(fs).ok_or(MockError::Knobs("no such file system"))?;
        let number = system.next_inode;
        system.next_inode += skipped;
        let super_block = system.super_block;
        let (cache, ty, member) = container(system.ty);
        let outer = self.new_object(cache, ty)?;
        let inode = if member.is_empty() { outer } else { self.part(outer, member, "inode")? };
        let mapping = self.part(inode, "i_data", "address_space")?;
        self.set(inode, "i_mode", mode)?;
        self.set(inode, "i_sb", super_block.gva.0)?;
        self.set(inode, "i_mapping", mapping.gva.0)?;
        self.set(inode, "i_ino", number)?;
        self.set(inode, "i_nlink", 1)?;
        self.set(inode, "i_count", 1)?;
        self.set(mapping, "host", inode.gva.0)?;
        let (all, node) =
            (self.address(super_block, "s_inodes")?, self.address(inode, "i_sb_list")?);
        self.list_append(all, node)?;
        Ok((inode, number))
    }

    /// Creates a directory entry; without a parent, it is a root or disconnected.
    pub(super) fn new_dentry(
        &mut self,
        super_block: Object,
        parent: Option<Object>,
        name: &str,
        inode: Option<Object>,
    ) -> Result<Object, MockError> {
        let dentry = self.new_object("dentry", "dentry")?;
        self.set(dentry, "d_parent", parent.unwrap_or(dentry).gva.0)?;
        self.set(dentry, "d_sb", super_block.gva.0)?;
        let (text, inline) = match self.style {
            KernelStyle::V7_2 => ("__d_name", "d_shortname"),
            KernelStyle::V5_10 | KernelStyle::V6_1 | KernelStyle::V6_12 => ("d_name", "d_iname"),
        };
        let place = if name.len() < INLINE_NAME as usize {
            let place = self.address(dentry, inline)?;
            self.store_bytes(place, name.as_bytes())?;
            place
        } else {
            self.new_text(name)?
        };
        let name_at = self.part(dentry, text, "qstr")?;
        self.set(name_at, "name", place)?;
        self.set(name_at, "len", name.len() as u64)?;
        let hash = self.rng.next_u64() & 0xffff_ffff;
        self.set(name_at, "hash", hash)?;
        if let Some(inode) = inode {
            self.set(dentry, "d_inode", inode.gva.0)?;
            let (head, node) =
                (self.address(inode, "i_dentry")?, self.address(dentry, self.alias())?);
            self.hlist_prepend(head, node)?;
        }
        if parent.is_some() {
            // An entry counts as hashed if its `pprev` is set.
            let hash = self.address(dentry, "d_hash.pprev")?;
            self.store(hash, hash - 8)?;
        }
        Ok(dentry)
    }

    fn alias(&self) -> &'static str {
        if self.style < KernelStyle::V7_2 { "d_u.d_alias" } else { "d_alias" }
    }

    /// Removes a directory entry from the tree, as deleting the file does.
    pub(super) fn unlink(&mut self, dentry: Object, inode: Object) -> Result<(), MockError> {
        self.set(dentry, "d_hash.pprev", 0)?;
        self.set(inode, "i_nlink", 0)
    }

    /// Mounts a file system, with its directory `root`, on a directory of another one; without a
    /// directory, the mount has no parent.
    pub(super) fn new_mount(
        &mut self,
        vfs: &Vfs,
        fs: usize,
        root: Object,
        on: Option<(usize, Object)>,
    ) -> Result<Object, MockError> {
        let system = vfs.systems.get(fs).ok_or(MockError::Knobs("no such file system"))?;
        let super_block = system.super_block;
        let mount = self.new_object("mnt_cache", "mount")?;
        let parent = on.and_then(|(parent, point)| Some((vfs.systems.get(parent)?.mount?, point)));
        let (parent, point) = parent.unwrap_or((mount, root));
        self.set(mount, "mnt_parent", parent.gva.0)?;
        self.set(mount, "mnt_mountpoint", point.gva.0)?;
        self.set(mount, "mnt.mnt_root", root.gva.0)?;
        self.set(mount, "mnt.mnt_sb", super_block.gva.0)?;
        if self.style < KernelStyle::V7_2 {
            let (all, node) =
                (self.address(super_block, "s_mounts")?, self.address(mount, "mnt_instance")?);
            self.list_append(all, node)?;
        } else {
            let head = self.address(super_block, "s_mounts")?;
            let first = self.load(head)?;
            self.set(mount, "mnt_next_for_sb", first)?;
            self.set(mount, "mnt_pprev_for_sb", head)?;
            self.store(head, mount.gva.0)?;
        }
        Ok(mount)
    }

    /// Creates a directory in a directory.
    pub(super) fn new_directory(
        &mut self,
        vfs: &mut Vfs,
        parent: usize,
        name: &str,
    ) -> Result<usize, MockError> {
        let Directory { fs, dentry, path } =
            vfs.directories.get(parent).cloned().ok_or(MockError::Knobs("no such directory"))?;
        let inode = self.new_inode(vfs, fs, DIRECTORY)?.0;
        let dentry = self.new_dentry(inode_super(vfs, fs)?, Some(dentry), name, Some(inode))?;
        vfs.directories.push(Directory { fs, dentry, path: format!("{path}/{name}") });
        Ok(vfs.directories.len() - 1)
    }

    /// Mounts a file system on a directory; returns its root directory.
    pub(super) fn mount_on(
        &mut self,
        vfs: &mut Vfs,
        fs: usize,
        directory: Option<usize>,
    ) -> Result<usize, MockError> {
        let on = directory.and_then(|d| vfs.directories.get(d)).cloned();
        let root =
            vfs.systems.get(fs).map(|s| s.root).ok_or(MockError::Knobs("no such file system"))?;
        let place = on.as_ref().map(|d| (d.fs, d.dentry));
        let mount = self.new_mount(vfs, fs, root, place)?;
        let path = on.map(|d| d.path).unwrap_or_default();
        if let Some(system) = vfs.systems.get_mut(fs) {
            system.mount = Some(mount);
            system.at = Some(path.clone());
        }
        vfs.directories.push(Directory { fs, dentry: root, path });
        Ok(vfs.directories.len() - 1)
    }

    /// Creates a file in a directory.
    pub(super) fn new_file(
        &mut self,
        vfs: &mut Vfs,
        directory: usize,
        name: &str,
    ) -> Result<(File, Object), MockError> {
        let Directory { fs, dentry, path } =
            vfs.directories.get(directory).cloned().ok_or(MockError::Knobs("no such directory"))?;
        let (inode, number) = self.new_inode(vfs, fs, REGULAR)?;
        let dentry = self.new_dentry(inode_super(vfs, fs)?, Some(dentry), name, Some(inode))?;
        let is_memory = vfs.systems.get(fs).is_some_and(|s| s.ty == "tmpfs");
        let file = File {
            kind: if is_memory { FileKind::Memory } else { FileKind::Regular },
            fs,
            inode: number,
            path: Some(format!("{path}/{name}")),
            mapping: self.part(inode, "i_data", "address_space")?,
            folios: BTreeMap::new(),
            is_program: false,
        };
        Ok((file, dentry))
    }

    /// Creates a nameless file, in no directory of its file system.
    pub(super) fn new_nameless(
        &mut self,
        vfs: &mut Vfs,
        fs: usize,
        name: &str,
    ) -> Result<File, MockError> {
        let (inode, number) = self.new_inode(vfs, fs, REGULAR)?;
        self.new_dentry(inode_super(vfs, fs)?, None, name, Some(inode))?;
        self.set(inode, "i_nlink", 0)?;
        let mapping = self.part(inode, "i_data", "address_space")?;
        let (path, folios) = (None, BTreeMap::new());
        Ok(File {
            kind: FileKind::Memory,
            fs,
            inode: number,
            path,
            mapping,
            folios,
            is_program: false,
        })
    }

    /// Creates a block device: an inode of the internal file system, and a node in `/dev` that
    /// shares its page cache.
    pub(super) fn new_block_device(
        &mut self,
        vfs: &mut Vfs,
        bdev: usize,
        dev_directory: usize,
        name: &str,
        device: u32,
    ) -> Result<File, MockError> {
        let (inode, _) = self.new_inode(vfs, bdev, BLOCK)?;
        self.set(inode, "i_rdev", device.into())?;
        // Until 6.x, the inode number is the device number; it is unique in any case.
        self.set(inode, "i_ino", device.into())?;
        let mapping = self.part(inode, "i_data", "address_space")?;
        let Directory { fs, dentry, .. } = vfs
            .directories
            .get(dev_directory)
            .cloned()
            .ok_or(MockError::Knobs("no such directory"))?;
        let (node, _) = self.new_inode(vfs, fs, BLOCK)?;
        self.set(node, "i_rdev", device.into())?;
        self.set(node, "i_mapping", mapping.gva.0)?;
        self.new_dentry(inode_super(vfs, fs)?, Some(dentry), name, Some(node))?;
        let (inode, path, folios) = (u64::from(device), None, BTreeMap::new());
        Ok(File {
            kind: FileKind::Block,
            fs: bdev,
            inode,
            path,
            mapping,
            folios,
            is_program: false,
        })
    }
}

fn inode_super(vfs: &Vfs, fs: usize) -> Result<Object, MockError> {
    vfs.systems.get(fs).map(|s| s.super_block).ok_or(MockError::Knobs("no such file system"))
}

/// A device number as the kernel encodes it.
pub(super) fn encode_device(major: u32, minor: u32) -> u32 {
    major << 20 | minor
}
