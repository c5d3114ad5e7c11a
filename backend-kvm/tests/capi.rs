//! C and Go programs use the library: `examples/c/serve.c` and `examples/go/serve.go` serve a
//! userfaultfd, `tests/capi` checks every function with right and with wrong arguments.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use kaleidoscope_core::addr::{FRAME_BYTES, Gpa};
use kaleidoscope_core::color::{Color, ColorMap, Frame, FrameKind, KernelIdentity};
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::manifest::{ImageIdentity, Manifest};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout, VecMemory};
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use rustix::fs::{CWD, Mode, mkfifoat};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The library and the programs, built once; `None` without a C compiler.
static BUILT: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    if Command::new("cc").arg("--version").output().is_err() {
        println!("SKIPPED: there is no C compiler");
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
    for arguments in [&["build", "--debug"] as &[&str], &["examples"]] {
        let mut command = Command::new(workspace().join("scripts/capi"));
        command.arg(arguments[0]).arg(&folder).args(&arguments[1..]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/capi {arguments:?}: {said}");
    }
    Some(folder)
});

/// Runs a program, which has to succeed.
fn run(program: &str, arguments: &[&Path]) {
    let Some(built) = &*BUILT else { return };
    let output = Command::new(built.join("bin").join(program)).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
    println!("{program}: {said}");
}

/// Writes a memory file and its manifest.
fn files(folder: &Path, memory: &dyn GuestMemory, map: ColorMap) -> [PathBuf; 2] {
    let [manifest, file] = ["guest.kscope", "guest.bin"].map(|name| folder.join(name));
    let mut bytes = Vec::new();
    for (_, gfn) in memory.layout().iter() {
        let mut page = [0; FRAME_BYTES];
        memory.read(gfn.gpa(), &mut page).unwrap();
        bytes.extend(page);
    }
    std::fs::write(&file, bytes).unwrap();
    let identity = ImageIdentity::of(memory, &map).unwrap();
    Manifest::new(map, identity).write_file(&manifest).unwrap();
    [manifest, file]
}

/// The files of a guest with a kernel.
fn guest(folder: &Path) -> [PathBuf; 2] {
    let guest = GuestBuilder::new(KernelStyle::V6_12).ram_bytes(32 << 20).build().unwrap();
    let map = color(&guest.memory, &ColoringOptions::default()).unwrap().map;
    files(folder, &guest.memory, map)
}

#[test]
fn a_c_program_serves_a_userfaultfd() {
    let folder = tempfile::tempdir().unwrap();
    let [manifest, memory] = guest(folder.path());
    run("serve", &[&manifest, &memory]);
    run("serve", &[&manifest, &memory, Path::new("firecracker")]);
    if Command::new("pkg-config").arg("--version").output().is_err() {
        println!("SKIPPED: the static library, because there is no pkg-config");
        return;
    }
    run("serve-static", &[&manifest, &memory]);
}

#[test]
fn a_go_program_serves_a_userfaultfd() {
    if Command::new("go").arg("version").output().is_err() {
        println!("SKIPPED: there is no Go compiler");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [manifest, memory] = guest(folder.path());
    run("serve-go", &[&manifest, &memory]);
}

#[test]
fn zeros_are_planned_for_verified_memory_only() {
    let folder = tempfile::tempdir().unwrap();
    let [manifest, memory] = guest(folder.path());
    run("zeros", &[&manifest, &memory]);
}

#[test]
fn every_function_checks_its_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let layout = MemoryLayout::new(&[(Gpa(0), 4 << 20), (Gpa(1 << 32), 4 << 20)]).unwrap();
    let mut memory = VecMemory::zeroed(layout.clone());
    memory.write(Gpa(0x3000), b"the parent").unwrap();
    let frame = |index: u32| match index {
        5 => Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() },
        _ => Frame { kind: FrameKind::Kernel, color: Color::KernelText, ..Frame::default() },
    };
    let frames = (0..layout.frames()).map(frame);
    let map = ColorMap::new(layout.clone(), KernelIdentity::default(), frames, vec![]).unwrap();
    let [manifest, file] = files(folder.path(), &memory, map);
    let other = folder.path().join("other.bin");
    std::fs::write(&other, vec![1; 8 << 20]).unwrap();
    let pipe = folder.path().join("pipe");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    run("calls", &[&manifest, &file, &other, &pipe]);
}
