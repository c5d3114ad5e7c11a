//! Kernel modules and their dependencies in load order.
//!
//! Packages lack `modules.dep`, which is made at installation. Dependencies are therefore read from
//! the modules themselves: the `.modinfo` section is a list of NUL-terminated `key=value` strings,
//! and `depends=` lists the direct dependencies, separated by commas.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::lab::command::{Tool, XZ, ZSTD};
use crate::lab::error::{Error, Result};

/// The modules of one kernel, by name.
#[derive(Debug, Default)]
pub(crate) struct ModuleTree {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

/// A module ready to be inserted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Name with underscores, like `virtio_blk`.
    pub(crate) name: String,
    /// The relocatable ELF file, decompressed.
    pub(crate) data: Vec<u8>,
}

impl ModuleTree {
    /// Indexes `.../lib/modules/RELEASE`.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let mut pending = vec![folder.join("kernel")];
        while let Some(folder) = pending.pop() {
            for entry in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
                let path = entry.map_err(Error::io("list", &folder))?.path();
                if path.is_dir() {
                    pending.push(path);
                } else if let Some(name) = module_name(&path) {
                    tree.files.insert(name, path);
                }
            }
        }
        tree.built_in = built_in(folder);
        Ok(tree)
    }

    /// Loads the modules `wanted` and everything they depend on, dependencies first.
    ///
    /// # Errors
    /// If a module exists neither as a file nor built in, or cannot be decompressed.
    pub(crate) fn load(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        resolve(wanted, |name| {
            if self.built_in.contains(name) {
                return Ok(None);
            }
            let Some(path) = self.files.get(name) else {
                let hint = if self.built_in.is_empty() {
                    "; modules.builtin is missing (since Debian 14 it is in package linux-base-*)"
                } else {
                    ""
                };
                return Err(Error::Kernel(format!(
                    "no module {name}, neither as a file nor built in{hint}"
                )));
            };
            decompress(path).map(Some)
        })
    }
}

/// Names of the built-in modules. `modules.builtin` lists their paths. Newer packages list some
/// only in `modules.builtin.modinfo`, as NUL-terminated `name.key=value` strings.
fn built_in(folder: &Path) -> BTreeSet<String> {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap_or_default();
    let (paths, info) = (read("modules.builtin"), read("modules.builtin.modinfo"));
    let (paths, info) = (String::from_utf8_lossy(&paths), String::from_utf8_lossy(&info));
    let listed = paths.lines().filter_map(|line| module_name(Path::new(line)));
    let described = info.split('\0').filter_map(|text| Some(normal(text.split_once('.')?.0)));
    listed.chain(described).collect()
}

/// Loads modules depth-first, dependencies before dependents. `read` returns a module's bytes, or
/// `None` if it is built in. Cycles, which the kernel's build refuses, are not followed.
fn resolve(
    wanted: &[&str],
    mut read: impl FnMut(&str) -> Result<Option<Vec<u8>>>,
) -> Result<Vec<Module>> {
    enum Step {
        Visit(String),
        Emit(Module),
    }
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    let mut steps: Vec<_> = wanted.iter().rev().map(|name| Step::Visit(normal(name))).collect();
    while let Some(step) = steps.pop() {
        match step {
            Step::Emit(module) => order.push(module),
            Step::Visit(name) => {
                if !seen.insert(name.clone()) {
                    continue;
                }
                let Some(data) = read(&name)? else { continue };
                let needs = dependencies(&data);
                steps.push(Step::Emit(Module { name, data }));
                steps.extend(needs.into_iter().rev().map(Step::Visit));
            }
        }
    }
    Ok(order)
}

/// The `depends=` value of a module's `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let found = module.windows(KEY.len()).position(|window| window == KEY);
    let value = found.and_then(|at| module.get(at + KEY.len()..)).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(normal).collect()
}

/// `crypto/some-name.ko.xz` is module `some_name`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = file.strip_suffix(".xz").or_else(|| file.strip_suffix(".zst")).unwrap_or(file);
    stem.strip_suffix(".ko").map(normal)
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn decompress(path: &Path) -> Result<Vec<u8>> {
    let with = |tool: Tool| -> Result<Vec<u8>> {
        Ok(tool.run(tool.command().arg("-dc").arg(path))?.stdout)
    };
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => with(XZ),
        Some("zst") => with(ZSTD),
        Some(_) | None => std::fs::read(path).map_err(Error::io("read", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\u{7f}ELF\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    fn order(wanted: &[&str]) -> Result<Vec<String>> {
        let modules = resolve(wanted, |name| match name {
            "virtio_blk" => Ok(Some(module("virtio,virtio_ring"))),
            "virtio_pci" => Ok(Some(module("virtio_ring,virtio-modern"))),
            "virtio_modern" | "virtio_ring" => Ok(Some(module("virtio"))),
            "virtio" => Ok(Some(module(""))),
            "ext4" => Ok(None),
            "chicken" => Ok(Some(module("egg"))),
            "egg" => Ok(Some(module("chicken"))),
            other => Err(Error::Kernel(format!("no {other}"))),
        })?;
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let expected = ["virtio", "virtio_ring", "virtio_modern", "virtio_pci", "virtio_blk"];
        assert_eq!(order(&["virtio-pci", "ext4", "virtio_blk"]).unwrap(), expected);
    }

    #[test]
    fn cycles_end_and_missing_modules_are_named() {
        assert_eq!(order(&["chicken"]).unwrap(), ["egg", "chicken"]);
        assert!(order(&["zfs"]).unwrap_err().to_string().contains("zfs"));
    }

    #[test]
    fn names_lose_folders_dashes_and_compression() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("kernel/a/virtio-rng.ko.xz").as_deref(), Some("virtio_rng"));
        assert_eq!(name("x.ko.zst").as_deref(), Some("x"));
        assert_eq!(name("modules.order"), None);
    }

    #[test]
    fn a_tree_knows_what_is_built_in() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("kernel/fs")).unwrap();
        std::fs::write(at("kernel/fs/xfs.ko"), module("libcrc32c")).unwrap();
        std::fs::write(at("modules.builtin"), "kernel/lib/libcrc32c.ko\n").unwrap();
        let info = "virtio-pci.license=GPL\0virtio-pci.version=1\0";
        std::fs::write(at("modules.builtin.modinfo"), info).unwrap();
        let tree = ModuleTree::open(folder.path()).unwrap();
        let names: Vec<_> = tree
            .load(&["virtio_pci", "xfs"])
            .unwrap()
            .into_iter()
            .map(|module| module.name)
            .collect();
        assert_eq!(names, ["xfs"]);
        assert!(tree.load(&["btrfs"]).is_err());
    }
}
