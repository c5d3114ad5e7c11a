//! Runs `kaleidoscope dedup` on synthetic guests.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Output};
use tempfile::TempDir;

const RAM: u64 = 32 << 20;

/// Two guests of one kernel as folders `one` and `two`, the first with traces.
struct Guests(TempDir);

impl Guests {
    fn new() -> Self {
        let guests = Self(tempfile::tempdir().unwrap());
        for (name, seed) in [("one", 3), ("two", 4)] {
            let builder = GuestBuilder::new(KernelStyle::V6_1).seed(seed).ram_bytes(RAM);
            let guest = builder.build().unwrap();
            let folder = guests.0.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("ram.bin"), guest.memory.bytes()).unwrap();
            let (mut layout, mut offset) = (String::new(), 0);
            for region in guest.truth.layout().regions() {
                let bytes = u64::from(region.frames) * 4096;
                writeln!(layout, "{offset:#x} {:#x} {bytes:#x}", region.start.gpa().0).unwrap();
                offset += bytes;
            }
            fs::write(folder.join("layout.txt"), layout).unwrap();
        }
        guests
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_kaleidoscope"))
            .current_dir(self.0.path())
            .arg("dedup")
            .args(arguments)
            .output()
            .unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn error(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success() && output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }
}

fn count(of: &Value, field: &str) -> u64 {
    of[field].as_u64().unwrap()
}

#[test]
fn strategies_are_compared() {
    let guests = Guests::new();
    let report = guests.json(&["one", "two", "--png", "yield.png"]);
    let all = &report["strategies"];
    let blind = &all["blind"];
    assert_eq!(count(&report, "frames"), count(blind, "hashed"));
    let accounted = count(&report, "frames") + count(&report, "zero") + count(&report, "free");
    assert_eq!(accounted, 2 * RAM / 4096, "every frame is one of the three");
    assert_eq!(all.as_object().unwrap().len(), 6);
    for (name, row) in all.as_object().unwrap() {
        assert!(count(row, "shared") <= count(blind, "shared"), "{name}");
        assert_eq!(count(row, "net") + count(row, "diverged"), count(row, "shared"));
        assert!(count(row, "net") <= count(row, "bound"), "{name}: {row}");
    }
    assert!(count(&all["adaptive-5%"], "hashed") * 20 <= count(blind, "hashed"));
    assert!(count(&all["adaptive-25%"], "hashed") * 4 <= count(blind, "hashed"));
    let png = fs::read(guests.0.path().join("yield.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG"));

    let text = String::from_utf8(guests.run(&["one", "two"]).stdout).unwrap();
    for words in ["one: Linux 6.1", "adaptive-25%", "hashes/net", "no traces", "of blind"] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

#[test]
fn traces_say_what_diverges() {
    let guests = Guests::new();
    // The guest beside itself: all is shared, until a clone of one of them writes to everything.
    let alone = guests.json(&["one", "one"]);
    let blind = &alone["strategies"]["blind"];
    assert!(count(blind, "shared") * 2 >= count(blind, "hashed"));
    assert_eq!(count(blind, "diverged"), 0);
    let traces = guests.0.path().join("one/traces");
    fs::create_dir(&traces).unwrap();
    let mut text = "t_us,gfn,event,access_write\n".to_owned();
    for gfn in 0..RAM / 4096 {
        writeln!(text, "0,{gfn:x},touch,1").unwrap();
    }
    fs::write(traces.join("all.csv"), text).unwrap();
    let written = guests.json(&["one", "one"]);
    assert_eq!(written["images"][0]["workload"], "all");
    let blind = &written["strategies"]["blind"];
    assert_eq!((count(blind, "net"), count(blind, "diverged")), (0, count(blind, "shared")));
    fs::write(traces.join("all.csv"), "t_us\n").unwrap();
    let error = guests.error(&["one"]);
    assert!(error.contains("all.csv: not a trace") && error.contains("hint: traces/"), "{error}");
}

#[test]
fn yields_are_learned_and_used() {
    let guests = Guests::new();
    let output = guests.run(&["one", "two", "--learn", "mine.csv"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let learned = fs::read_to_string(guests.0.path().join("mine.csv")).unwrap();
    assert!(learned.starts_with("color,relation,hashed,"), "{learned}");
    assert!(learned.lines().count() > 5);
    guests.json(&["one", "two", "--yields", "mine.csv"]);
    fs::write(guests.0.path().join("bad.csv"), "x\n").unwrap();
    let error = guests.error(&["one", "--yields", "bad.csv"]);
    assert!(
        error.contains("bad.csv: the first line is not") && error.contains("hint: "),
        "{error}"
    );
    assert!(guests.error(&["one", "--learn", "x.csv"]).contains("hint: give two images"));
    assert!(guests.error(&["nobody"]).contains("nobody"));
}
