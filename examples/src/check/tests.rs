//! Tests of the whole comparison on a small synthetic guest, with a right coloring and with errors.
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use tempfile::TempDir;

use super::coloring::Coloring;
use super::judge::files::Verdict;
use super::report::Report;
use super::truth::Truth;
use super::truth::flags::Class;
use super::{Args, Error, judge};

const LRU: u64 = 1 << 5;
const ANON: u64 = 1 << 12;
const SWAPBACKED: u64 = 1 << 14;
const PRESENT: u64 = 1 << 63;
const SHARED: u64 = 1 << 61;

/// Frames of the fixture: flags in the guest, and the right row after the gfn
/// (kind,color,region,position). The guest does not have the last one; most tests leave it out.
const FRAMES: [(u64, &str); 17] = [
    (1 << 32, "kernel,,,"),                               // 0x0 reserved
    (1 << 10, "free,,,"),                                 // 0x1 buddy
    (1 << 7 | 1 << 15, "slab,,,"),                        // 0x2 slab, head
    (1 << 7 | ANON | 1 << 16, "slab,,,"),                 // 0x3 slab, tail, looks anonymous
    (1 << 26, "page-table,,,"),                           // 0x4
    (1 << 17, "hugetlb,,,"),                              // 0x5
    (1 << 23, "offline,,,"),                              // 0x6
    (1 << 24, "kernel,,,"),                               // 0x7 zero page
    (LRU | ANON | SWAPBACKED, "anonymous,user-data,3,0"), // 0x8
    (LRU | ANON | SWAPBACKED, "anonymous,user-data,3,1"), // 0x9
    (LRU, "file,page-cache,1,0"),                         // 0xa /usr/bin/a,b page 0
    (LRU | 1 << 15, "file,page-cache,1,5"),               // 0xb /usr/bin/a,b page 5, head
    (1 << 16, "file,page-cache,1,6"),                     // 0xc its tail
    (LRU | SWAPBACKED, "shared,user-data,2,3"),           // 0xd /tmp/t page 3
    (LRU, "block-device,page-cache,,"),                   // 0xe
    (0, "kernel,,,"),                                     // 0xf untyped
    (1 << 20, "unknown,,,"),                              // 0x10 no page
];

const REGIONS: &str = "region,kind,name,frames\n\
    1,file,\"ext4:65024:12:/usr/bin/a,b\",3\n\
    2,shared,tmpfs:24:7:/tmp/t,1\n\
    3,anonymous,42:python3,2\n\
    4,file,ext4:65024:13:/etc/other,0\n\
    5,file,overlay:51:12:/merged/usr/bin/a.b,0\n";

struct Fixture {
    dir: TempDir,
    flags: Vec<u64>,
    rows: Vec<String>,
    regions: String,
    tolerance: u64,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self {
            dir: TempDir::new().unwrap(),
            flags: FRAMES.iter().map(|&(flags, _)| flags).collect(),
            rows: FRAMES.iter().map(|&(_, row)| row.to_owned()).collect(),
            regions: REGIONS.to_owned(),
            tolerance: 0,
        };
        std::fs::create_dir_all(fixture.dir.path().join("truth/gt")).unwrap();
        let mut files = Vec::new();
        for path in ["/usr/bin/a,b", "/usr/bin/hard-link"] {
            let pages: [(u64, u64); 4] = [(0, 0xa), (5, 0xb), (6, 0xc), (7, 0)];
            push_file(&mut files, path, 65024, 12, &pages);
        }
        push_file(&mut files, "/tmp/t", 24, 7, &[(3, 0xd)]);
        fixture.write("truth/gt/files", &files);
        fixture.write("truth/gt/proc_42_comm", b"python3\n");
        fixture.write_pagemap(
            42,
            &[(0x7000, PRESENT | 9), (0x1000, PRESENT | 8), (0x2000, PRESENT | SHARED | 0xa)],
        );
        fixture.write("truth/gt/proc_meminfo", b"MemTotal: 64 kB\nBuffers:               4 kB\n");
        fixture
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    fn write_words(&self, name: &str, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(name, &bytes);
    }

    fn write_pagemap(&self, pid: u64, entries: &[(u64, u64)]) {
        let words: Vec<u64> =
            entries.iter().flat_map(|&(address, entry)| [address, entry]).collect();
        self.write_words(&format!("truth/gt/proc_{pid}_pagemap"), &words);
    }

    /// Replaces the row of a frame.
    fn with_row(mut self, gfn: usize, row: &str) -> Self {
        row.clone_into(&mut self.rows[gfn]);
        self
    }

    fn args(&self) -> Args {
        let path = |name: &str| self.dir.path().join(name);
        self.write_words("truth/gt/proc_kpageflags", &self.flags);
        let mut frames = "gfn,kind,color,region,position\n".to_owned();
        for (gfn, row) in self.rows.iter().enumerate().filter(|(_, row)| !row.is_empty()) {
            writeln!(frames, "{gfn:#x},{row}").unwrap();
        }
        self.write("frames.csv", frames.as_bytes());
        self.write("regions.csv", self.regions.as_bytes());
        Args {
            guest_dir: self.dir.path().to_path_buf(),
            frames_from: Some(path("frames.csv")),
            regions_from: Some(path("regions.csv")),
            no_registers: false,
            truth: None,
            json: false,
            tolerance: self.tolerance,
            examples: 5,
        }
    }

    fn report(&self) -> Report {
        self.args().compare().unwrap()
    }

    fn coloring(&self) -> Coloring {
        let args = self.args();
        Coloring::load(&args.frames_from.unwrap(), &args.regions_from.unwrap()).unwrap()
    }
}

fn push_file(out: &mut Vec<u8>, path: &str, device: u64, inode: u64, pages: &[(u64, u64)]) {
    let length = u64::try_from(path.len()).unwrap();
    let count = u64::try_from(pages.len()).unwrap();
    let header = [length, device, inode, 0, count];
    out.extend(header.iter().flat_map(|word| word.to_le_bytes()));
    out.extend(path.as_bytes());
    let entries = pages.iter().flat_map(|&(index, gfn)| [index, PRESENT | SHARED | gfn]);
    out.extend(entries.flat_map(u64::to_le_bytes));
}

fn pages(report: &Report, verdict: Verdict) -> u64 {
    report.files().verdicts.get(&verdict).map_or(0, |pages| pages.pages)
}

fn failures(report: &Report) -> Vec<&str> {
    report.failures().iter().map(String::as_str).collect()
}

#[test]
fn a_right_coloring_passes() {
    let report = Fixture::new().with_row(0x10, "").report();
    assert!(report.passed(), "{report}");
    let frames = report.frames();
    let of = |class| {
        frames.classes.iter().find(|score| score.class == class).map_or(0, |score| score.right)
    };
    assert_eq!(of(Class::Kernel), 2);
    assert_eq!(of(Class::Slab), 2);
    assert_eq!(of(Class::Anonymous), 2);
    assert_eq!(
        of(Class::File),
        4,
        "the tail of a compound page and block-device cache are page cache"
    );
    assert_eq!((frames.frames, frames.unknown, frames.outside), (16, 0, 0));
    assert_eq!((frames.block_device, frames.buffers), (1, Some(1)));
    let files = report.files();
    assert_eq!(
        (files.files, files.files_right, files.pages, files.right_path),
        (2, 2, 4, 4),
        "hard links count once"
    );
    let process = &report.anonymous().processes[0];
    assert_eq!((process.pid, process.frames, process.right), (42, 2, 2));
    assert_eq!((process.named_by_pid, process.named_by_comm), (2, 2));
    assert_eq!((process.neighbors, process.neighbors_in_order), (1, 1));
}

#[test]
fn a_wrong_kind_fails_its_class_alone() {
    let report = Fixture::new().with_row(0x10, "").with_row(3, "anonymous,,,").report();
    assert_eq!(failures(&report), ["1 of 2 slab frames are wrong"]);
    let wrong = &report.frames().wrong[0];
    assert_eq!(
        (wrong.class, wrong.kind.unwrap().name(), wrong.cell.frames),
        (Class::Slab, "anonymous", 1)
    );
    assert_eq!(wrong.cell.examples[0].flags, "SLAB|ANON|COMPOUND_TAIL");
    assert_eq!(wrong.cell.examples[0].gfn, 3);
}

#[test]
fn every_class_is_judged() {
    for (gfn, (_, row)) in FRAMES.iter().enumerate().take(0xf) {
        let wrong = if row.starts_with("free") { "slab,,," } else { "free,,," };
        let report = Fixture::new().with_row(0x10, "").with_row(gfn, wrong).report();
        assert!(!report.passed(), "frame {gfn:#x} called {wrong}");
    }
}

#[test]
fn wrong_frames_up_to_the_tolerance_pass() {
    let mut fixture = Fixture::new().with_row(0x10, "").with_row(8, "kernel,,,");
    assert!(!fixture.report().passed());
    fixture.tolerance = 1;
    assert!(fixture.report().passed());
}

#[test]
fn a_frame_left_out_is_wrong_and_unknown_unless_it_is_reserved() {
    let report = Fixture::new().with_row(0x10, "").with_row(0, "").report();
    assert!(report.passed());
    assert_eq!(report.frames().reserved_left_out, 1);
    let report = Fixture::new().with_row(0x10, "").with_row(1, "").report();
    assert_eq!(failures(&report), ["1 of 1 free frames are wrong", "1 of 16 frames are unknown"]);
}

#[test]
fn untyped_frames_may_be_anything_but_unknown() {
    let report = Fixture::new().with_row(0x10, "").with_row(0xf, "free,,,").report();
    assert!(report.passed());
    let report = Fixture::new().with_row(0x10, "").with_row(0xf, "unknown,,,").report();
    assert_eq!(failures(&report), ["1 of 16 frames are unknown"]);
    assert_eq!(report.frames().untyped[0].cell.frames, 1);
}

#[test]
fn frames_the_guest_does_not_know_are_counted_apart() {
    for row in ["unknown,,,", "kernel,,,", "offline,,,"] {
        let report = Fixture::new().with_row(0x10, row).report();
        assert!(report.passed(), "{row}");
        assert_eq!((report.frames().outside, report.frames().unknown), (1, 0), "{row}");
    }
    let report = Fixture::new().with_row(0x10, "free,,,").report();
    assert_eq!(failures(&report), ["1 frames that the guest does not know are called free"]);
}

#[test]
fn only_a_frame_that_stays_wrong_is_wrong() {
    let coloring = Fixture::new().with_row(0x10, "").with_row(2, "free,,,").coloring();
    let runs = |flags: &[u64]| -> Vec<u8> {
        flags.iter().flat_map(|flags| [*flags, 1]).flat_map(u64::to_le_bytes).collect()
    };
    let same = FRAMES[..16].iter().map(|&(flags, _)| flags).collect::<Vec<_>>();
    let changed = [&same[..2], &[0], &same[3..]].concat();
    let judge = |after: &[u64], suspects: Option<&BTreeSet<u64>>| {
        let truth = Truth::of_runs(&runs(&same), &runs(after), 16).unwrap();
        judge::frames::judge(&truth, &coloring, 5, suspects)
    };
    // The frame was slab before and after.
    let findings = judge(&same, None);
    assert_eq!(findings.failures(0), ["1 of 2 slab frames are wrong"]);
    assert_eq!(findings.wrong_gfns, BTreeSet::from([2]));
    // The same frame was wrong in an earlier image.
    assert_eq!(judge(&same, Some(&findings.wrong_gfns)).failures(0).len(), 1);
    // Another frame was wrong in the earlier image, or the frame is no longer slab. It may have
    // been anything in between.
    for findings in [judge(&same, Some(&BTreeSet::from([3]))), judge(&changed, None)] {
        assert!(findings.failures(0).is_empty() && findings.wrong.is_empty());
        assert_eq!((findings.unstable, findings.wrong_gfns.len()), (1, 0));
    }
    assert!(Truth::of_runs(&runs(&same), &[0; 8], 16).is_err(), "half a pair");
}

#[test]
fn file_pages_have_a_verdict_each() {
    let cases = [
        ("file,,1,7", Verdict::OtherIndex),
        ("file,,1,", Verdict::OtherIndex),
        ("file,,4,6", Verdict::OtherFile),
        ("file,,3,6", Verdict::NoFile),
        ("file,,,6", Verdict::NoFile),
        ("", Verdict::LeftOut),
        ("file,,5,6", Verdict::OtherFile),
    ];
    for (row, verdict) in cases {
        let report = Fixture::new().with_row(0x10, "").with_row(0xc, row).report();
        assert_eq!(pages(&report, verdict), 1, "{row}: {report}");
        assert_eq!(pages(&report, Verdict::Exact), 3, "{row}");
        assert_eq!(report.files().files_right, 1, "{row}");
        assert!(failures(&report).contains(&"1 of 4 file pages are wrong"), "{row}");
    }
}

#[test]
fn names_of_files_may_differ_as_far_as_mounts_and_links_go() {
    let cases = [
        ("ext4:65024:12:/usr/bin/hard-link", Verdict::Exact, true),
        ("overlay:51:12:/usr/bin/a,b", Verdict::Alias, true),
        ("ext4:65024:12:/mnt/usr/bin/a,b", Verdict::Alias, true),
        ("ext4::12:/usr/bin/a,b", Verdict::Exact, true),
        ("ext4:65024:12:", Verdict::Nameless, true),
        ("ext4:65024:12:/usr/bin/c", Verdict::OtherPath, false),
        ("ext4:99:12:/usr/bin/c", Verdict::OtherFile, false),
        ("ext4:65024:13:/usr/bin/a,b", Verdict::OtherFile, false),
    ];
    for (name, verdict, right) in cases {
        let mut fixture = Fixture::new().with_row(0x10, "");
        fixture.regions = REGIONS.replace("ext4:65024:12:/usr/bin/a,b", name);
        let report = fixture.report();
        let of_the_other_file = u64::from(verdict == Verdict::Exact);
        assert_eq!(pages(&report, verdict), 3 + of_the_other_file, "{name}: {report}");
        assert_eq!(report.passed(), right, "{name}");
    }
}

#[test]
fn frames_whose_flags_changed_during_the_capture_are_not_judged() {
    let fixture = Fixture::new().with_row(0x10, "").with_row(0xa, "free,,,").with_row(8, "free,,,");
    assert!(!fixture.report().passed());
    let mut after = fixture.flags.clone();
    after[0xa] = 1 << 10;
    after[8] |= 1 << 2;
    fixture.write_words("truth/gt/proc_kpageflags_after", &after);
    let report = fixture.report();
    assert!(report.passed(), "{report}");
    assert_eq!(report.frames().unstable, 2);
    assert_eq!((report.files().unstable, report.files().pages), (1, 3));
    assert_eq!(report.anonymous().processes[0].frames, 1);
}

#[test]
fn a_page_that_lost_its_process_is_wrong() {
    // Without a region, and in the region of anonymous memory without a process.
    for row in ["anonymous,,,", "anonymous,,6,9"] {
        let mut fixture = Fixture::new().with_row(0x10, "").with_row(9, row);
        fixture.regions.push_str("6,anonymous,anonymous,1\n");
        let report = fixture.report();
        assert_eq!(failures(&report), ["1 of 2 anonymous frames lost their process"], "{row}");
        assert_eq!(
            (report.anonymous().processes[0].frames, report.anonymous().lost()),
            (2, (2, 1))
        );
        fixture.tolerance = 1;
        assert!(fixture.report().passed());
    }
    // A process without a known task counts as an owner, and so does another process that also
    // maps the page.
    for name in ["unnamed process", "sh[77]"] {
        let mut fixture = Fixture::new().with_row(0x10, "").with_row(9, "anonymous,,6,9");
        fixture.regions.push_str(&format!("6,anonymous,{name},1\n"));
        assert!(fixture.report().passed(), "{name}");
    }
}

#[test]
fn a_pagemap_of_another_moment_is_set_aside() {
    let fixture = Fixture::new().with_row(0x10, "");
    fixture.write_pagemap(
        41,
        &[(0x1000, PRESENT | 1), (0x2000, PRESENT | 2), (0x3000, PRESENT | SHARED | 0xa)],
    );
    let report = fixture.report();
    let [aside] = &report.anonymous().set_aside[..] else { panic!("{report}") };
    assert_eq!((aside.pid, aside.pages, aside.agreeing), (41, 3, 1));
    assert_eq!(report.anonymous().processes.len(), 1);
}

#[test]
fn regions_must_fit_their_frames() {
    let report = Fixture::new().with_row(0x10, "").with_row(0xa, "shared,,1,0").report();
    assert_eq!(report.defects()[0].problem, "is file, but has frames that are shared");
    let mut fixture = Fixture::new().with_row(0x10, "");
    fixture.regions = REGIONS.replace("42:python3,2", "42:python3,9");
    assert_eq!(fixture.report().defects()[0].problem, "says 9 frames, but 2 name it");
}

#[test]
fn csv_files_that_contradict_themselves_are_errors_with_a_line() {
    let line = |fixture: &Fixture| match fixture.args().compare() {
        Err(Error::Row { line, problem, .. }) => (line, problem),
        other => panic!("{other:?}"),
    };
    let fixture = Fixture::new().with_row(1, "free,,9,0");
    assert_eq!(line(&fixture), (3, "region 9 is not in the list of regions".to_owned()));
    let fixture = Fixture::new().with_row(1, "free,,,\n0x0,free,,,");
    assert_eq!(line(&fixture), (4, "frame 0x0 is listed twice".to_owned()));
    let mut fixture = Fixture::new();
    fixture.regions.push_str("4,file,again,0\n");
    assert_eq!(line(&fixture), (7, "region 4 is listed twice".to_owned()));
    // A file of another kind is an error, not a coloring without frames.
    fixture.regions = "no table\n".to_owned();
    assert_eq!(line(&fixture), (1, "there is no column `region`".to_owned()));
    let fixture = Fixture::new().with_row(1, "purple,,,");
    assert!(matches!(fixture.args().compare(), Err(Error::Csv { .. })));
}

#[test]
fn truth_that_is_damaged_or_not_there_is_an_error() {
    let fixture = Fixture::new();
    let mut args = fixture.args();
    fixture.write("truth/gt/proc_kpageflags", &[0; 12]);
    assert!(matches!(args.compare(), Err(Error::Truth { offset: 8, .. })));
    args.truth = Some(Path::new("/nowhere").to_path_buf());
    assert!(matches!(args.compare(), Err(Error::NoTruth { .. })));
}

#[test]
fn the_report_is_also_json() {
    let report = Fixture::new().with_row(0x10, "").with_row(3, "free,,,").report();
    let json: serde_json::Value = serde_json::to_value(&report).unwrap();
    assert_eq!(json["passed"], false);
    assert_eq!(json["frames"]["wrong"][0]["kind"], "free");
    assert_eq!(json["files"]["verdicts"]["exact"]["pages"], 4);
}
