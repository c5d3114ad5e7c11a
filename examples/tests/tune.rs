//! Runs `kaleidoscope tune` on synthetic guests.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

mod synthetic;

use kaleidoscope_core::addr::{FrameIndex, Gfn};
use kaleidoscope_core::color::Color;
use kaleidoscope_core::prefetch::Settings;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use synthetic::{Files, RAM};

/// Guests of two kernels as folders `old` and `new`, each with two traces.
fn guests() -> Files {
    let files = Files::new(&["tune"]);
    for (name, style) in [("old", KernelStyle::V5_10), ("new", KernelStyle::V6_12)] {
        let guest = GuestBuilder::new(style).seed(3).ram_bytes(RAM).build().unwrap();
        files.write_guest(name, &guest);
        fs::write(files.path(name).join("regs.txt"), registers(&guest)).unwrap();
        let traces = files.path(name).join("traces");
        fs::create_dir(&traces).unwrap();
        for (name, step) in [("few.csv", 7), ("many.csv", 3)] {
            fs::write(traces.join(name), trace(&guest, step)).unwrap();
        }
        fs::write(traces.join("few.json"), "{}").unwrap();
    }
    files
}

/// The first vCPU's registers as QEMU prints them.
fn registers(guest: &MockGuest) -> String {
    let vcpu = &guest.registers[0];
    format!(
        "CPU#0\nRIP={:016x} RSP=0000000000000000\nCR0={:08x} CR2=0000000000000000 CR3={:016x} CR4={:08x}\nEFER={:016x}\n",
        vcpu.rip,
        vcpu.cr0.unwrap(),
        vcpu.cr3.unwrap(),
        vcpu.cr4.unwrap(),
        vcpu.efer.unwrap()
    )
}

fn settings(guests: &Files, name: &str) -> Settings {
    Settings::parse(&fs::read_to_string(guests.path(name)).unwrap()).unwrap()
}

/// A clone that touches every page of files, and every `step`th other frame that is in use.
fn trace(guest: &MockGuest, step: usize) -> String {
    let frames: Vec<(FrameIndex, Gfn)> = guest.truth.layout().iter().collect();
    let is_file = |frame: FrameIndex| guest.truth.color(frame) == Color::FileCache;
    let is_free = |frame: FrameIndex| guest.truth.color(frame) == Color::Free;
    let files = frames.iter().filter(|(frame, _)| is_file(*frame));
    let others = frames.iter().filter(|(frame, _)| !is_file(*frame) && !is_free(*frame));
    let mut text = String::from("t_us,gfn\n");
    for (n, (_, gfn)) in files.chain(others.step_by(step)).enumerate() {
        writeln!(text, "{},{:x}", n * 50, gfn.0).unwrap();
    }
    text
}

fn number(of: &Value, field: &str) -> f64 {
    of[field].as_f64().unwrap()
}

#[test]
fn policies_are_tuned_written_and_tuned_on() {
    let guests = guests();
    let report =
        guests.json::<Value>(&["new", "old", "-o", "a.toml", "--rounds", "2", "--name", "mine"]);
    assert_eq!(report["policy"], "mine");
    assert_eq!(report["guests"].as_array().unwrap().len(), 2);
    assert_eq!(report["guests"][0]["traces"], 2, "what is no CSV is no trace");
    assert!(report.get("held_out").is_none());
    let (start, tuned) = (&report["start"], &report["tuned_on"]);
    assert!(number(tuned, "relative_cost") < number(start, "relative_cost"), "{report}");
    assert_eq!(
        number(tuned, "relative_cost"),
        number(tuned, "relative_faults") + number(tuned, "relative_waste")
    );
    let text = fs::read_to_string(guests.path("a.toml")).unwrap();
    assert!(
        text.starts_with(
            "# Tuned by `kaleidoscope tune` on 2 guests and 4 traces; price of waste 1,"
        )
    );
    assert!(text.contains("\n#   kernel 5.10."), "{text}");
    assert_eq!(settings(&guests, "a.toml").name, "mine");

    // The same again is the same; one step further is not worse, and keeps the name.
    guests.json::<Value>(&["new", "old", "-o", "b.toml", "--rounds", "2", "--name", "mine"]);
    assert_eq!(fs::read_to_string(guests.path("b.toml")).unwrap(), text);
    let further =
        guests.json::<Value>(&["new", "old", "-o", "b.toml", "--rounds", "1", "--start", "a.toml"]);
    assert_eq!(further["policy"], "mine");
    assert_eq!(further["start"], *tuned);
    assert!(number(&further["tuned_on"], "relative_cost") <= number(tuned, "relative_cost"));

    let dear =
        guests.json::<Value>(&["new", "old", "-o", "c.toml", "--rounds", "2", "--price", "20"]);
    assert!(
        number(&dear["tuned_on"], "relative_waste") < number(tuned, "relative_waste"),
        "{dear}"
    );
    assert_eq!(settings(&guests, "c.toml").name, "tuned");
}

#[test]
fn cross_validation_holds_kernels_out() {
    let guests = guests();
    let arguments = ["old", "new", "-o", "both.toml", "--rounds", "1"];
    let report = guests.json::<Value>(&[&arguments[..], &["--cross-validate"]].concat());
    let both = fs::read_to_string(guests.path("both.toml")).unwrap();
    assert!(both.contains("\n# On guests whose kernel was held out: faults "), "{both}");
    for (row, (own, other)) in [("old", "new"), ("new", "old")].into_iter().enumerate() {
        let row = &report["guests"][row];
        assert_eq!(row["guest"], own);
        // Held out: what tuning on the other alone gives.
        let alone = guests.json::<Value>(&[other, "-o", "other.toml", "--rounds", "1"]);
        assert_eq!(alone["guests"][0]["guest"], other);
        let judged = judge(&guests, own, "other.toml");
        assert_eq!(row["held_out"], judged, "{own}");
        assert_eq!(row["tuned_on"], judge(&guests, own, "both.toml"), "{own}");
    }

    let output = guests.run(&[&arguments[..], &["--cross-validate"]].concat());
    let table = String::from_utf8(output.stdout).unwrap();
    for words in ["held out: faults", "tuned on: faults", "mean over traces", "wrote both.toml"] {
        assert!(table.contains(words), "{words} in\n{table}");
    }
    assert_eq!(fs::read_to_string(guests.path("both.toml")).unwrap(), both);
}

/// How a policy file does on a guest: the score that tuning from it begins with.
fn judge(guests: &Files, guest: &str, policy: &str) -> Value {
    let arguments = [guest, "-o", "unused.toml", "--rounds", "1", "--start", policy];
    guests.json::<Value>(&arguments)["start"].clone()
}

#[test]
fn systems_that_are_not_known_are_tuned_for_too() {
    let guests = guests();
    let arguments = ["new", "old", "-o", "x.toml", "--rounds", "2", "--page-tables"];
    let report = guests.json::<Value>(&[&arguments[..], &["--cross-validate"]].concat());
    assert!(
        number(&report["tuned_on"], "relative_cost") < number(&report["start"], "relative_cost"),
        "{report}"
    );
    let text = fs::read_to_string(guests.path("x.toml")).unwrap();
    assert!(text.contains("by page tables alone") && text.contains("\n#   kernel 6.12."), "{text}");
    let tuned = settings(&guests, "x.toml");
    assert!(tuned.predict_caches.is_empty(), "nothing is known of slab caches: {tuned:?}");
    let known = ["anonymous", "kernel-", "page-table", "shared", "unknown"];
    let is_known = |class: &str| known.iter().any(|name| class.starts_with(name));
    assert!(tuned.predict.iter().all(|sign| is_known(sign.class.name())), "{tuned:?}");

    fs::remove_file(guests.path("new/regs.txt")).unwrap();
    let text = guests.error(&["new", "-o", "x.toml", "--page-tables"]);
    assert!(text.contains("registers tell of page tables") && text.contains("hint: "), "{text}");
}

#[test]
fn bad_arguments_say_what_to_do() {
    let guests = guests();
    let text = guests.error(&["old", "-o", "x.toml", "--cross-validate"]);
    assert!(text.contains("same kernel release\nhint: give guests of two"), "{text}");
    assert!(guests.error(&["old"]).contains("--output"));
    assert!(guests.error(&["old", "-o", "x.toml", "--price", "-1"]).contains("--price"));
    let text = guests.error(&["none", "-o", "x.toml"]);
    assert!(text.contains("none/traces: ") && text.contains("hint: a guest is a folder"), "{text}");
    fs::write(guests.path("bad.toml"), "name = \"x\"\nwindow = 3\n").unwrap();
    let text = guests.error(&["old", "-o", "x.toml", "--start", "bad.toml"]);
    assert!(
        text.contains("bad.toml: not a policy file") && text.contains("hint: --start"),
        "{text}"
    );
    fs::remove_file(guests.path("old/traces/few.csv")).unwrap();
    fs::remove_file(guests.path("old/traces/many.csv")).unwrap();
    let text = guests.error(&["old", "-o", "x.toml"]);
    assert!(text.contains("old/traces: there is no trace"), "{text}");
    let text = guests.error(&["new", "-o", "none/x.toml", "--rounds", "1"]);
    assert!(text.contains("none/x.toml: cannot be written: "), "{text}");
    assert!(!guests.path("x.toml").exists());
}
