//! Writes the guest's own view of its memory to the raw truth disk.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::os::{Mapping, PAGE};
use super::raw_disk::{RawDisk, locked};
use super::residency::Residency;
use crate::lab::error::{Error, Result};
use crate::lab::truth;

/// The flags of each frame; read last before the pause and first after it.
const FRAME_FLAGS: &str = "/proc/kpageflags";

/// Files that are copied unchanged, if they exist.
const PLAIN: &[&str] = &[
    "/proc/kallsyms",
    "/proc/version",
    "/proc/cmdline",
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/modules",
    "/proc/mounts",
    "/proc/self/mountinfo",
    "/proc/swaps",
    "/proc/iomem",
    "/proc/vmallocinfo",
    "/proc/slabinfo",
    "/proc/pagetypeinfo",
    "/proc/zoneinfo",
    "/proc/buddyinfo",
    "/proc/vmstat",
    "/proc/meminfo",
    "/sys/kernel/vmcoreinfo",
    "/sys/kernel/mm/ksm/pages_shared",
    "/sys/kernel/mm/ksm/pages_sharing",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
];

/// Flags of the pagemap entries to write: present or swapped.
const PRESENT_OR_SWAPPED: u64 = 3 << 62;

/// The dump in progress.
#[derive(Debug)]
pub(crate) struct Dump {
    out: RawDisk,
    before: FrameFlags,
    after: FrameFlags,
}

impl Dump {
    /// Opens the raw disk and allocates all memory that the last steps need.
    ///
    /// # Errors
    /// If the disk cannot be opened or memory is short.
    pub(crate) fn open(disk: &Path) -> Result<Self> {
        let out = RawDisk::open(disk)?;
        Ok(Self { out, before: FrameFlags::new()?, after: FrameFlags::new()? })
    }

    /// Writes everything but the frames' flags.
    ///
    /// # Errors
    /// If something cannot be read or the disk is full.
    pub(crate) fn write_all(&mut self) -> Result<()> {
        let files = Residency::new()?.files()?;
        self.out.record("files", &files)?;
        let devices = Residency::new()?.block_devices()?;
        self.out.record("block_devices", &devices)?;
        drop((files, devices));
        // The agent's own memory changes most, so it comes last.
        let own = std::process::id();
        for pid in processes().into_iter().filter(|pid| *pid != own).chain([own]) {
            self.process(pid)?;
        }
        for path in PLAIN.iter().map(Path::new).filter(|path| path.exists()) {
            let data = fs::read(path).map_err(Error::io("read", path))?;
            let name = path.to_string_lossy().trim_start_matches('/').replace('/', "_");
            self.out.record(&name, &data)?;
        }
        Ok(())
    }

    /// Reads the frames' flags into memory, as the last step before the pause.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn read_flags_before(&mut self) -> Result<()> {
        self.before.read()
    }

    /// Reads the frames' flags again, as the first step after the pause, and ends the dump.
    ///
    /// # Errors
    /// If they cannot be read or written.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.after.read()?;
        self.out.record("proc_kpageflags", self.before.bytes()?)?;
        self.out.record("proc_kpageflags_after", self.after.bytes()?)?;
        self.out.record(truth::END, &[])
    }

    fn process(&mut self, pid: u32) -> Result<()> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        // A process may end at any time. Then its files are left out.
        let Ok(comm) = fs::read(folder.join("comm")) else { return Ok(()) };
        self.out.record(&format!("proc_{pid}_comm"), &comm)?;
        let maps = fs::read_to_string(folder.join("maps")).unwrap_or_default();
        if maps.is_empty() {
            return Ok(());
        }
        let pagemap = read_pagemap(&folder.join("pagemap"), &maps);
        self.out.record(&format!("proc_{pid}_maps"), maps.as_bytes())?;
        self.out.record(&format!("proc_{pid}_pagemap"), &pagemap)?;
        let status = fs::read(folder.join("status")).unwrap_or_default();
        self.out.record(&format!("proc_{pid}_status"), &status)
    }
}

/// The PIDs of all processes, kernel threads included.
pub(crate) fn processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Pairs of virtual address and pagemap entry of the present and swapped pages of all mappings.
fn read_pagemap(path: &Path, maps: &str) -> Vec<u8> {
    const PAGES: u64 = 512;
    const BYTES: usize = 8 * 512;
    let mut pairs = Vec::new();
    let Ok(pagemap) = File::open(path) else { return pairs };
    for (start, end) in maps.lines().filter_map(parse_range) {
        let mut page = start / PAGE as u64;
        let last = end / PAGE as u64;
        let mut entries = [0; BYTES];
        while page < last {
            let wanted = usize::try_from((last - page).min(PAGES) * 8).unwrap_or(BYTES);
            let Some(entries) = entries.get_mut(..wanted) else { break };
            // The last mapping, [vsyscall], is beyond the end of the file.
            if pagemap.read_exact_at(entries, page * 8).is_err() {
                break;
            }
            for raw in entries.chunks_exact(8) {
                let entry = u64::from_le_bytes(raw.try_into().unwrap_or_default());
                if entry & PRESENT_OR_SWAPPED != 0 {
                    pairs.extend_from_slice(&(page * PAGE as u64).to_le_bytes());
                    pairs.extend_from_slice(&entry.to_le_bytes());
                }
                page += 1;
            }
        }
    }
    pairs
}

/// `START-END ...`, hexadecimal, end exclusive.
fn parse_range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// `/proc/kpageflags` in memory that was allocated beforehand.
#[derive(Debug)]
struct FrameFlags {
    memory: Mapping,
    filled: usize,
}

impl FrameFlags {
    fn new() -> Result<Self> {
        let path = Path::new("/proc/iomem");
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        let end = end_of_ram(&text)
            .ok_or_else(|| Error::Agent("/proc/iomem has no System RAM".to_owned()))?;
        // Eight bytes per frame; some kernels list frames up to the end of a 128 MiB section.
        let bytes = end.next_multiple_of(128 << 20) / PAGE as u64 * 8;
        let bytes = usize::try_from(bytes).map_err(|error| Error::Agent(error.to_string()))?;
        Ok(Self { memory: locked(bytes)?, filled: 0 })
    }

    fn read(&mut self) -> Result<()> {
        let path = Path::new(FRAME_FLAGS);
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        self.filled = 0;
        loop {
            let rest = self.memory.bytes_mut().map_err(Error::io("map", path))?;
            let rest = rest.get_mut(self.filled..).unwrap_or_default();
            match file.read(rest).map_err(Error::io("read", path))? {
                0 => return Ok(()),
                count => self.filled += count,
            }
        }
    }

    fn bytes(&mut self) -> Result<&[u8]> {
        let bytes = self.memory.bytes_mut().map_err(Error::io("map", Path::new(FRAME_FLAGS)))?;
        Ok(bytes.get(..self.filled).unwrap_or_default())
    }
}

/// The exclusive end of the last "System RAM" of `/proc/iomem` (`START-END : NAME`, hexadecimal,
/// end inclusive).
fn end_of_ram(iomem: &str) -> Option<u64> {
    let ends = iomem.lines().filter(|line| line.ends_with(" : System RAM")).filter_map(|line| {
        let (_, end) = line.trim_start().split(' ').next()?.split_once('-')?;
        u64::from_str_radix(end, 16).ok()?.checked_add(1)
    });
    ends.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_maps_and_iomem_are_read() {
        let line = "7f00a000-7f00c000 r-xp 00000000 fe:00 12 /usr/bin/bash";
        assert_eq!(parse_range(line), Some((0x7f00_a000, 0x7f00_c000)));
        assert_eq!(parse_range("nonsense"), None);
        let iomem = "00001000-0009fbff : System RAM\n\
            00100000-1ffd9fff : System RAM\n  07c00000-08a01ef1 : Kernel code\n\
            fec00000-fec003ff : IOAPIC 0\n";
        assert_eq!(end_of_ram(iomem), Some(0x1ffd_a000));
        assert_eq!(end_of_ram(""), None);
    }

    #[test]
    fn the_own_page_map_has_the_stack() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let pairs = read_pagemap(Path::new("/proc/self/pagemap"), &maps);
        let (start, end) =
            maps.lines().find(|line| line.ends_with("[stack]")).and_then(parse_range).unwrap();
        let addresses =
            pairs.chunks_exact(16).map(|p| u64::from_le_bytes(p[..8].try_into().unwrap()));
        assert!(addresses.filter(|address| (start..end).contains(address)).count() > 0);
    }
}
