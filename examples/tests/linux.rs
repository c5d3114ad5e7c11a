//! Runs `kaleidoscope clone` on a Linux kernel, if `KALEIDOSCOPE_KERNEL` names one that boots on
//! this host's KVM, with the words of `KALEIDOSCOPE_KERNEL_WORDS` on its command line.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test's figures, and what it skips, are for people"
)]

use serde_json::Value;
use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use twox_hash::XxHash3_64;

/// Files on the guest's disk.
const FILES: usize = 24;

fn skip(why: &str) {
    println!("******** SKIPPED: clones of Linux on KVM: {why} ********");
}

/// A disk with files that are named by what they hold.
fn disk(folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let (root, image) = (folder.join("root"), folder.join("disk.ext4"));
    let files = root.join("files");
    std::fs::create_dir_all(&files)?;
    for number in 0..FILES {
        let bytes = (0..number * 3000 + 100).map(|at| (at / 5 * (number + 3)).to_le_bytes()[0]);
        let bytes: Vec<u8> = bytes.collect();
        let name = format!("{:016x}", XxHash3_64::oneshot(&bytes));
        std::fs::write(files.join(name), bytes)?;
    }
    // Part of e2fsprogs, which every Debian has; users' paths may lack the folder that it is in.
    let made = Command::new("mke2fs")
        .env("PATH", std::env::var("PATH")? + ":/usr/sbin:/sbin")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&root, &image])
        .arg("16M")
        .status()?;
    match made.success() {
        true => Ok(image),
        false => Err("mke2fs makes no disk".into()),
    }
}

#[test]
fn clones_of_linux_prove_themselves() {
    let Ok(kernel) = std::env::var("KALEIDOSCOPE_KERNEL") else {
        return skip("KALEIDOSCOPE_KERNEL names no kernel");
    };
    if !Path::new("/dev/kvm").exists() {
        return skip("there is no /dev/kvm");
    }
    let words = std::env::var("KALEIDOSCOPE_KERNEL_WORDS").unwrap_or_default();
    let folder = tempfile::tempdir().unwrap();
    let registered = folder.path().join("registered");
    let disk = disk(folder.path()).unwrap();
    let before = std::fs::read(&disk).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kaleidoscope"))
        .args(["clone", "--json", "--check", "--memory", "64M", "--clones", "3"])
        // Where kernels are emulated, beside a busy host.
        .args(["--timeout", "1800"])
        .args(["--ways", "local,ahead,staged,copied", "--kernel", &kernel])
        .args(["--init", env!("CARGO_BIN_EXE_kaleidoscope-guest")])
        .args(["--append", &format!("console=ttyS0 quiet reboot=t panic=-1 rdinit=/init {words}")])
        .args(["--command", &format!("echo $KALEIDOSCOPE_CLONE >> {}", registered.display())])
        .arg("--disk")
        .arg(&disk)
        .arg("--output")
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("{result:#}");

    // Every clone, and the parent after all of them, has said that all its memory is right: the
    // command would have failed otherwise.
    let clones = result["clones"].as_array().unwrap();
    assert_eq!(clones.len(), 12);
    let ids: BTreeSet<_> = clones.iter().map(|clone| clone["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 12, "each knows itself by another id");
    let registered = std::fs::read_to_string(registered).unwrap();
    let registered: BTreeSet<_> = registered.lines().collect();
    assert!(registered.is_superset(&ids), "the command ran for each");
    for clone in clones {
        let is_local = clone["way"] == "local" || clone["way"] == "ahead";
        assert_eq!(clone["moved_bytes"] == 0, is_local, "{clone}");
        assert!(clone["own_bytes"].as_u64().unwrap() < 64 << 20, "{clone}");
    }

    // Each has read all files of the disk, written one, and found none of the others': clones of
    // the parent's disk, which is as it was.
    let log = std::fs::read_to_string(folder.path().join("parent.log")).unwrap();
    assert!(log.contains(&format!("a disk with {FILES} files")), "{log}");
    assert!(std::fs::read(&disk).unwrap() == before);
    let regions = std::fs::read_to_string(folder.path().join("regions.csv")).unwrap();
    let on_disk = regions.lines().filter(|line| line.contains(":/disk/files/")).count();
    assert!(on_disk >= FILES / 2, "files that were read are known by name:\n{regions}");

    let check = &result["check"];
    assert_eq!(check["unknown"], 0);
    for class in check["classes"].as_array().unwrap() {
        assert!(class["wrong"] == 0, "{check:#}");
    }
    let classes: Vec<_> = check["classes"].as_array().unwrap().iter().collect();
    for name in ["free", "slab", "page-table", "anonymous", "shared", "file", "kernel"] {
        assert!(classes.iter().any(|class| class["class"] == name), "{name}: {check:#}");
    }
    for file in ["colors.png", "frames.csv", "regions.csv", "parent.log", "staged-2.log"] {
        assert!(folder.path().join(file).metadata().unwrap().len() > 0, "{file}");
    }
}
