//! Finds the guest's kernel image and its modules in packages or an unpacked folder.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "a tree in the cache is made again if it is not whole"
    )
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::interrupt::{Undo, arm_with};

use crate::lab::build::packages;
use crate::lab::error::{Error, Result};

/// A kernel image and the folder of its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Release, like `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// `.../lib/modules/RELEASE`, if the tree has one.
    pub(crate) modules: Option<PathBuf>,
}

impl Kernel {
    /// Finds the requested kernel. `given` lists package archives and unpacked folders; if empty,
    /// the newest cloud kernel of the host's release is downloaded. `release` selects one of
    /// several kernels.
    ///
    /// # Errors
    /// If there is none, or several and no release was named.
    pub(crate) fn resolve(cache: &Path, given: &[PathBuf], release: Option<&str>) -> Result<Self> {
        let fetched;
        let given = if given.is_empty() {
            let package = packages::newest_cloud_kernel()?;
            fetched = packages::download(&cache.join("debs"), &[package])?;
            &fetched
        } else {
            given
        };
        let (archives, mut trees): (Vec<_>, Vec<_>) =
            given.iter().cloned().partition(|path| path.extension().is_some_and(|e| e == "deb"));
        if !archives.is_empty() {
            trees.push(unpack_once(cache, &archives)?);
        }
        Self::pick(Self::find_all(&trees)?, release)
    }

    /// All kernels in `trees`, by release. Images are `/boot/vmlinuz-RELEASE` or, since Debian 14,
    /// `/usr/lib/modules/RELEASE/vmlinuz`.
    fn find_all(trees: &[PathBuf]) -> Result<BTreeMap<String, Self>> {
        let mut images = BTreeMap::new();
        let mut modules = BTreeMap::new();
        for tree in trees {
            if !tree.is_dir() {
                return Err(Error::Kernel(format!(
                    "{} is neither a .deb nor a folder",
                    tree.display()
                )));
            }
            for (name, path) in entries(&tree.join("boot")) {
                if let Some(release) = name.strip_prefix("vmlinuz-") {
                    images.insert(release.to_owned(), path);
                }
            }
            for folder in ["lib/modules", "usr/lib/modules"] {
                for (release, path) in entries(&tree.join(folder)) {
                    let image = path.join("vmlinuz");
                    if image.is_file() {
                        images.insert(release.clone(), image);
                    }
                    if path.join("kernel").is_dir() {
                        modules.insert(release, path);
                    }
                }
            }
        }
        let kernels = images.into_iter().map(|(release, image)| {
            let modules = modules.remove(&release);
            (release.clone(), Self { release, image, modules })
        });
        Ok(kernels.collect())
    }

    fn pick(mut kernels: BTreeMap<String, Self>, release: Option<&str>) -> Result<Self> {
        let names = kernels.keys().cloned().collect::<Vec<_>>().join(", ");
        match release {
            Some(release) => kernels.remove(release).ok_or_else(|| {
                Error::Kernel(format!("no kernel {release} there (found: {names})"))
            }),
            None if kernels.len() > 1 => {
                Err(Error::Kernel(format!("several kernels; choose one with --release: {names}")))
            }
            None => kernels.pop_first().map(|(_, kernel)| kernel).ok_or_else(|| {
                Error::Kernel(
                    "no boot/vmlinuz-* and no lib/modules/*/vmlinuz there; --kernel takes packages \
                     (.deb), or the folder that they were unpacked in"
                        .to_owned(),
                )
            }),
        }
    }
}

/// Unpacks the archives together into one cached folder, named after them.
fn unpack_once(cache: &Path, archives: &[PathBuf]) -> Result<PathBuf> {
    let names: Vec<_> = archives
        .iter()
        .filter_map(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .filter_map(|name| name.split('_').next().map(str::to_owned))
        .collect();
    let tree = cache.join("kernels").join(names.join("+"));
    if tree.is_dir() {
        return Ok(tree);
    }
    // Unpack elsewhere and rename, so that an interrupted run leaves no partial folder.
    let partial = tree.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(Error::io("remove", &partial))?;
    }
    let make = || std::fs::create_dir_all(&partial).map_err(Error::io("create", &partial));
    let ((), armed) = arm_with(Undo::Remove(partial.clone()), make)?;
    for archive in archives {
        packages::unpack(archive, &partial)?;
    }
    armed
        .disarm_with(|| std::fs::rename(&partial, &tree))
        .map_err(Error::io("rename", &partial))?;
    Ok(tree)
}

/// Names and paths of the entries of `folder`; empty if it does not exist.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(found) = std::fs::read_dir(folder) else { return Vec::new() };
    found
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }

    #[test]
    fn old_and_new_layouts_are_found_and_chosen_by_release() {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        touch(&root.join("boot/vmlinuz-5.10-cloud"));
        touch(&root.join("lib/modules/5.10-cloud/kernel/a.ko"));
        touch(&root.join("usr/lib/modules/7.2-cloud/vmlinuz"));
        touch(&root.join("usr/lib/modules/7.2-cloud/kernel/a.ko.xz"));
        let given = [root.to_owned()];

        let message = Kernel::resolve(root, &given, None).unwrap_err().to_string();
        assert!(message.contains("5.10-cloud, 7.2-cloud"), "{message}");
        let new = Kernel::resolve(root, &given, Some("7.2-cloud")).unwrap();
        assert_eq!(new.image, root.join("usr/lib/modules/7.2-cloud/vmlinuz"));
        assert_eq!(new.modules, Some(root.join("usr/lib/modules/7.2-cloud")));
        let old = Kernel::resolve(root, &given, Some("5.10-cloud")).unwrap();
        assert_eq!(old.image, root.join("boot/vmlinuz-5.10-cloud"));
        assert!(Kernel::resolve(root, &given, Some("6.6")).is_err());
    }

    #[test]
    fn a_tree_without_a_kernel_is_refused() {
        let tree = tempfile::tempdir().unwrap();
        assert!(Kernel::resolve(tree.path(), &[tree.path().to_owned()], None).is_err());
        assert!(Kernel::resolve(tree.path(), &[tree.path().join("absent")], None).is_err());
    }
}
