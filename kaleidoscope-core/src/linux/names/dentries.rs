//! Paths from directory entries and mounts.
//!
//! A dentry's path is the chain of names up to its file system's root; the mount point of that root
//! comes from the file system's mounts. Chains come from guest memory, so their length is limited,
//! and all of them are charged to one budget.

use crate::addr::Gva;
use crate::guest_os::name::escape;
use crate::linux::names::budget::NameBudget;
use crate::linux::profile::Fields;
use crate::linux::view::KernelView;
use crate::memory::GuestMemory;
use std::collections::HashMap;
use std::rc::Rc;

/// Maximum depth of a directory.
const MAX_DEPTH: usize = 256;

/// Maximum length of a path in bytes: `PATH_MAX`, with every byte written as an escape of four.
const MAX_PATH: usize = 4 * 4096;

/// Maximum number of mounts to examine per file system, and maximum depth of nested mounts.
const MAX_MOUNTS: usize = 64;

/// Maximum number of file systems in the cache; a machine full of containers has a few thousand.
const MAX_FILE_SYSTEMS: usize = 1 << 14;

/// Maximum length of a file name in bytes (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// Paths of dentries, cached so that a directory's path is built once.
pub(in crate::linux) struct Paths<'v, 'm, M: ?Sized> {
    view: &'v KernelView<'m, M>,
    fields: &'v Fields,
    budget: NameBudget,
    directories: HashMap<Gva, Rc<str>>,
    mounts: HashMap<Gva, Rc<str>>,
}

impl<'v, 'm, M: GuestMemory + ?Sized> Paths<'v, 'm, M> {
    pub(in crate::linux) fn new(
        view: &'v KernelView<'m, M>,
        fields: &'v Fields,
        budget: NameBudget,
    ) -> Self {
        Self { view, fields, budget, directories: HashMap::new(), mounts: HashMap::new() }
    }

    /// The remaining name budget.
    pub(in crate::linux) fn budget(&mut self) -> &mut NameBudget {
        &mut self.budget
    }

    /// The absolute path of an inode through its first dentry; `None` if it has no dentry.
    pub(in crate::linux) fn of_inode(&mut self, inode: Gva, super_block: Gva) -> Option<String> {
        let fields = self.fields;
        let alias = self.view.read_pointer_field(inode, fields.inode_aliases?)?;
        let dentry = Gva(alias.0.checked_sub(fields.dentry_alias?)?);
        let parent = self.view.read_pointer_field(dentry, fields.dentry_parent?)?;
        let root = self.view.read_pointer_field(super_block, fields.super_root?)?;
        let name = self.name(dentry)?;
        // An unhashed dentry has been deleted, or never was in a directory.
        let hash = fields.dentry_hash.and_then(|o| o.checked_add(8));
        let is_unhashed = hash.is_some_and(|o| self.view.read_field(dentry, o) == Some(0));
        if dentry == root {
            return Some(self.mount_path(super_block).to_string());
        }
        let suffix = if is_unhashed { " (deleted)" } else { "" };
        if parent == dentry {
            return Some(format!("/{name}{suffix}"));
        }
        let mount = self.mount_path(super_block);
        let directory = self.directory(parent)?;
        let path = format!("{mount}{directory}/{name}{suffix}");
        (path.len() <= MAX_PATH).then_some(path)
    }

    /// Path of a directory below its file system's root; empty for the root itself.
    fn directory(&mut self, dentry: Gva) -> Option<Rc<str>> {
        let mut chain = Vec::new();
        let mut at = dentry;
        let mut path: Rc<str> = loop {
            if let Some(path) = self.directories.get(&at) {
                break Rc::clone(path);
            }
            let parent = self.view.read_pointer_field(at, self.fields.dentry_parent?)?;
            if parent == at {
                break Rc::from("");
            }
            if chain.len() == MAX_DEPTH {
                return None;
            }
            self.budget.charge_step()?;
            chain.push(at);
            at = parent;
        };
        for &dentry in chain.iter().rev() {
            let name = self.name(dentry)?;
            if path.len().saturating_add(name.len()) >= MAX_PATH {
                return None;
            }
            path = Rc::from(format!("{path}/{name}"));
            self.budget.charge_name(&path)?;
            self.directories.insert(dentry, Rc::clone(&path));
        }
        Some(path)
    }

    /// A dentry's name, escaped.
    fn name(&self, dentry: Gva) -> Option<String> {
        let fields = self.fields;
        let name = dentry.checked_add(fields.dentry_name?)?;
        let length = self.view.read_u32(name.checked_add(fields.name_length?)?)?;
        let length = usize::try_from(length).ok().filter(|&l| l <= MAX_NAME)?;
        let start = self.view.read_pointer_field(name, fields.name_text?)?;
        let mut buf = [0; MAX_NAME];
        let buf = buf.get_mut(..length)?;
        self.view.read(start, buf)?;
        Some(escape(buf))
    }

    /// Where a file system is mounted, without the final slash; empty for the root, or if unknown.
    fn mount_path(&mut self, super_block: Gva) -> Rc<str> {
        if let Some(path) = self.mounts.get(&super_block) {
            return Rc::clone(path);
        }
        let path = self.find_mount(super_block).and_then(|mount| self.path_to(mount));
        let path: Rc<str> = Rc::from(path.unwrap_or_default());
        if self.mounts.len() < MAX_FILE_SYSTEMS {
            self.mounts.insert(super_block, Rc::clone(&path));
        }
        path
    }

    /// A mount of the whole file system in a mount tree.
    fn find_mount(&mut self, super_block: Gva) -> Option<Gva> {
        let (view, fields) = (self.view, self.fields);
        let root = view.read_pointer_field(super_block, fields.super_root?)?;
        let head = super_block.checked_add(fields.super_mounts?)?;
        let mut link = view.read_pointer(head)?;
        for _ in 0..MAX_MOUNTS {
            self.budget.charge_step()?;
            // Until 6.16, a circular list links the mounts; since 6.17, plain pointers that end in
            // null.
            let (mount, next_offset) = match (fields.mount_next, fields.mount_instance) {
                (Some(next), _) => (link, next),
                (None, Some(_)) if link == head => return None,
                (None, Some(instance)) => (Gva(link.0.checked_sub(instance)?), instance),
                (None, None) => return None,
            };
            let mounted_root = view.read_pointer_field(mount, fields.mount_root?)?;
            let parent = view.read_pointer_field(mount, fields.mount_parent?)?;
            if mounted_root == root && parent != mount {
                return Some(mount);
            }
            link = view.read_pointer_field(mount, next_offset)?;
        }
        None
    }

    fn path_to(&mut self, mount: Gva) -> Option<String> {
        let mut path = String::new();
        let mut mount = mount;
        for _ in 0..MAX_MOUNTS {
            self.budget.charge_step()?;
            let parent = self.view.read_pointer_field(mount, self.fields.mount_parent?)?;
            if parent == mount {
                return Some(path);
            }
            let point = self.view.read_pointer_field(mount, self.fields.mount_point?)?;
            path = format!("{}{path}", self.directory(point)?);
            if path.len() > MAX_PATH {
                return None;
            }
            mount = parent;
        }
        None
    }
}
