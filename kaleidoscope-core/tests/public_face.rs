//! The public face of the core: `public-types.txt` lists every type that an embedder can name.
//!
//! The list comes from rustdoc's JSON, hidden items included. A change to it fails this test with
//! a difference; `scripts/public-types` rewrites the file.

#![expect(clippy::unwrap_used, reason = "a test that cannot read rustdoc's output fails")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every feature that an embedder may enable. `internals` is for fuzz targets and tests.
const FEATURES: &str = "dedup,hooks,replay,tls";

/// Crates whose types may appear in public signatures.
const ALLOWED_CRATES: [&str; 7] =
    ["kaleidoscope_core", "std", "core", "alloc", "vm_memory", "kvm_bindings", "kvm_ioctls"];

/// Items of rustdoc's JSON that count as types.
const TYPES: [&str; 5] = ["struct", "enum", "trait", "union", "type_alias"];

/// The JSON that rustdoc writes of the core, or why it cannot.
fn rustdoc(features: &str) -> Result<Value, String> {
    // The format is unstable. A wrapper allows it to rustdoc alone, so that no dependency is
    // compiled again.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let wrapper = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rustdoc-json");
    fs::write(&wrapper, "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc \"$@\"\n").unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["rustdoc", "--quiet", "--package", "kaleidoscope-core", "--lib"])
        .args(["--features", features, "--target-dir"])
        .arg(target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        .arg("--document-hidden-items")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTDOC", &wrapper)
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let json = fs::read(target.join("doc/kaleidoscope_core.json")).map_err(|e| e.to_string())?;
    let json: Value = serde_json::from_slice(&json).map_err(|e| e.to_string())?;
    let is_known = json.get("index").is_some_and(Value::is_object) && json.get("root").is_some();
    if is_known { Ok(json) } else { Err("rustdoc's JSON has another shape".to_owned()) }
}

fn item<'a>(json: &'a Value, id: &Value) -> Option<&'a Value> {
    json.get("index")?.get(id.to_string())
}

fn inner(item: &Value) -> (&str, &Value) {
    let (kind, inner) = item.get("inner").unwrap().as_object().unwrap().iter().next().unwrap();
    (kind, inner)
}

/// Adds the types that are public in a module, and below it.
fn collect(json: &Value, module: &Value, path: &str, found: &mut BTreeSet<String>) {
    let (_, module) = inner(module);
    for id in module.get("items").and_then(Value::as_array).unwrap() {
        let Some(item) = item(json, id) else { continue };
        if item.get("visibility").and_then(Value::as_str) == Some("public") {
            visit(json, item, path, found);
        }
    }
}

fn visit(json: &Value, shown: &Value, path: &str, found: &mut BTreeSet<String>) {
    let (kind, inside) = inner(shown);
    let name = |item: &Value| item.get("name").and_then(Value::as_str).unwrap().to_owned();
    let joined = |name: &str| if path.is_empty() { name.into() } else { format!("{path}::{name}") };
    if kind == "module" {
        collect(json, shown, &joined(&name(shown)), found);
    } else if kind == "use" {
        let alias = joined(&name(inside));
        match inside.get("id").and_then(|id| item(json, id)) {
            Some(used) if inner(used).0 == "module" => {
                let is_glob = inside.get("is_glob").and_then(Value::as_bool).unwrap();
                collect(json, used, if is_glob { path } else { &alias }, found);
            }
            Some(used) if TYPES.contains(&inner(used).0) => {
                found.insert(format!("{} {alias}", inner(used).0));
            }
            Some(_) => {}
            None => {
                found.insert(format!("foreign {alias}"));
            }
        }
    } else if TYPES.contains(&kind) {
        found.insert(format!("{kind} {}", joined(&name(shown))));
    }
}

fn public_types(json: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect(json, item(json, json.get("root").unwrap()).unwrap(), "", &mut found);
    found
}

/// Adds the crates of all types that a signature names.
fn crates_in(json: &Value, part: &Value, found: &mut BTreeSet<String>) {
    match part {
        Value::Object(fields) => {
            if let Some(id) = fields.get("resolved_path").and_then(|path| path.get("id")) {
                let path = json.get("paths").and_then(|paths| paths.get(id.to_string()));
                let names = path.and_then(|path| path.get("path")).and_then(Value::as_array);
                if let Some(name) = names.and_then(|names| names.first()).and_then(Value::as_str) {
                    found.insert(name.to_owned());
                }
            }
            for value in fields.values() {
                crates_in(json, value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| crates_in(json, value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The items that name types of other crates, one line each.
fn foreign_signatures(json: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for item in json.get("index").and_then(Value::as_object).unwrap().values() {
        let (kind, inside) = inner(item);
        // Crate 0 is the core; implementations of foreign traits are not signatures.
        let is_own = item.get("crate_id").and_then(Value::as_u64) == Some(0);
        if !is_own || !["function", "struct_field", "type_alias", "assoc_type"].contains(&kind) {
            continue;
        }
        // Private fields and what derives generate are not shown.
        let visibility = item.get("visibility").and_then(Value::as_str);
        if !matches!(visibility, Some("public" | "default")) {
            continue;
        }
        let mut crates = BTreeSet::new();
        crates_in(json, inside, &mut crates);
        crates.retain(|name| !ALLOWED_CRATES.contains(&name.as_str()));
        if !crates.is_empty() {
            let name = item.get("name").and_then(Value::as_str).unwrap_or("?");
            let file = item.get("span").and_then(|span| span.get("filename"));
            found.push(format!("{kind} {name} of {file:?} names {crates:?}"));
        }
    }
    found.sort();
    found
}

fn listing(default: &BTreeSet<String>, all: &BTreeSet<String>) -> String {
    let by_path = |types: Vec<&String>| {
        let mut types = types;
        types.sort_by_key(|line| line.split_once(' ').unwrap().1.to_owned());
        types.iter().fold(String::new(), |text, line| text + line + "\n")
    };
    let mut text = String::new();
    let more: Vec<_> = all.difference(default).collect();
    writeln!(text, "# With default features: {}", default.len()).unwrap();
    text += &by_path(default.iter().collect());
    writeln!(text, "\n# With {FEATURES}: {} more", more.len()).unwrap();
    text += &by_path(more);
    text
}

fn listed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("public-types.txt")
}

#[test]
fn every_public_type_is_listed() {
    let (default, all) = match (rustdoc(""), rustdoc(FEATURES)) {
        (Ok(default), Ok(all)) => (default, all),
        (Err(error), _) | (_, Err(error)) => {
            println!("******** SKIPPED: rustdoc writes no JSON here: {error} ********");
            return;
        }
    };
    let found = listing(&public_types(&default), &public_types(&all));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(listed(), &found).unwrap();
    }
    let listed = fs::read_to_string(listed()).unwrap_or_default();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (old, new) = (lines(&listed), lines(&found));
    let mut changes = String::new();
    for line in old.difference(&new) {
        writeln!(changes, "-{line}").unwrap();
    }
    for line in new.difference(&old) {
        writeln!(changes, "+{line}").unwrap();
    }
    assert!(
        listed == found,
        "the public types differ from kaleidoscope-core/public-types.txt:\n{changes}\
         if that is intended, run scripts/public-types and commit the file"
    );
    let foreign = foreign_signatures(&all);
    assert!(foreign.is_empty(), "types of other crates in signatures: {foreign:#?}");
}

/// The command is built as an embedder would build it: without the inner parts.
#[test]
fn only_tests_enable_the_inner_parts() {
    for manifest in ["backend-kvm", "backend-mock", "examples"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = fs::read_to_string(path.join(manifest).join("Cargo.toml")).unwrap();
        let normal = text.split("[dev-dependencies]").next().unwrap();
        assert!(!normal.contains("internals"), "{manifest} enables the inner parts");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(!text.contains("internals"), "the workspace enables the inner parts");
}
