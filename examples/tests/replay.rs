//! Runs `kaleidoscope replay` on a synthetic guest.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test fail by panicking")]

mod synthetic;

use kaleidoscope_core::addr::{FrameIndex, Gfn};
use kaleidoscope_core::color::Color;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use synthetic::{Files, RAM};

/// A guest as files: `ram.bin`, `layout.txt`, and two traces of clones.
fn files() -> Files {
    let guest = GuestBuilder::new(KernelStyle::V6_12).seed(3).ram_bytes(RAM).build().unwrap();
    let files = Files::new(&["replay", "ram.bin", "--layout", "layout.txt"]);
    files.write_guest("", &guest);
    fs::write(files.path("some.csv"), trace(&guest, 3)).unwrap();
    fs::write(files.path("more.csv"), trace(&guest, 2)).unwrap();
    files
}

/// A clone that touches every `step`th frame that is in use, and some that are free.
fn trace(guest: &MockGuest, step: usize) -> String {
    let frames: Vec<(FrameIndex, Gfn)> = guest.truth.layout().iter().collect();
    let is_free = |frame: FrameIndex| guest.truth.color(frame) == Color::Free;
    let used = frames.iter().filter(|(frame, _)| !is_free(*frame)).step_by(step);
    let free = frames.iter().filter(|(frame, _)| is_free(*frame)).step_by(97);
    let mut text = String::from("t_us,gfn,access_write\n");
    for (n, (_, gfn)) in used.chain(free).enumerate() {
        writeln!(text, "{},{:x},{}", n * 50, gfn.0, n % 2).unwrap();
    }
    text
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"))
}

fn row<'a>(rows: &'a [Value], trace: &str, policy: &str) -> &'a Value {
    rows.iter().find(|row| row["trace"] == trace && row["policy"] == policy).unwrap()
}

#[test]
fn policies_do_what_they_are_for() {
    let files = files();
    let rows = files.json::<Vec<Value>>(&["--trace", "some.csv", "more.csv"]);
    assert_eq!(rows.len(), 16, "two traces, eight policies");
    for row in &rows {
        for field in [
            "needed_frames",
            "free_touched_frames",
            "faults",
            "late",
            "zero_faults",
            "prefetched_frames",
            "wasted_frames",
            "free_transferred_frames",
            "transferred_frames",
            "bytes",
            "wait_p50_us",
            "wait_p99_us",
            "stall_us",
            "resident_frames",
        ] {
            assert!(number(row, field) >= 0.0);
        }
        assert!((0.0..=1.0).contains(&number(row, "coverage")));
        assert!((0.0..=1.0).contains(&number(row, "accuracy")));
        for percent in ["50", "90", "99"] {
            assert!(number(&row["working_set_us"], percent) > 0.0);
        }
        assert_eq!(row["cost_model"], "gbe");
        let footprint: f64 =
            row["footprint_frames"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
        assert_eq!(footprint, number(row, "resident_frames"));
    }
    for trace in ["some", "more"] {
        let of = |policy, field| number(row(&rows, trace, policy), field);
        let touched = of("demand", "needed_frames") + of("demand", "free_touched_frames");
        assert!(of("demand", "free_touched_frames") > 0.0);
        assert_eq!(of("demand", "faults"), touched);
        assert_eq!(of("demand", "coverage"), 0.0);
        assert_eq!(of("demand", "prefetched_frames"), 0.0);
        assert_eq!(of("demand", "resident_frames"), touched);

        for policy in ["paper", "paper-pivot", "region", "predicted", "oracle"] {
            assert_eq!(of(policy, "free_transferred_frames"), 0.0, "{policy}");
            // The paper's policy fills free frames one by one, the others ahead.
            let touched = of("demand", "free_touched_frames");
            let one_by_one = policy.starts_with("paper");
            let faults = of(policy, "zero_faults");
            assert!(if one_by_one { faults == touched } else { faults < touched }, "{policy}");
        }
        for policy in ["blind-next-16", "blind-aligned-16"] {
            assert!(
                of(policy, "free_transferred_frames") > of("demand", "free_transferred_frames"),
                "{policy}"
            );
        }

        assert_eq!(of("oracle", "wasted_frames"), 0.0);
        let others = rows.iter().filter(|row| row["trace"] == trace && row["policy"] != "oracle");
        for policy in others.map(|row| row["policy"].as_str().unwrap()) {
            for field in ["faults", "stall_us"] {
                assert!(of("oracle", field) < of(policy, field), "{field} of {policy}");
            }
            assert!(of("oracle", "coverage") > of(policy, "coverage"), "{policy}");
            assert!(of(policy, "needed_frames") == of("demand", "needed_frames"));
        }
    }
}

#[test]
fn faster_networks_wait_less_and_slower_clocks_prefetch_more() {
    let files = files();
    let stall = |arguments: &[&str]| {
        let rows = files.json::<Vec<Value>>(
            &[&["--trace", "some.csv", "--policy", "demand"], arguments].concat(),
        );
        assert_eq!(rows.len(), 1);
        number(&rows[0], "stall_us")
    };
    let gbe = stall(&[]);
    assert!(stall(&["--cost", "25gbe"]) < gbe / 3.0);
    assert_eq!(stall(&["--cost", "fault=300,page=35"]), gbe);
    let prefetched = |arguments: &[&str]| {
        let arguments = [&["--trace", "some.csv", "--policy", "blind-next-64"], arguments].concat();
        number(&files.json::<Vec<Value>>(&arguments)[0], "prefetched_frames")
    };
    assert!(prefetched(&["--budget", "2"]) < prefetched(&[]));
    let covered = |speed: &str| {
        let arguments = ["--trace", "some.csv", "--policy", "paper", "--speed", speed];
        number(&files.json::<Vec<Value>>(&arguments)[0], "coverage")
    };
    assert!(covered("100") < covered("0.1"), "what comes in time depends on the clock");
}

#[test]
fn tables_and_pictures_are_always_the_same() {
    let files = files();
    let run = || {
        let output = files.run(&["--trace", "some.csv", "more.csv", "--plot", "p.svg"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (
            String::from_utf8(output.stdout).unwrap(),
            fs::read_to_string(files.path("p.svg")).unwrap(),
        )
    };
    let (text, picture) = run();
    assert_eq!(run(), (text.clone(), picture.clone()));
    for words in [
        "some: ",
        "more: ",
        "geometric means over 2 traces",
        "faults against waste",
        "blind-aligned-256",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    let oracle = text.lines().rfind(|line| line.starts_with("oracle")).unwrap();
    assert!(oracle.ends_with("better on both"), "{oracle}");
    assert!(picture.starts_with("<svg") && picture.contains("oracle"));
}

#[test]
fn bad_arguments_say_what_to_do() {
    let files = files();
    let error = |arguments: &[&str]| files.error(arguments);
    let text = error(&["--trace", "some.csv", "--policy", "paper,magic"]);
    assert!(text.contains("'magic'") && text.contains("there are demand, blind-next-N"), "{text}");
    let text = error(&["--trace", "some.csv", "--cost", "fault=1"]);
    assert!(text.contains("needs `page=`"), "{text}");
    assert!(error(&[]).contains("--trace"));
    assert!(error(&["--trace", "some.csv", "--speed", "0"]).contains("a number above 0"));
    assert!(error(&["--trace", "none.csv"]).contains("none.csv"));
    fs::write(files.path("bad.csv"), "t_us,gfn\n0,ffffffff\n").unwrap();
    let text = error(&["--trace", "bad.csv"]);
    assert!(text.contains("bad.csv: line 2: the guest has no RAM at frame"), "{text}");
    assert!(text.contains("\nhint: "), "{text}");
    assert!(!files.path("p.svg").exists());
}
