//! Synthetic guests as files, and a command of `kaleidoscope` at work on them.

use kaleidoscope_mock::linux::MockGuest;
use serde::de::DeserializeOwned;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Guests' memory, which the tests' guests have.
pub(crate) const RAM: u64 = 32 << 20;

/// A folder, and the command's words that every run in it begins with.
pub(crate) struct Files {
    folder: TempDir,
    words: &'static [&'static str],
}

impl Files {
    pub(crate) fn new(words: &'static [&'static str]) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), words }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a guest to a folder in this one: `ram.bin` and `layout.txt`.
    pub(crate) fn write_guest(&self, name: &str, guest: &MockGuest) {
        let folder = self.path(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("ram.bin"), guest.memory.bytes()).unwrap();
        let (mut layout, mut offset) = (String::new(), 0);
        for region in guest.truth.layout().regions() {
            let bytes = u64::from(region.frames) * 4096;
            writeln!(layout, "{offset:#x} {:#x} {bytes:#x}", region.start.gpa().0).unwrap();
            offset += bytes;
        }
        fs::write(folder.join("layout.txt"), layout).unwrap();
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_kaleidoscope"))
            .current_dir(self.folder.path())
            .args(self.words)
            .args(arguments)
            .output()
            .unwrap()
    }

    /// What a run prints with `--json`.
    pub(crate) fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> T {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a run says that fails.
    pub(crate) fn error(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success() && output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }
}
