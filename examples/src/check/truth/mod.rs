//! The ground truth: files of `/proc` that were captured inside the guest.
//!
//! The files may come from a hostile guest. Every length and count in them is checked against the
//! actual size.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
pub(crate) mod files;
pub(crate) mod flags;
pub(crate) mod processes;
mod words;

use std::path::{Path, PathBuf};

use super::error::Error;
use files::ResidentFile;
use flags::{Class, Flags};
use processes::Process;

/// Name of the copy of `/proc/kpageflags`.
pub(crate) const KPAGEFLAGS: &str = "proc_kpageflags";
/// A second copy of `/proc/kpageflags`, read after everything else. Optional.
const KPAGEFLAGS_AFTER: &str = "proc_kpageflags_after";

/// Frames of a memory section (128 MiB).
const SECTION_FRAMES: u64 = (128 << 20) / 4096;

/// The ground truth.
#[derive(Debug)]
pub(crate) struct Truth {
    flags: Vec<Flags>,
    classes: Vec<Class>,
    after: Option<Vec<Flags>>,
    /// Resident pages of the files on the guest's file systems.
    pub(crate) files: Vec<ResidentFile>,
    /// Processes and what they map.
    pub(crate) processes: Vec<Process>,
    /// Frames of block-device cache (`Buffers` of `/proc/meminfo`).
    pub(crate) buffers: Option<u64>,
}

impl Truth {
    /// Reads the ground truth in `dir`. Only `proc_kpageflags` is required.
    pub(crate) fn load(dir: &Path) -> Result<Self, Error> {
        let flags = read_flags(&dir.join(KPAGEFLAGS))?;
        let after = dir.join(KPAGEFLAGS_AFTER);
        Ok(Self {
            classes: flags::classify(&flags),
            flags,
            after: after.is_file().then(|| read_flags(&after)).transpose()?,
            files: files::load(&dir.join("files"))?,
            processes: processes::load(dir)?,
            buffers: std::fs::read_to_string(dir.join("proc_meminfo"))
                .ok()
                .and_then(|text| buffers(&text)),
        })
    }

    /// A ground truth of `/proc/kpageflags` alone, read before and after the image was taken. Both
    /// are run-length encoded as pairs of words: flags, and the number of consecutive frames. `end`
    /// is the exclusive end of the guest's frames; some kernels list frames up to the end of a
    /// section of 128 MiB.
    ///
    /// # Errors
    /// If these are no whole pairs, or have more frames.
    pub(crate) fn of_runs(before: &[u8], after: &[u8], end: u64) -> Result<Self, Error> {
        let flags = flags_of_runs(before, end)?;
        Ok(Self {
            classes: flags::classify(&flags),
            flags,
            after: Some(flags_of_runs(after, end)?),
            files: Vec::new(),
            processes: Vec::new(),
            buffers: None,
        })
    }

    /// All frames that the guest lists, with flags and class, sorted by gfn.
    pub(crate) fn frames(&self) -> impl Iterator<Item = (u64, Flags, Class)> {
        (0..).zip(&self.flags).zip(&self.classes).map(|((gfn, &flags), &class)| (gfn, flags, class))
    }

    /// The class of frame `gfn`.
    pub(crate) fn class(&self, gfn: u64) -> Option<Class> {
        self.classes.get(usize::try_from(gfn).ok()?).copied()
    }

    /// Whether frame `gfn` had the same flags before and after the capture. `true` if there is only
    /// one copy.
    pub(crate) fn is_stable(&self, gfn: u64) -> bool {
        let Some(after) = &self.after else { return true };
        usize::try_from(gfn)
            .is_ok_and(|at| self.flags.get(at).is_some_and(|flags| after.get(at) == Some(flags)))
    }
}

fn flags_of_runs(runs: &[u8], end: u64) -> Result<Vec<Flags>, Error> {
    let path = Path::new("runs of /proc/kpageflags");
    let most = end.saturating_add(SECTION_FRAMES);
    let mut flags = Vec::new();
    for (word, count) in words::pairs_of_bytes(path, runs)? {
        let listed = u64::try_from(flags.len()).unwrap_or(u64::MAX);
        if listed.saturating_add(count) > most {
            return Err(damaged(path, 0, format!("more than {most} frames")));
        }
        flags.extend((0..count).map(|_| Flags(word)));
    }
    Ok(flags)
}

fn read_flags(path: &Path) -> Result<Vec<Flags>, Error> {
    Ok(words::read(path)?.into_iter().map(Flags).collect())
}

/// `Buffers:  10892 kB` in frames.
fn buffers(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Buffers:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib.wrapping_div(4))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}

fn damaged(path: &Path, offset: usize, problem: String) -> Error {
    Error::Truth { path: PathBuf::from(path), offset, problem }
}
