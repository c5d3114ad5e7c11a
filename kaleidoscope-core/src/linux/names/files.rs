//! Identification of the file that a mapping belongs to.

use crate::addr::Gva;
use crate::linux::names::budget::NameBudget;
use crate::linux::names::dentries::Paths;
use crate::linux::profile::Fields;
use crate::linux::view::KernelView;
use crate::memory::GuestMemory;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

/// The file system type of block device inodes.
const BLOCK_DEVICE_FS: &str = "bdev";

/// Maximum number of file systems in the cache; a machine full of containers has a few thousand.
const MAX_FILE_SYSTEMS: usize = 1 << 14;

/// A file with cached pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FileIdentity {
    pub(crate) fs_type: Rc<str>,
    /// Device number as reported by stat(2): that of the file's file system, or of the block device
    /// itself.
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Absolute path in the initial mount namespace; empty if the file has none.
    pub(crate) path: String,
}

impl FileIdentity {
    pub(crate) fn is_block_device(&self) -> bool {
        &*self.fs_type == BLOCK_DEVICE_FS
    }
}

impl fmt::Display for FileIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.fs_type, self.device, self.inode, self.path)
    }
}

/// Resolves mappings to files.
pub(crate) struct Files<'v, 'm, M: ?Sized> {
    view: &'v KernelView<'m, M>,
    fields: &'v Fields,
    paths: Paths<'v, 'm, M>,
    /// Type and device number of each file system.
    supers: HashMap<Gva, Option<(Rc<str>, u64)>>,
}

impl<'v, 'm, M: GuestMemory + ?Sized> Files<'v, 'm, M> {
    pub(in crate::linux) fn new(
        view: &'v KernelView<'m, M>,
        fields: &'v Fields,
        budget: NameBudget,
    ) -> Self {
        Self { view, fields, paths: Paths::new(view, fields, budget), supers: HashMap::new() }
    }

    /// The remaining name budget.
    pub(in crate::linux) fn budget(&mut self) -> &mut NameBudget {
        self.paths.budget()
    }

    /// The file whose pages a mapping holds; `None` unless the file's inode points back at the
    /// mapping.
    pub(crate) fn identify(&mut self, mapping: Gva) -> Option<FileIdentity> {
        let (view, fields) = (self.view, self.fields);
        let inode = view.read_pointer_field(mapping, fields.mapping_host?)?;
        let points_back = view.read_pointer_field(inode, fields.inode_mapping?)?;
        if points_back != mapping {
            return None;
        }
        let super_block = view.read_pointer_field(inode, fields.inode_super?)?;
        let (fs_type, device) = self.super_block(super_block)?;
        let number = view.read_field(inode, fields.inode_number?)?;
        let mut file = FileIdentity { fs_type, device, inode: number, path: String::new() };
        if file.is_block_device() {
            let rdev = fields.inode_rdev.and_then(|o| inode.checked_add(o));
            file.device = rdev.and_then(|at| view.read_u32(at)).map_or(0, stat_device);
        } else {
            file.path = self.paths.of_inode(inode, super_block).unwrap_or_default();
        }
        Some(file)
    }

    fn super_block(&mut self, address: Gva) -> Option<(Rc<str>, u64)> {
        let (view, fields) = (self.view, self.fields);
        let read = || {
            let fs_type = view.read_pointer_field(address, fields.super_type?)?;
            let name = view.read_pointer_field(fs_type, fields.type_name?)?;
            let device = view.read_u32(address.checked_add(fields.super_device?)?)?;
            Some((Rc::from(view.read_string(name)?), stat_device(device)))
        };
        if let Some(known) = self.supers.get(&address) {
            return known.clone();
        }
        let found = read();
        if self.supers.len() < MAX_FILE_SYSTEMS {
            self.supers.insert(address, found.clone());
        }
        found
    }
}

/// Converts a kernel device number (12 bits major, 20 bits minor) to the encoding of stat(2).
fn stat_device(device: u32) -> u64 {
    let (major, minor) = (device >> 20, device & 0xf_ffff);
    u64::from((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_those_of_stat() {
        // makedev(254, 1) and makedev(8, 300) of glibc.
        assert_eq!(stat_device(254 << 20 | 1), 0xfe01);
        assert_eq!(stat_device(8 << 20 | 300), 0x10082c);
    }
}
