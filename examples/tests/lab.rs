//! Checks that a lab guest's memory, its own account of it, and traces of its clones agree.
//!
//! `KALEIDOSCOPE_LAB_GUEST` names the folder that `kaleidoscope lab run` made; without it the test
//! says that it was skipped.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test's figures, and what it skips, are for people"
)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test fail by panicking")]

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAGE: u64 = 4096;

/// "The page is in a free block" (kernel `admin-guide/mm/pagemap.rst`).
const BUDDY: u64 = 1 << 10;

struct Guest {
    folder: PathBuf,
    ram: File,
    /// File offset, address, size.
    layout: Vec<(u64, u64, u64)>,
}

impl Guest {
    fn open(folder: PathBuf) -> Self {
        let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
        let text = fs::read_to_string(folder.join("layout.txt")).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let layout = lines
            .map(|line| line.split(' ').map(hex).collect::<Vec<_>>())
            .map(|fields| (fields[0], fields[1], fields[2]))
            .collect();
        Self { ram: File::open(folder.join("ram.bin")).unwrap(), folder, layout }
    }

    fn truth(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.join("truth/gt").join(name)).unwrap()
    }

    fn words(&self, name: &str) -> Vec<u64> {
        let bytes = self.truth(name);
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    fn frame(&self, gfn: u64) -> Vec<u8> {
        let gpa = gfn * PAGE;
        let (offset, start, _) = self
            .layout
            .iter()
            .find(|(_, start, size)| (*start..start + size).contains(&gpa))
            .unwrap_or_else(|| panic!("frame {gfn:#x} is not RAM"));
        let mut bytes = vec![0; 4096];
        self.ram.read_exact_at(&mut bytes, offset + gpa - start).unwrap();
        bytes
    }

    /// Path, and pairs of page index and frame number, of every resident file.
    fn files(&self) -> Vec<(String, Vec<(u64, u64)>)> {
        let bytes = self.truth("files");
        let mut at = 0;
        let mut take = |length: usize| {
            at += length;
            bytes[at - length..at].to_vec()
        };
        let word = |bytes: Vec<u8>| u64::from_le_bytes(bytes.try_into().unwrap());
        let mut files = Vec::new();
        let mut left = bytes.len();
        while left > 0 {
            let head: Vec<_> = (0..5).map(|_| word(take(8))).collect();
            let path = String::from_utf8(take(usize::try_from(head[0]).unwrap())).unwrap();
            let pages: Vec<_> =
                (0..head[4]).map(|_| (word(take(8)), word(take(8)) & ((1 << 55) - 1))).collect();
            left -= 40 + path.len() + 16 * pages.len();
            files.push((path, pages));
        }
        files
    }
}

/// The guest, and the tree of packages that its file system was made of.
fn guest(folder: PathBuf) -> (Guest, PathBuf) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cache = std::env::var_os("KALEIDOSCOPE_LAB_CACHE")
        .map_or_else(|| root.join("target/lab"), PathBuf::from);
    let staged = fs::read_dir(&cache)
        .unwrap()
        .flatten()
        .map(|entry| entry.path().join("tree"))
        .filter(|tree| tree.is_dir())
        .max()
        .unwrap();
    (Guest::open(folder), staged)
}

/// The folder of the guest to check.
fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("KALEIDOSCOPE_LAB_GUEST").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("******** SKIPPED: KALEIDOSCOPE_LAB_GUEST names no guest ********");
    }
    folder
}

#[test]
fn a_guest_agrees_with_its_own_account() {
    let Some(folder) = folder() else { return };
    let (guest, staged) = guest(folder);

    let size: u64 = guest.layout.iter().map(|(_, _, size)| size).sum();
    assert_eq!(size, guest.ram.metadata().unwrap().len());

    // The brackets around the pause hardly differ.
    let (before, after) = (guest.words("proc_kpageflags"), guest.words("proc_kpageflags_after"));
    assert_eq!(before.len(), after.len());
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert!(moved * 1000 < before.len(), "{moved} of {} frames changed", before.len());

    // Free frames are those that the kernel counts (but for the few that it keeps per CPU).
    let free = before.iter().filter(|flags| *flags & BUDDY != 0).count() as u64;
    let meminfo = String::from_utf8(guest.truth("proc_meminfo")).unwrap();
    let counted = meminfo.lines().find_map(|line| line.strip_prefix("MemFree:")).unwrap();
    let counted = counted.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024 / PAGE;
    assert!(free.abs_diff(counted) * 50 < counted, "{free} free frames, {counted} counted");

    // Every cached page of a file that the guest did not change holds the file's bytes.
    let mut wrong = BTreeMap::new();
    let mut checked = 0;
    let files = guest.files();
    for (path, pages) in files.iter().filter(|(path, _)| path.starts_with("/usr/")) {
        let Ok(contents) = fs::read(staged.join(path.trim_start_matches('/'))) else { continue };
        for (index, gfn) in pages {
            let start = usize::try_from(index * PAGE).unwrap();
            let end = contents.len().min(start + 4096);
            let mut expected = contents[start..end].to_vec();
            expected.resize(4096, 0);
            checked += 1;
            if guest.frame(*gfn) != expected {
                *wrong.entry(path).or_insert(0) += 1;
            }
        }
    }
    assert!(checked > 5000, "only {checked} pages of known contents are cached");
    assert!(wrong.is_empty(), "of {checked} pages these differ: {wrong:?}");
}

#[test]
fn traces_are_first_touches_in_order() {
    let Some(folder) = folder() else { return };
    let guest = Guest::open(folder);
    let Ok(traces) = fs::read_dir(guest.folder.join("traces")) else {
        eprintln!("******** SKIPPED: the guest has no traces ********");
        return;
    };
    let flags = guest.words("proc_kpageflags");
    let was_free = |gfn: u64| {
        usize::try_from(gfn).ok().and_then(|gfn| flags.get(gfn)).is_some_and(|f| f & BUDDY != 0)
    };
    let mut checked = 0;
    for path in traces.map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|extension| extension != "csv") {
            continue;
        }
        let name = path.display();
        let mut reader = csv::Reader::from_path(&path).unwrap();
        let headers = reader.headers().unwrap().clone();
        let column = |name: &str| headers.iter().position(|header| header == name).unwrap();
        let number =
            |row: &csv::StringRecord, name: &str| row[column(name)].parse::<u64>().unwrap();
        let mut touched = HashSet::new();
        let (mut time, mut by_vcpus, mut free, mut free_written) = (0, 0, 0, 0);
        for (row, seq) in reader.records().zip(0..) {
            let row = row.unwrap();
            assert_eq!(number(&row, "seq"), seq, "{name}");
            assert_eq!(&row[column("event")], "touch", "{name}");
            let gfn = u64::from_str_radix(&row[column("gfn")], 16).unwrap();
            // Panics if it is not RAM.
            guest.frame(gfn);
            assert!(touched.insert(gfn), "{name}: frame {gfn:#x} is touched first twice");
            let now = number(&row, "t_us");
            assert!(now >= time, "{name}: time goes back at {seq}");
            time = now;
            by_vcpus += u64::from(&row[column("source")] == "vcpu");
            if was_free(gfn) {
                free += 1;
                free_written += number(&row, "written");
            }
        }
        let count = touched.len() as u64;
        assert!(count > 100, "{name}: only {count} touches");
        // Devices read disks into frames that vCPUs did not touch, but hardly more than those.
        assert!(by_vcpus * 2 > count, "{name}: {by_vcpus} of {count} touches are of vCPUs");
        // Free frames are not read.
        assert!(free_written * 100 >= free * 99, "{name}: {free_written} of {free} were written");
        checked += 1;
    }
    assert!(checked > 0, "the guest's folder of traces has none");
}

/// Runs `kaleidoscope check`; its exit status, and all that it said.
fn check(folder: &Path, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kaleidoscope"));
    let output = command.arg("check").arg(folder).args(words).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn a_crash_kernel_is_colored_or_both_kernels_are_named() {
    let Ok(folder) = std::env::var("KALEIDOSCOPE_LAB_CRASH").map(PathBuf::from) else {
        println!("******** SKIPPED: KALEIDOSCOPE_LAB_CRASH names no crashed guest ********");
        return;
    };
    let lab = fs::read_to_string(folder.join("lab.json")).unwrap();
    let lab: serde_json::Value = serde_json::from_str(&lab).unwrap();
    assert!(lab["crash_kernel_bytes"].is_u64(), "made with --crash-kernel: {lab}");
    // The truth is the crash kernel's, which has less memory than the guest.
    let reserved = lab["crash_kernel_bytes"].as_u64().unwrap();
    let guest = Guest::open(folder.clone());
    let meminfo = String::from_utf8(guest.truth("proc_meminfo")).unwrap();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    let total = total.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
    assert!(total < reserved, "{total} bytes of {reserved}");

    let (status, said) = check(&folder, &[]);
    assert_eq!(status, Some(0), "with registers:\n{said}");
    let (status, said) = check(&folder, &["--no-registers"]);
    match status {
        Some(0) => {}
        Some(2) => {
            let release = lab["kernel"].as_str().unwrap();
            assert!(said.matches(release).count() >= 2, "both kernels are named:\n{said}");
        }
        other => assert_eq!(other, Some(0), "without registers:\n{said}"),
    }
}
