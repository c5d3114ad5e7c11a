//! Checks that every cached file page is in the region of its file, at its page index, under its
//! path.
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::check::coloring::{Coloring, Frame, Region};
use crate::check::truth::Truth;
use crate::check::truth::files::ResidentFile;
use crate::check::truth::flags::Class;

/// The verdict on a page, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// File, page index and path agree.
    Exact,
    /// Inode, file name and page index agree, but the rest of the path or the device does not. The
    /// guest used another mount or an overlay.
    Alias,
    /// File and page index agree, but the coloring has no path, because the guest's kernel no
    /// longer had it.
    Nameless,
    /// The right file under a path that has another file name.
    OtherPath,
    /// The right file, but the wrong page index.
    OtherIndex,
    /// Another file.
    OtherFile,
    /// Not in a region that is named like a file.
    NoFile,
    /// Not in the coloring.
    LeftOut,
}

impl Verdict {
    /// Whether the coloring is right.
    pub(crate) fn is_right(self) -> bool {
        self <= Self::Nameless
    }

    /// The name used in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Alias => "alias",
            Self::Nameless => "nameless",
            Self::OtherPath => "other path",
            Self::OtherIndex => "other index",
            Self::OtherFile => "other file",
            Self::NoFile => "no file",
            Self::LeftOut => "left out",
        }
    }
}

/// A page shown as an example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PageExample {
    /// Guest frame number.
    pub(crate) gfn: u64,
    /// The page by the ground truth: `DEVICE:INODE:PATH@INDEX`.
    pub(crate) truth: String,
    /// The page by the coloring: `NAME@POSITION`.
    pub(crate) ours: String,
}

/// Pages with one verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Pages {
    /// Number of pages.
    pub(crate) pages: u64,
    /// The first pages; empty if the verdict is right.
    pub(crate) examples: Vec<PageExample>,
}

/// Findings about file pages.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct FileFindings {
    /// Files with at least one judged page. Hard links are one file.
    pub(crate) files: u64,
    /// Files without a wrong page.
    pub(crate) files_right: u64,
    /// Judged pages.
    pub(crate) pages: u64,
    /// Pages whose frame was not, or no longer, page cache by its flags. Not judged.
    pub(crate) unstable: u64,
    /// Pages that the coloring assigns to a listed file, but that the guest did not list. Not
    /// judged.
    pub(crate) unlisted: u64,
    /// Pages in the region of their file.
    pub(crate) found: u64,
    /// Found pages with the right page index.
    pub(crate) right_index: u64,
    /// Found pages with the right page index and exactly the right path.
    pub(crate) right_path: u64,
    /// Pages whose verdict is not right.
    pub(crate) wrong: u64,
    /// Pages by verdict.
    pub(crate) verdicts: BTreeMap<Verdict, Pages>,
}

/// A listing of a frame by the guest: a page of this file at this index.
#[derive(Clone, Copy)]
struct Claim<'a> {
    file: &'a ResidentFile,
    index: u64,
}

/// Compares all file pages, keeping `limit` examples of each error.
///
/// A frame with several names (hard links, a file below and above an overlay) is judged once, by
/// the name that fits best.
pub(crate) fn judge(truth: &Truth, coloring: &Coloring, limit: usize) -> FileFindings {
    let mut claims = BTreeMap::<u64, Vec<Claim<'_>>>::new();
    for file in &truth.files {
        for &(index, gfn) in &file.pages {
            claims.entry(gfn).or_default().push(Claim { file, index });
        }
    }
    let mut findings = FileFindings::default();
    let mut files = BTreeMap::<(u64, u64), bool>::new();
    for (&gfn, claims) in &claims {
        if !truth.is_stable(gfn)
            || !matches!(truth.class(gfn), Some(Class::File | Class::Shared | Class::Untyped))
        {
            findings.unstable += 1;
            continue;
        }
        let ours = coloring.frame(gfn).map(|frame| (frame, coloring.region_of(frame)));
        let best = claims
            .iter()
            .map(|claim| (verdict(claim, ours), claim))
            .min_by_key(|(verdict, _)| *verdict);
        let Some((verdict, claim)) = best else { continue };
        findings.pages += 1;
        findings.found += u64::from(verdict <= Verdict::OtherIndex);
        findings.right_index += u64::from(verdict <= Verdict::OtherPath);
        findings.right_path += u64::from(verdict == Verdict::Exact);
        findings.wrong += u64::from(!verdict.is_right());
        *files.entry((claim.file.device, claim.file.inode)).or_insert(true) &= verdict.is_right();
        let pages = findings.verdicts.entry(verdict).or_default();
        pages.pages += 1;
        if !verdict.is_right() && pages.examples.len() < limit {
            pages.examples.push(example(gfn, claim, ours));
        }
    }
    findings.files = count(files.values());
    findings.files_right = count(files.values().filter(|right| **right));
    findings.unlisted = unlisted(truth, coloring, |gfn| claims.contains_key(&gfn));
    findings
}

fn verdict(claim: &Claim<'_>, ours: Option<(&Frame, Option<&Region>)>) -> Verdict {
    let Some((frame, region)) = ours else { return Verdict::LeftOut };
    let Some(name) = region.and_then(Region::file) else { return Verdict::NoFile };
    let same_name = file_name(name.path) == file_name(&claim.file.path);
    let same_device = name.device.is_none_or(|device| device == claim.file.device);
    if name.inode != claim.file.inode || !(same_device || same_name) {
        return Verdict::OtherFile;
    }
    if frame.position != Some(claim.index) {
        return Verdict::OtherIndex;
    }
    if name.path.is_empty() {
        Verdict::Nameless
    } else if !same_name {
        Verdict::OtherPath
    } else if same_device && name.path == claim.file.path {
        Verdict::Exact
    } else {
        Verdict::Alias
    }
}

/// The number of frames that the coloring assigns to listed files, but that the guest did not list.
fn unlisted(truth: &Truth, coloring: &Coloring, is_listed: impl Fn(u64) -> bool) -> u64 {
    let known: BTreeSet<_> = truth.files.iter().map(|file| (file.device, file.inode)).collect();
    let claims_known_file = |frame: &&Frame| {
        let name = coloring.region_of(frame).and_then(Region::file);
        name.is_some_and(|name| {
            name.device.is_some_and(|device| known.contains(&(device, name.inode)))
        })
    };
    count(coloring.frames().iter().filter(|frame| !is_listed(frame.gfn)).filter(claims_known_file))
}

fn example(gfn: u64, claim: &Claim<'_>, ours: Option<(&Frame, Option<&Region>)>) -> PageExample {
    let Claim { file, index } = claim;
    let ours = match ours {
        None => "nothing".to_owned(),
        Some((frame, None)) => format!("{} in no region", frame.kind.name()),
        Some((frame, Some(region))) => match frame.position {
            Some(position) => format!("{}@{position}", region.name),
            None => format!("{} without a position", region.name),
        },
    };
    PageExample {
        gfn,
        truth: format!("{}:{}:{}@{index}", file.device, file.inode, file.path),
        ours,
    }
}

/// The last component of a path.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn count<T>(items: impl Iterator<Item = T>) -> u64 {
    items.fold(0, |count, _| count + 1)
}
