//! Rules of the house that no compiler checks.

#![expect(clippy::unwrap_used, reason = "a test that cannot read the sources fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the core in the order of the pipeline: each may use those before it, never those
/// after it.
const PIPELINE: [&str; 28] = [
    "setters",
    "service",
    "output_file",
    "addr",
    "memory",
    "registers",
    "image",
    "fingerprint",
    "paging",
    "color",
    "region_name",
    "guest_os",
    "page_tables",
    "linux",
    "coloring",
    "identity",
    "codec",
    "manifest",
    "prefetch",
    "replay",
    "recording",
    "tune",
    "sync",
    "alloc",
    "dedup",
    "store",
    "clone",
    "wire",
];

/// Files that may hold unsafe code, each of which says why.
const UNSAFE_FILES: [&str; 24] = [
    "kaleidoscope-core/src/image/mapping.rs",
    "backend-kvm/src/capi/failure.rs",
    "backend-kvm/src/capi/map.rs",
    "backend-kvm/src/capi/pointers.rs",
    "backend-kvm/src/capi/policy.rs",
    "backend-kvm/src/capi/session.rs",
    "backend-kvm/src/capi/statistics.rs",
    "backend-kvm/src/sys/mapping.rs",
    "backend-kvm/src/sys/peer.rs",
    "backend-kvm/src/sys/scan.rs",
    "backend-kvm/src/sys/shared_words.rs",
    "backend-kvm/src/sys/userfault.rs",
    "backend-kvm/src/sys/vcpu.rs",
    "backend-kvm/tests/cloud_hypervisor/double/memory.rs",
    "backend-kvm/tests/session.rs",
    "examples/benches/uffd.rs",
    "examples/examples/userfaultfd_vmm.rs",
    "examples/src/interrupt/child.rs",
    "examples/src/lab/agent/os.rs",
    "examples/src/supervise/inherited.rs",
    "examples/tests/firecracker/double.rs",
    "examples/tests/firecracker/main.rs",
    "backend-mock/tests/hostile/meter.rs",
    "kaleidoscope-core/tests/prefetch_allocations.rs",
];

/// Most lines of a source file.
const MAX_LINES: usize = 600;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file below a folder, with its path from the workspace's root.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![workspace().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(workspace()).unwrap().display().to_string();
                found.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

fn all_sources() -> Vec<(String, String)> {
    ["kaleidoscope-core", "backend-kvm", "backend-mock", "examples", "fuzz"]
        .into_iter()
        .flat_map(sources)
        .collect()
}

#[test]
fn files_are_short() {
    let long: Vec<_> = all_sources()
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .collect();
    assert!(long.is_empty(), "one concept per file: split {long:?}");
}

#[test]
fn the_pipeline_has_one_direction() {
    let place = |module: &str| PIPELINE.iter().position(|m| *m == module);
    let mut wrong = Vec::new();
    for (name, text) in sources("kaleidoscope-core/src") {
        let path = name.strip_prefix("kaleidoscope-core/src/").unwrap();
        let module = path.split(['/', '.']).next().unwrap();
        if module == "lib" {
            continue;
        }
        let own = place(module).unwrap_or_else(|| panic!("{name}: not in the pipeline"));
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for used in line.split("crate::").skip(1) {
                let used = used.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                if place(used).is_some_and(|place| place > own) {
                    wrong.push(format!("{name} uses {used}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Parts of the clone engine from the lowest to the highest. A fault is followed by reading down:
/// each part uses those before it, never those after it.
const ENGINE: [&[&str]; 10] = [
    &["accounts", "frame_states", "granules", "staging", "waiters"],
    &["state"],
    &["background_fill"],
    &["scheduler"],
    &["events"],
    &["install"],
    &["fetcher"],
    &["fault", "granule_fault"],
    &["core"],
    &["stream", "reclaim"],
];

#[test]
fn the_engine_has_one_direction() {
    let level = |module: &str| ENGINE.iter().position(|level| level.contains(&module));
    let mut wrong = Vec::new();
    let folder = "kaleidoscope-core/src/clone/engine/";
    for (name, text) in sources("kaleidoscope-core/src/clone/engine") {
        let path = name.strip_prefix(folder).unwrap();
        let module = path.split(['/', '.']).next().unwrap();
        if ["mod", "model", "tests"].contains(&module) {
            continue;
        }
        let own = level(module).unwrap_or_else(|| panic!("{name}: not in the engine's order"));
        for used in text.lines().filter_map(|line| line.trim_start().strip_prefix("use super::")) {
            let used = used.trim_start_matches("super::");
            let used = used.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
            if level(used).is_some_and(|level| level > own) {
                wrong.push(format!("{name} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_documents_state_the_same_order() {
    let text = |path: &str| fs::read_to_string(workspace().join(path)).unwrap();
    let architecture = text("ARCHITECTURE.md");
    let (_, figure) = architecture.split_once("## The pipeline of the core").unwrap();
    let (figure, _) = figure.split_once("\n## ").unwrap();
    let rows: Vec<_> =
        figure.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows, PIPELINE, "ARCHITECTURE.md");

    // lib.rs leaves out modules that the crate does not export.
    let library = text("kaleidoscope-core/src/lib.rs");
    let links = library.lines().take_while(|line| line.starts_with("//!"));
    let links = links.flat_map(|line| line.split("[`").skip(1));
    let named: Vec<_> = links.filter_map(|link| link.split('`').next()).collect();
    let exported = |module: &str| library.contains(&format!("pub mod {module};"));
    let left_out = ["service", "output_file"];
    let expected = PIPELINE.into_iter().filter(|m| exported(m) && !left_out.contains(m));
    assert_eq!(named, expected.collect::<Vec<_>>(), "lib.rs");
    let declared = library.lines().filter(|line| line.ends_with(';') && line.contains("mod "));
    assert_eq!(declared.count(), PIPELINE.len(), "lib.rs");
}

#[test]
fn the_core_names_no_backend() {
    for (name, text) in sources("kaleidoscope-core/src") {
        for backend in ["kaleidoscope_kvm", "kaleidoscope_xen", "kaleidoscope_mock"] {
            assert!(!text.contains(backend), "{name} names {backend}");
        }
    }
}

#[test]
fn unsafe_code_is_in_few_files() {
    for (name, text) in all_sources() {
        if text.contains("expect(unsafe_code") || text.contains("allow(unsafe_code") {
            let is_listed = UNSAFE_FILES.contains(&name.as_str());
            assert!(is_listed || name.ends_with("tests/tidy.rs"), "{name} has unsafe code");
        }
    }
}
