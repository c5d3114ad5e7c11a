//! An initramfs for a guest that runs one program.

use crate::cpio::CpioWriter;
use crate::interrupt::{Scratch, child};
use crate::vm::Outcome;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A cpio archive with a program as `/init`, the shared libraries that it needs, and mount points.
pub(crate) fn with_program(program: &Path) -> Outcome<Vec<u8>> {
    let mut cpio = CpioWriter::new(Vec::new());
    for folder in ["dev", "proc", "sys", "tmp", "run"] {
        cpio.directory(folder)?;
    }
    // The kernel opens it as init's standard input and output.
    cpio.device("dev/console", 5, 1)?;
    cpio.device("dev/mem", 1, 1)?;
    cpio.file("init", 0o755, &stripped(program)?)?;
    let mut folders = BTreeSet::new();
    for library in libraries(program)? {
        let name = library.strip_prefix("/").unwrap_or(&library);
        let above: Vec<_> =
            name.ancestors().skip(1).filter(|a| !a.as_os_str().is_empty()).collect();
        for folder in above.into_iter().rev() {
            if folders.insert(folder.to_owned()) {
                cpio.directory(&folder.to_string_lossy())?;
            }
        }
        cpio.file(&name.to_string_lossy(), 0o755, &read(&library)?)?;
    }
    Ok(cpio.finish()?)
}

/// A program without its debug information; unchanged if `strip` fails or is missing.
fn stripped(program: &Path) -> Outcome<Vec<u8>> {
    let folder = Scratch::new("kaleidoscope-init-")?;
    let output = folder.path().join("stripped");
    let strip = child::output(Command::new("strip").arg("-o").arg(&output).arg(program));
    match strip {
        Ok(done) if done.status.success() => read(&output),
        Ok(_) | Err(_) => read(program),
    }
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Paths of a program's shared libraries and its dynamic loader; none for a static program.
fn libraries(program: &Path) -> Outcome<Vec<PathBuf>> {
    let output = child::output(Command::new("ldd").arg(program).env("LC_ALL", "C"))?;
    // `ldd` fails for static programs, so its status is ignored.
    let text = String::from_utf8(output.stdout)?;
    let paths = text.lines().flat_map(str::split_whitespace).filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_libraries() {
        let archive = with_program(Path::new("/proc/self/exe")).unwrap();
        let has = |text: &str| archive.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(has("init\0") && has("TRAILER!!!") && has("dev/console"));
        for library in libraries(Path::new("/proc/self/exe")).unwrap() {
            assert!(has(&library.to_string_lossy()[1..]), "{}", library.display());
        }
        let error = with_program(Path::new("/no/such/program")).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
