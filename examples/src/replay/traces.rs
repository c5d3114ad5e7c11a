//! Reads traces from files, and gives each a unique name.

use crate::failure::Failure;
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::replay::Trace;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// A trace and its name.
#[derive(Debug)]
pub(crate) struct NamedTrace {
    pub(crate) name: String,
    pub(crate) trace: Trace,
}

/// Reads traces of the guest with this layout. Times are divided by `speed`.
pub(crate) fn read(
    paths: &[PathBuf],
    layout: &MemoryLayout,
    speed: f64,
) -> Result<Vec<NamedTrace>, Failure> {
    let read = |(path, name): (&PathBuf, String)| {
        let file = File::open(path).map_err(|e| Failure::at(path, e))?;
        let trace = Trace::from_csv(BufReader::new(file), layout).map_err(|e| {
            Failure::at(path, e)
                .hint("a trace is a CSV with columns t_us and gfn, of a clone of the same image")
        })?;
        if trace.touches().is_empty() {
            return Err(Failure::at(path, "the trace holds no touch"));
        }
        Ok(NamedTrace { name, trace: trace.sped_up(speed) })
    };
    paths.iter().zip(names(paths)).map(read).collect()
}

/// A unique name for every path: the file's stem, or else the stem with its folder, or else the
/// path.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let schemes: [fn(&Path) -> String; 2] = [stem, with_folder];
    let name = |path: &PathBuf| {
        let is_unique = |scheme: &&fn(&Path) -> String| {
            paths.iter().filter(|other| scheme(other) == scheme(path)).count() == 1
        };
        let scheme = schemes.iter().find(is_unique);
        scheme.map_or_else(|| path.display().to_string(), |scheme| scheme(path))
    };
    paths.iter().map(name).collect()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Both `guest/traces/scan.csv` and `guest/scan.csv` become `guest/scan`: folders named `traces`
/// are skipped.
fn with_folder(path: &Path) -> String {
    let folders = path.ancestors().skip(1).filter_map(Path::file_name);
    let folder = folders.map(|name| name.to_string_lossy()).find(|name| name != "traces");
    folder.map_or_else(|| stem(path), |folder| format!("{folder}/{}", stem(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_of(paths: &[&str]) -> Vec<String> {
        names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    #[test]
    fn names_are_as_short_as_can_be() {
        assert_eq!(names_of(&["a/scan.csv", "a/join.csv"]), ["scan", "join"]);
        assert_eq!(
            names_of(&["a/scan.csv", "b/traces/scan.csv", "b/web.csv"]),
            ["a/scan", "b/scan", "web"]
        );
        assert_eq!(names_of(&["a/scan.csv", "a/scan.txt"]), ["a/scan.csv", "a/scan.txt"]);
        assert_eq!(names_of(&["scan.csv"]), ["scan"]);
    }

    #[test]
    fn bad_traces_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let layout = MemoryLayout::contiguous(0x10000).unwrap();
        let path = dir.path().join("t.csv");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(std::slice::from_ref(&path), &layout, 1.0).unwrap_err().to_string()
        };
        assert!(error("t_us,gfn\n").ends_with("t.csv: the trace holds no touch"));
        let text = error("t_us,gfn\n0,x\n");
        assert!(text.contains("t.csv: line 2: `x` is no frame number\nhint: a trace is"), "{text}");
    }
}
