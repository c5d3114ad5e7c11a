//! Checks that frames of processes' anonymous memory are anonymous in the coloring, and in the
//! region of a process.
//!
//! A wrong kind is already counted among the wrong frames of its class. A frame that is not in the
//! region of any process has lost its owner, which counts as an error. Names and order are only
//! reported.
use std::collections::BTreeMap;

use serde::Serialize;

use crate::check::coloring::{Coloring, Kind};
use crate::check::truth::Truth;
use crate::check::truth::flags::Class;
use crate::check::truth::processes::{MappedPage, Process};

/// Least share, in percent, of a process's pages whose flags must agree with its pagemap. A pagemap
/// with less agreement is left over from another capture, and is set aside.
const LEAST_AGREEMENT: u64 = 90;

/// The region name of a process without a known task.
const UNNAMED: &str = "unnamed process";

/// Findings about one process.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ProcessFindings {
    /// Process id.
    pub(crate) pid: u64,
    /// Name of the command.
    pub(crate) comm: String,
    /// Anonymous frames that the process maps.
    pub(crate) frames: u64,
    /// Frames that are anonymous in the coloring, too.
    pub(crate) right: u64,
    /// Frames that are anonymous in the coloring, but not in the region of any process.
    pub(crate) lost: u64,
    /// Frames whose region's name contains the process id.
    pub(crate) named_by_pid: u64,
    /// Frames whose region's name contains the process's command.
    pub(crate) named_by_comm: u64,
    /// Pairs of successive pages by virtual address in the same region.
    pub(crate) neighbors: u64,
    /// Pairs whose positions are in the order of their addresses.
    pub(crate) neighbors_in_order: u64,
}

/// A process that is not judged because its pagemap does not belong to this truth.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SetAside {
    /// Process id.
    pub(crate) pid: u64,
    /// Name of the command.
    pub(crate) comm: String,
    /// Present pages of its pagemap.
    pub(crate) pages: u64,
    /// Pages that agree with the frames' flags.
    pub(crate) agreeing: u64,
}

/// Findings about anonymous memory.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct AnonymousFindings {
    /// Processes judged.
    pub(crate) processes: Vec<ProcessFindings>,
    /// Processes not judged.
    pub(crate) set_aside: Vec<SetAside>,
}

impl AnonymousFindings {
    /// Frames of all processes, and the frames that lost their owner.
    pub(crate) fn lost(&self) -> (u64, u64) {
        let both = self.processes.iter().map(|process| (process.frames, process.lost));
        both.fold((0, 0), |(all, lost), (frames, more)| (all + frames, lost + more))
    }
}

/// Compares the anonymous memory of all processes.
pub(crate) fn judge(truth: &Truth, coloring: &Coloring) -> AnonymousFindings {
    let mut findings = AnonymousFindings::default();
    for process in &truth.processes {
        let pages = count(&process.pages, |_| true);
        let agreeing = count(&process.pages, |page| agrees(truth, page));
        if agreeing * 100 < pages * LEAST_AGREEMENT {
            findings.set_aside.push(SetAside {
                pid: process.pid,
                comm: process.comm.clone(),
                pages,
                agreeing,
            });
        } else {
            findings.processes.push(judge_process(truth, coloring, process));
        }
    }
    findings
}

/// Whether the frame's class is compatible with the pagemap. The two were read at slightly
/// different times.
fn agrees(truth: &Truth, page: &MappedPage) -> bool {
    match truth.class(page.gfn) {
        Some(Class::Anonymous) => !page.shared,
        Some(Class::File | Class::Shared) => page.shared,
        Some(Class::Kernel | Class::Hugetlb | Class::Untyped) => true,
        Some(Class::Free | Class::Slab | Class::PageTable | Class::Offline | Class::Absent)
        | None => false,
    }
}

fn judge_process(truth: &Truth, coloring: &Coloring, process: &Process) -> ProcessFindings {
    let mut findings = ProcessFindings {
        pid: process.pid,
        comm: process.comm.clone(),
        frames: 0,
        right: 0,
        lost: 0,
        named_by_pid: 0,
        named_by_comm: 0,
        neighbors: 0,
        neighbors_in_order: 0,
    };
    let mut last_position = BTreeMap::new();
    for page in process.pages.iter().filter(|page| !page.shared) {
        if truth.class(page.gfn) != Some(Class::Anonymous) || !truth.is_stable(page.gfn) {
            continue;
        }
        findings.frames += 1;
        let Some(frame) = coloring.frame(page.gfn) else { continue };
        findings.right += u64::from(frame.kind == Kind::Anonymous);
        let region = coloring.region_of(frame);
        let has_owner = region.is_some_and(|region| names_process(&region.name));
        findings.lost += u64::from(frame.kind == Kind::Anonymous && !has_owner);
        let Some(region) = region else { continue };
        findings.named_by_pid += u64::from(names_pid(&region.name, process.pid));
        findings.named_by_comm +=
            u64::from(!process.comm.is_empty() && region.name.contains(&process.comm));
        if let Some(last) = last_position.insert(frame.region, frame.position) {
            findings.neighbors += 1;
            findings.neighbors_in_order += u64::from(last < frame.position);
        }
    }
    findings
}

/// Whether a region of anonymous memory belongs to a process: its name contains a process id, or is
/// that of processes without a known task.
fn names_process(name: &str) -> bool {
    name.contains(|c: char| c.is_ascii_digit()) || name == UNNAMED
}

/// Whether `pid` is among the numbers in `name`.
fn names_pid(name: &str, pid: u64) -> bool {
    name.split(|c: char| !c.is_ascii_digit()).any(|number| number.parse() == Ok(pid))
}

fn count(pages: &[MappedPage], of: impl Fn(&MappedPage) -> bool) -> u64 {
    pages.iter().filter(|page| of(page)).fold(0, |count, _| count + 1)
}
