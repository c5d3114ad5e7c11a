//! Runs `kaleidoscope dedup` on synthetic guests.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test's figures, and what it skips, are for people"
)]
#![expect(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

mod synthetic;

use kaleidoscope_mock::linux::{FileKind, GuestBuilder, KernelStyle, MockGuest};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use synthetic::{Files, RAM};

/// Two guests of one kernel as folders `one` and `two`.
fn guests() -> Files {
    let files = Files::new(&["dedup"]);
    for (name, seed) in [("one", 3), ("two", 4)] {
        let builder = GuestBuilder::new(KernelStyle::V6_1).seed(seed).ram_bytes(RAM);
        files.write_guest(name, &builder.build().unwrap());
    }
    files
}

fn count(of: &Value, field: &str) -> u64 {
    of[field].as_u64().unwrap()
}

#[test]
fn strategies_are_compared() {
    let guests = guests();
    let report = guests.json::<Value>(&["one", "two", "--plot", "yield.png"]);
    let all = &report["strategies"];
    let blind = &all["blind"];
    assert_eq!(count(&report, "frames"), count(blind, "hashed_frames"));
    let accounted =
        count(&report, "frames") + count(&report, "zero_frames") + count(&report, "free_frames");
    assert_eq!(accounted, 2 * RAM / 4096, "every frame is one of the three");
    assert_eq!(all.as_object().unwrap().len(), 9);
    for (name, row) in all.as_object().unwrap() {
        assert!(count(row, "shared_frames") <= count(blind, "shared_frames"), "{name}");
        assert_eq!(
            count(row, "net_frames") + count(row, "diverged_frames"),
            count(row, "shared_frames")
        );
        assert!(count(row, "net_frames") <= count(row, "bound_frames"), "{name}: {row}");
    }
    assert!(count(&all["adaptive-5%"], "hashed_frames") * 20 <= count(blind, "hashed_frames"));
    assert!(count(&all["adaptive-25%"], "hashed_frames") * 4 <= count(blind, "hashed_frames"));
    let sieved = &all["sieved-25%"];
    assert_eq!(count(sieved, "glanced_frames"), count(blind, "hashed_frames"));
    assert!(count(sieved, "hashed_frames") * 4 <= count(blind, "hashed_frames"));
    assert!(count(&all["sieved"], "glanced_frames") < count(blind, "hashed_frames"));
    assert!(count(&all["sieved-5%"], "hashed_frames") * 20 <= count(blind, "hashed_frames"));
    let png = fs::read(guests.path("yield.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG"));

    let text = String::from_utf8(guests.run(&["one", "two"]).stdout).unwrap();
    for words in ["one: Linux 6.1", "adaptive-25%", "hashes/net", "no traces", "of blind"] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

#[test]
fn traces_say_what_diverges() {
    let guests = guests();
    // The guest beside itself: all is shared, until a clone of one of them writes to everything.
    let alone = guests.json::<Value>(&["one", "one"]);
    let blind = &alone["strategies"]["blind"];
    assert!(count(blind, "shared_frames") * 2 >= count(blind, "hashed_frames"));
    assert_eq!(count(blind, "diverged_frames"), 0);
    let traces = guests.path("one/traces");
    fs::create_dir(&traces).unwrap();
    let mut text = "t_us,gfn,event,access_write\n".to_owned();
    for gfn in 0..RAM / 4096 {
        writeln!(text, "0,{gfn:x},touch,1").unwrap();
    }
    fs::write(traces.join("all.csv"), text).unwrap();
    let written = guests.json::<Value>(&["one", "one"]);
    assert_eq!(written["images"][0]["workload"], "all");
    let blind = &written["strategies"]["blind"];
    assert_eq!(
        (count(blind, "net_frames"), count(blind, "diverged_frames")),
        (0, count(blind, "shared_frames"))
    );
    fs::write(traces.join("all.csv"), "t_us\n").unwrap();
    let error = guests.error(&["one"]);
    assert!(error.contains("all.csv: not a trace") && error.contains("hint: traces/"), "{error}");
}

#[test]
fn yields_are_learned_and_used() {
    let guests = guests();
    let output = guests.run(&["one", "two", "--hit-rates-to", "mine.csv"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let learned = fs::read_to_string(guests.path("mine.csv")).unwrap();
    assert!(learned.starts_with("color,relation,heat,hashed,"), "{learned}");
    assert!(learned.lines().count() > 5);
    guests.json::<Value>(&["one", "two", "--hit-rates-from", "mine.csv"]);
    fs::write(guests.path("bad.csv"), "x\n").unwrap();
    let error = guests.error(&["one", "--hit-rates-from", "bad.csv"]);
    assert!(
        error.contains("bad.csv: the first line is not") && error.contains("hint: "),
        "{error}"
    );
    assert!(guests.error(&["one", "--hit-rates-to", "x.csv"]).contains("hint: give two images"));
    assert!(guests.error(&["nobody"]).contains("nobody"));
}

/// Why the kernel's merging cannot be tried here.
///
/// It is one for the whole host: other programs that have memory merged, or run this test just then, are in
/// its figures, and it finds in time only what a host at rest leaves time for. So it is tried when
/// that is asked for, as `.ci/run` does once.
fn no_ksm() -> Option<&'static str> {
    if std::env::var_os("KALEIDOSCOPE_KSM").is_none() {
        return Some(
            "it is the whole host's; KALEIDOSCOPE_KSM=1 tries it where nobody else uses it",
        );
    }
    match fs::read_to_string("/sys/kernel/mm/ksm/run") {
        Err(_) => Some("this kernel has no KSM"),
        Ok(run) if run.trim() == "1" => Some("somebody uses KSM here"),
        Ok(_) if fs::OpenOptions::new().write(true).open("/sys/kernel/mm/ksm/run").is_err() => {
            Some("KSM's settings are root's")
        }
        Ok(_) => None,
    }
}

#[test]
fn the_kernel_merges_what_is_equal() {
    if let Some(why) = no_ksm() {
        eprintln!("******** SKIPPED: the kernel's merging: {why} ********");
        return;
    }
    let settings = || fs::read_to_string("/sys/kernel/mm/ksm/pages_to_scan").unwrap();
    let before = settings();
    let guests = guests();
    let report = guests.json::<Value>(&["one", "two", "--ksm"]);
    assert_eq!(settings(), before);
    let (all, selected) = (&report["ksm"], &report["ksm_selected"]);
    let (blind, adaptive) = (&report["strategies"]["blind"], &report["strategies"]["adaptive"]);
    assert_eq!(count(all, "frames"), count(&report, "frames") + count(&report, "zero_frames"));
    assert!(count(selected, "frames") >= count(adaptive, "hashed_frames"));
    assert!(count(selected, "ranges") > 0);
    // It keeps one copy for each 256, and for whatever it did not get to see twice.
    let (found, equal) = (count(all, "shared_frames"), count(blind, "shared_frames"));
    assert!(found <= equal && found * 10 >= equal * 9, "{found} of {equal}");
    let (found, equal) = (count(selected, "shared_frames"), count(adaptive, "shared_frames"));
    assert!(found <= equal && found * 10 >= equal * 9, "{found} of {equal} that were selected");
}

/// The first page of a library with a build id of these bytes.
fn library(id: u8) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let parts: [(usize, &[u8]); 8] = [
        (0, b"\x7fELF\x02\x01\x01"),
        (16, &[3, 0, 62]),
        // One program header at 64: notes, 24 bytes at 120.
        (32, &[64]),
        (54, &[56, 0, 1]),
        (64, &[4]),
        (72, &[120]),
        (96, &[24]),
        (
            120,
            &[
                4, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0, id, id, id, id, id, id,
                id, id,
            ],
        ),
    ];
    for (at, bytes) in parts {
        page[at..at + bytes.len()].copy_from_slice(bytes);
    }
    page
}

/// Makes every file whose first page is cached a library.
fn make_libraries(guest: &mut MockGuest, id: u8) {
    let files = guest.truth.files.iter().filter(|file| file.kind == FileKind::Regular);
    for (first, _) in files.filter_map(|file| file.folios.get(&0)) {
        guest.memory.write(first.gpa(), &library(id)).unwrap();
    }
}

#[test]
fn build_ids_relate_files() {
    let files = Files::new(&["dedup"]);
    let learn = |ids: Option<[u8; 2]>| {
        for (name, seed, at) in [("one", 3, 0), ("two", 4, 1)] {
            let builder = GuestBuilder::new(KernelStyle::V6_1).seed(seed).ram_bytes(RAM);
            let mut guest = builder.build().unwrap();
            if let Some(ids) = ids {
                make_libraries(&mut guest, ids[at]);
            }
            files.write_guest(name, &guest);
        }
        let output = files.run(&["one", "two", "--hit-rates-to", "mine.csv"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let learned = fs::read_to_string(files.path("mine.csv")).unwrap();
        ["same-file", "like-file", "other-file"].map(|relation| {
            let start = format!("file-cache,{relation},cold,");
            let row = learned.lines().find_map(|line| line.strip_prefix(&start));
            row.map_or(0.0, |row| row.split(',').next().unwrap().parse::<f64>().unwrap())
        })
    };
    let (without, same, other) = (learn(None), learn(Some([1, 1])), learn(Some([1, 2])));
    // Guests of other seeds have other inode numbers. Files whose first page is not cached stay as
    // they are.
    assert!(without[0] == 0.0 && without[1] > 0.0, "{without:?}");
    assert!(same[0] > 10.0 * (same[1] + same[2]), "{same:?}");
    assert!(other[0] == 0.0 && other[1] < without[1] && other[2] > without[2], "{other:?}");
}
