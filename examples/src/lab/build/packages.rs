//! Downloads and unpacks Debian packages of the host's release.
//!
//! No package is installed, and no root rights are needed. apt resolves dependencies against an
//! empty package database and downloads archives into the lab's cache. The archives are unpacked
//! like tar files.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "archives are renamed when they are whole")
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::interrupt::{Scratch, child};

use crate::lab::command::{APT_CACHE, APT_GET, DPKG_DEB, TAR};
use crate::lab::error::{Error, Result};

/// The package that depends on the release's newest cloud kernel.
const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";

/// The name of the newest cloud kernel's package, like `linux-image-6.1.0-56-cloud-amd64`.
///
/// # Errors
/// If apt fails or does not offer such a package.
pub(crate) fn newest_cloud_kernel() -> Result<String> {
    let output = APT_CACHE.run(APT_CACHE.command().args(["depends", KERNEL_METAPACKAGE]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .ok_or_else(|| {
            Error::Packages(format!("apt knows no {KERNEL_METAPACKAGE}; run: apt-get update"))
        })
}

/// The packages `wanted` and all their dependencies, assuming that none is installed.
///
/// # Errors
/// If apt fails.
pub(crate) fn closure(wanted: &[&str]) -> Result<Vec<String>> {
    let options = ["-o", "Dir::State::status=/dev/null", "--no-install-recommends"];
    let output = APT_GET.run(
        APT_GET.command().args(options).args(["--yes", "--print-uris", "install"]).args(wanted),
    )?;
    Ok(packages_of_uris(&String::from_utf8_lossy(&output.stdout)))
}

/// Package names of `'URI' NAME_VERSION_ARCH.deb SIZE HASH` lines.
fn packages_of_uris(text: &str) -> Vec<String> {
    let names = text
        .lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter_map(|file| file.split('_').next());
    names.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Downloads those of `packages` that `folder` lacks and returns the archives of all of them.
///
/// # Errors
/// If the folder cannot be made, apt fails, or an archive is missing afterwards.
pub(crate) fn download(folder: &Path, packages: &[String]) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let missing: Vec<_> =
        packages.iter().filter(|package| archive_of(folder, package).is_none()).collect();
    if !missing.is_empty() {
        // Download elsewhere and rename, so that the next run does not use a truncated archive.
        let scratch = Scratch::within(folder, ".partial-").map_err(Error::io("create", folder))?;
        // As root, apt downloads as its own user, and warns if that user cannot write here.
        APT_GET.run(
            APT_GET
                .command()
                .current_dir(scratch.path())
                .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
                .args(missing),
        )?;
        let entries = std::fs::read_dir(scratch.path()).map_err(Error::io("read", folder))?;
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            std::fs::rename(entry.path(), &path).map_err(Error::io("rename", &path))?;
        }
    }
    packages
        .iter()
        .map(|package| {
            archive_of(folder, package)
                .ok_or_else(|| Error::Packages(format!("apt downloaded no archive of {package}")))
        })
        .collect()
}

/// The newest archive of `package` in `folder`.
fn archive_of(folder: &Path, package: &str) -> Option<PathBuf> {
    let prefix = format!("{package}_");
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(&prefix) && name.ends_with(".deb")
        })
        .max_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok())
        .map(|entry| entry.path())
}

/// Unpacks `archive` into the existing `folder`. Follows existing links to directories, so that
/// `/lib -> usr/lib` stays a link although older packages contain a `/lib` directory.
///
/// # Errors
/// If the archive cannot be read or unpacked.
pub(crate) fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    let mut reader = DPKG_DEB.command();
    reader.arg("--fsys-tarfile").arg(archive).stdout(Stdio::piped()).stderr(Stdio::null());
    let (mut reader, armed) =
        child::spawn(&mut reader).map_err(|source| DPKG_DEB.not_started(source))?;
    let mut tar = TAR.command();
    tar.args(["--extract", "--keep-directory-symlink", "--directory"]).arg(folder);
    if let Some(stream) = reader.stdout.take() {
        tar.stdin(Stdio::from(stream));
    }
    let unpacked = TAR.run(&mut tar);
    let status = reader.wait().map_err(Error::io("unpack", archive))?;
    armed.disarm();
    if !status.success() {
        return Err(Error::Program {
            command: format!("dpkg-deb --fsys-tarfile {}", archive.display()),
            status,
            stderr: "not a usable Debian package".to_owned(),
            hint: "",
        });
    }
    unpacked.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_their_packages() {
        let text = "Reading package lists...\nNEW packages: 'x'\n\
            'http://deb.example/p/bash_5.2.15-2%2bb13_amd64.deb' bash_5.2.15-2+b13_amd64.deb 149 SHA\n\
            'http://deb.example/z/zlib1g_1.2_amd64.deb' zlib1g_1%3a1.2_amd64.deb 86684 MD5Sum:0\n";
        assert_eq!(packages_of_uris(text), ["bash", "zlib1g"]);
    }

    #[test]
    fn an_archive_is_found_by_its_whole_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bash-doc_1_all.deb", "bash_2_amd64.deb", "bash_2_amd64.deb.part"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(archive_of(folder.path(), "bash"), Some(folder.path().join("bash_2_amd64.deb")));
        assert_eq!(archive_of(folder.path(), "ba"), None);
    }
}
