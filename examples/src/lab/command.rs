//! Runs host programs, with errors that suggest a remedy.

use std::io::ErrorKind;
use std::process::{Command, Output, Stdio};

use super::error::{Error, Result};
use crate::interrupt::child;
use crate::lines::last_lines;

/// A host program that the lab uses, and its package.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    /// Name on the path.
    pub(crate) program: &'static str,
    /// Debian package.
    pub(crate) package: &'static str,
    /// What to try when it fails; empty when its own message is enough.
    pub(crate) hint: &'static str,
}

const APT_HINT: &str =
    "\n(are the package lists present? run: apt-get update; then check that a mirror is reachable)";

pub(crate) const QEMU: Tool = tool("qemu-system-x86_64", "qemu-system-x86");
pub(crate) const DPKG_DEB: Tool = tool("dpkg-deb", "dpkg");
pub(crate) const TAR: Tool = tool("tar", "tar");
pub(crate) const XZ: Tool = tool("xz", "xz-utils");
pub(crate) const ZSTD: Tool = tool("zstd", "zstd");
pub(crate) const MKFS_EXT4: Tool = tool("mkfs.ext4", "e2fsprogs");
pub(crate) const DEBUGFS: Tool = tool("debugfs", "e2fsprogs");
pub(crate) const MKSQUASHFS: Tool = tool("mksquashfs", "squashfs-tools");
pub(crate) const MKFS_XFS: Tool = tool("mkfs.xfs", "xfsprogs");
pub(crate) const APT_GET: Tool = Tool { program: "apt-get", package: "apt", hint: APT_HINT };
pub(crate) const APT_CACHE: Tool = Tool { program: "apt-cache", package: "apt", hint: APT_HINT };

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package, hint: "" }
}

impl Tool {
    /// A command without standard input, in the C locale, and with `/sbin` on its path. mkfs is
    /// there, and an ordinary user's path often lacks this folder.
    pub(crate) fn command(self) -> Command {
        let mut command = Command::new(self.program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
        command.stdin(Stdio::null());
        command
    }

    /// Runs `command` to its end and returns what it printed.
    ///
    /// # Errors
    /// [`Error::MissingProgram`] if it is not installed, [`Error::Program`] if it fails.
    pub(crate) fn run(self, command: &mut Command) -> Result<Output> {
        let output = child::output(command).map_err(|source| self.not_started(source))?;
        if output.status.success() {
            return Ok(output);
        }
        Err(self.failed(command, &output))
    }

    /// The error for a program that could not be started.
    pub(crate) fn not_started(self, source: std::io::Error) -> Error {
        if source.kind() == ErrorKind::NotFound {
            Error::MissingProgram { program: self.program, package: self.package }
        } else {
            Error::Io { doing: "start", path: self.program.into(), source }
        }
    }

    fn failed(self, command: &Command, output: &Output) -> Error {
        let mut words = vec![self.program.to_owned()];
        words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
        Error::Program {
            command: words.join(" "),
            status: output.status,
            stderr: last_lines(&String::from_utf8_lossy(&output.stderr), 10),
            hint: self.hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let ghost = tool("kaleidoscope-no-such-program", "ghost-utils");
        let message = ghost.run(&mut ghost.command()).unwrap_err().to_string();
        assert!(message.contains("apt-get install -y ghost-utils"), "{message}");
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let sh = tool("sh", "dash");
        let message =
            sh.run(sh.command().args(["-c", "echo broken >&2; exit 3"])).unwrap_err().to_string();
        assert!(message.contains("broken") && message.contains('3'), "{message}");
    }
}
