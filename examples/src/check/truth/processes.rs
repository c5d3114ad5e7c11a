//! Copies of `/proc/PID/pagemap` and `/proc/PID/comm`.
use std::path::Path;

use super::files::Entry;
use super::{read, words};
use crate::check::error::Error;
use kaleidoscope_core::guest_os::name::escape;

/// Size of a page in bytes.
const PAGE_SIZE: u64 = 4096;

/// A page that a process maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MappedPage {
    /// Virtual page number.
    pub(crate) vpn: u64,
    /// Frame.
    pub(crate) gfn: u64,
    /// Whether the page belongs to a file or to shared memory.
    pub(crate) shared: bool,
}

/// A process and the pages that it maps.
#[derive(Debug)]
pub(crate) struct Process {
    /// Process id.
    pub(crate) pid: u64,
    /// Name of the command; empty if it was not captured.
    pub(crate) comm: String,
    /// Present pages, sorted by address.
    pub(crate) pages: Vec<MappedPage>,
}

/// Reads every `proc_PID_pagemap` in `dir`.
pub(super) fn load(dir: &Path) -> Result<Vec<Process>, Error> {
    let unreadable = |source| Error::Read { path: dir.to_path_buf(), source };
    let mut processes = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix("proc_")?.strip_suffix("_pagemap")?.parse().ok());
        let Some(pid) = pid else { continue };
        let comm = dir.join(format!("proc_{pid}_comm"));
        let comm = if comm.is_file() { read(&comm)? } else { Vec::new() };
        processes.push(Process {
            pid,
            comm: escape(comm.trim_ascii_end()),
            pages: load_pages(&entry.path())?,
        });
    }
    processes.sort_by_key(|process| process.pid);
    Ok(processes)
}

/// Reads pairs of virtual address and pagemap entry.
fn load_pages(path: &Path) -> Result<Vec<MappedPage>, Error> {
    let page = |(address, entry): (u64, u64)| {
        let entry = Entry(entry);
        Some(MappedPage {
            vpn: address.wrapping_div(PAGE_SIZE),
            gfn: entry.frame()?,
            shared: entry.is_shared(),
        })
    };
    let mut pages: Vec<_> = words::read_pairs(path)?.into_iter().filter_map(page).collect();
    pages.sort_by_key(|page| page.vpn);
    Ok(pages)
}
