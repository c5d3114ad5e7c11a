//! Runs `kaleidoscope demo`, on KVM where there is one, and on mock machines.

#![expect(clippy::unwrap_used, reason = "tests")]

use serde_json::Value;
use std::process::Command;

/// The demonstration's JSON object, and what it said beside it.
fn demo(arguments: &[&str]) -> (Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kaleidoscope"));
    let output =
        command.args(["demo", "--json", "--clones", "2"]).args(arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    (serde_json::from_slice(&output.stdout).unwrap(), said)
}

fn names(results: &Value) -> Vec<&str> {
    results["ways"].as_array().unwrap().iter().map(|way| way["name"].as_str().unwrap()).collect()
}

fn check(results: &Value) {
    assert_eq!(results["clones"], 2);
    for way in results["ways"].as_array().unwrap() {
        assert_eq!(way["is_verified"], true, "{way}");
        assert!(way["took_us"].as_f64().unwrap() > 0.0, "{way}");
    }
}

#[test]
fn every_way_to_clone_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (results, said) = demo(&["--output", folder.path().to_str().unwrap()]);
    check(&results);
    let report = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    for name in names(&results) {
        assert!(report.contains(name), "{name}");
    }
    if results["pause_us"].is_null() {
        println!("******** SKIPPED: machines on KVM: {said} ********");
        return;
    }
    assert!(results["pause_us"].as_f64().unwrap() > 0.0);
    assert_eq!(names(&results).len(), 7);
    // Two for all ways, and one for each whose clones wait, unless they were done before there was
    // a curve to draw.
    assert!((3..=7).contains(&report.matches("<svg").count()));
    let png = std::fs::read(folder.path().join("colors.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG"));
    let way = |name: &str| {
        results["ways"].as_array().unwrap().iter().find(|way| way["name"] == name).unwrap()
    };
    let number = |name: &str, field: &str| way(name)[field].as_f64().unwrap();
    // What is counted is no matter of time: each of these is far from the other on any machine.
    assert!(number("on demand", "faults") > 2.0 * number("by color and use", "faults"));
    assert!(number("on demand", "prefetched_frames") < 0.5);
    assert!(number("local, copy on write", "moved_bytes") < 1e-9);
    assert!(number("local, copy on write", "memory_bytes") < number("on demand", "memory_bytes"));
}

#[test]
fn without_kvm_mock_machines_are_shown() {
    let (results, _) = demo(&["--mock"]);
    check(&results);
    assert_eq!(names(&results), ["on demand", "blind, 16 at a time"]);
    assert!(results["pause_us"].is_null());
}
