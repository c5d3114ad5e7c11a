//! `docs/features.md` lists what each feature of the core links.
//!
//! The lists are those of `cargo tree`, without versions. `UPDATE_DOCS=1` rewrites them.

#![expect(clippy::unwrap_used, reason = "a test that cannot run cargo fails")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every feature for embedders, with the features that it enables.
const FEATURES: [(&str, &str); 8] = [
    ("write", ""),
    ("policies", ""),
    ("engine", "policies,write"),
    ("hooks", "engine"),
    ("wire", "engine"),
    ("tls", "wire"),
    ("replay", "policies,write"),
    ("dedup", "engine,replay"),
];

/// Crates that a program that only colors images must not link.
const ABSENT: [&str; 9] =
    ["csv", "hdrhistogram", "lru", "lz4_flex", "nix", "rustls", "socket2", "tempfile", "toml"];

/// What `cargo tree` prints of the core's dependencies, without versions.
fn tree(features: &str, prefix: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", "kaleidoscope-core", "--edges", "normal"])
        .args(["--no-default-features", "--features", features])
        .args(["--prefix", prefix, "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut text = String::new();
    for line in String::from_utf8(output.stdout).unwrap().lines().skip(1) {
        let (name, rest) = line.split_once(" v").unwrap();
        let repeated = if rest.ends_with("(*)") { " (*)" } else { "" };
        writeln!(text, "{name}{repeated}").unwrap();
    }
    text
}

fn crates(features: &str) -> BTreeSet<String> {
    let lines = tree(features, "none");
    lines.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

/// The part of the document that this test writes.
fn generated() -> String {
    let none = crates("");
    let mut text = format!("Without features: {} crates.\n\n```text\n", none.len());
    text += &tree("", "indent");
    text += "```\n\n| feature | enables | crates | adds |\n|---|---|---|---|\n";
    for (feature, enables) in FEATURES {
        let all = crates(feature);
        let before = crates(enables);
        let added: Vec<_> = all.difference(&before).cloned().collect();
        let added = if added.is_empty() { "-".to_owned() } else { added.join(", ") };
        let enables = if enables.is_empty() { "-" } else { enables }.replace(',', ", ");
        writeln!(text, "| `{feature}` | {enables} | {} | {added} |", all.len()).unwrap();
    }
    text
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/features.md")
}

#[test]
fn the_document_lists_what_each_feature_links() {
    const BEGIN: &str = "<!-- written by kaleidoscope-core/tests/features.rs -->\n";
    let text = fs::read_to_string(document()).unwrap();
    let (head, listed) = text.split_once(BEGIN).unwrap();
    let found = generated();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(document(), format!("{head}{BEGIN}{found}")).unwrap();
        return;
    }
    assert_eq!(listed, found, "run UPDATE_DOCS=1 cargo test -p kaleidoscope-core --test features");
}

#[test]
fn coloring_links_little() {
    let linked = crates("");
    for absent in ABSENT {
        assert!(!linked.contains(absent), "{absent} is linked without features");
    }
}

#[test]
fn every_feature_is_listed() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let features = manifest.split("[features]").nth(1).unwrap().split("\n[").next().unwrap();
    let script = document().with_file_name("../scripts/feature-matrix");
    let script = fs::read_to_string(script).unwrap();
    for line in features.lines() {
        let Some((name, _)) = line.split_once(" = ") else { continue };
        let is_listed = FEATURES.iter().any(|(feature, _)| *feature == name);
        assert!(is_listed || ["default", "internals"].contains(&name), "{name} is not documented");
        assert!(name == "default" || script.contains(name), "{name} is not in the matrix");
    }
}
