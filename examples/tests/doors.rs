//! The doors of the README: the examples are what it quotes, and its handler serves a VMM from a
//! crate of its own.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of a test fail by panicking, and say what they skip"
)]

#[expect(
    dead_code,
    unreachable_pub,
    reason = "an example has a main function, which is not called here"
)]
#[path = "../examples/userfaultfd_vmm.rs"]
mod userfaultfd_vmm;

use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use userfaultfd::UffdBuilder;

/// Most lines of a door: blanks and comments are not counted.
const DOOR_LINES: usize = 20;

/// Most lines of a handler.
const HANDLER_LINES: usize = 40;

/// After this long, something hangs.
const WATCHDOG: Duration = Duration::from_secs(120);

/// The variable that makes a test's process the VMM: socket and memory file.
const VMM: &str = "KALEIDOSCOPE_TEST_VMM";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap()
}

/// What an example shows of itself.
fn door(example: &str) -> String {
    let text = text(&format!("examples/examples/{example}.rs"));
    let (_, rest) = text.split_once("// door: begin\n").unwrap();
    rest.split_once("// door: end\n").unwrap().0.to_owned()
}

/// Blocks of code in a text in Markdown, whose lines begin with `prefix`, as language and code.
fn blocks(text: &str, prefix: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines().filter_map(|line| line.strip_prefix(prefix)) {
        let line = line.strip_prefix(' ').filter(|_| !prefix.is_empty()).unwrap_or(line);
        match (open.take(), line.strip_prefix("```")) {
            (None, Some(language)) => open = Some((language.to_owned(), String::new())),
            (Some(block), Some(_)) => blocks.push(block),
            (Some((language, code)), None) => open = Some((language, code + line + "\n")),
            (None, None) => {}
        }
    }
    blocks
}

fn lines_of_code(code: &str) -> usize {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    code.lines().filter(is_code).count()
}

#[test]
fn doors_are_quoted_and_short() {
    let readme = text("README.md");
    let quoted = blocks(&readme, "");
    let rust: Vec<_> =
        quoted.iter().filter(|(l, _)| l.starts_with("rust")).map(|(_, c)| c.clone()).collect();
    let doors = ["color_image", "plan_for_fault", "serve_userfaultfd"].map(door);
    assert_eq!(rust, doors, "README.md");
    for door in &doors {
        let lines = lines_of_code(door);
        assert!(lines <= DOOR_LINES, "{lines} lines:\n{door}");
    }
    let holds = |path: &str, prefix: &str, door: &String| {
        let is_there = blocks(&text(path), prefix).iter().any(|(_, code)| code == door);
        assert!(is_there, "{path} does not quote\n{door}");
    };
    holds("kaleidoscope-core/src/lib.rs", "//!", &doors[0]);
    holds("kaleidoscope-core/src/lib.rs", "//!", &doors[1]);
    holds("backend-kvm/src/uffd/session/mod.rs", "///", &doors[2]);
    holds("docs/vmm-author.md", "", &doors[2]);
    holds("docs/policy-author.md", "", &door("own_policy"));
}

/// What the VMM's process does.
#[test]
fn vmm() {
    let Ok(what) = std::env::var(VMM) else { return };
    let (socket, file) = what.split_once(' ').unwrap();
    userfaultfd_vmm::run(Path::new(socket), Path::new(file)).unwrap();
}

fn wait(name: &str, child: &mut Child) {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{name}: {status}");
            return;
        }
        if start.elapsed() > WATCHDOG {
            child.kill().unwrap();
            panic!("{name} hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Builds a crate outside of the workspace from the README's two blocks.
fn build(folder: &Path) -> PathBuf {
    let readme = text("README.md");
    let quoted = blocks(&readme, "");
    let manifest = quoted.iter().find(|(language, _)| language == "toml").unwrap();
    let root = workspace();
    let manifest = manifest.1.replace("../kaleidoscope/", &format!("{}/", root.display()));
    let (_, handler) = quoted.iter().find(|(_, code)| code.contains("uffd::")).unwrap();
    assert!(lines_of_code(handler) <= HANDLER_LINES);
    fs::create_dir_all(folder.join("src")).unwrap();
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::write(folder.join("src/main.rs"), handler).unwrap();
    // The versions that are on this machine.
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let rustfmt = Command::new("rustfmt")
        .args(["--check", "--edition", "2024", "src/main.rs"])
        .current_dir(folder)
        .output();
    match rustfmt {
        Ok(output) if !output.status.success() => {
            panic!("rustfmt: {}", String::from_utf8_lossy(&output.stdout))
        }
        Ok(_) => {}
        Err(error) => println!("******** SKIPPED: rustfmt cannot be run ({error}) ********"),
    }
    // What this test's own build made is not made again, as far as features agree.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let cargo = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--quiet"])
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    target.join("debug/handler")
}

#[test]
fn a_crate_written_from_the_readme_serves_a_vmm() {
    let folder = tempfile::tempdir().unwrap();
    let handler = build(folder.path());
    if let Err(error) = UffdBuilder::new().user_mode_only(false).create() {
        println!("******** SKIPPED: no userfaultfd for another process here ({error}) ********");
        return;
    }
    let guest = GuestBuilder::new(KernelStyle::V6_12).ram_bytes(32 << 20).build().unwrap();
    let memory = folder.path().join("mem.bin");
    fs::write(&memory, guest.memory.bytes()).unwrap();
    let mut handler = Command::new(handler).current_dir(folder.path()).spawn().unwrap();
    let what = format!("{} {}", folder.path().join("uffd.sock").display(), memory.display());
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut vmm = command.args(["--exact", "vmm", "--nocapture"]).env(VMM, what).spawn().unwrap();
    wait("the VMM", &mut vmm);
    wait("the handler", &mut handler);
}
