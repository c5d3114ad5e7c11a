//! Checks that no output is an input, and that no two outputs are the same file.

use crate::failure::Failure;
use kaleidoscope_core::output_file::follow_links;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Most entries of an input folder that are examined.
const MAX_ENTRIES: usize = 10_000;

/// Files that are read from a guest's folder, besides its traces.
const GUEST: [&str; 4] = ["ram.bin", "ram.kscope", "layout.txt", "regs.txt"];

/// The files that a command reads and writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    reads: Vec<PathBuf>,
    writes: Vec<PathBuf>,
}

/// The identity of a file: paths with equal identities are the same file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Identity {
    /// An existing file: device and inode.
    Existing(u64, u64),
    /// A file that does not exist yet: device and inode of its folder, and its name.
    Future(u64, u64, OsString),
}

impl Files {
    /// No files.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds files that are read.
    #[must_use]
    pub(crate) fn reads<P: AsRef<Path>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.reads.extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
        self
    }

    /// Adds guests that are read: image files, or folders as the lab makes them.
    #[must_use]
    pub(crate) fn reads_guests<P: AsRef<Path>>(
        mut self,
        paths: impl IntoIterator<Item = P>,
    ) -> Self {
        for path in paths {
            let path = path.as_ref();
            self.reads.push(path.to_owned());
            // Other files in the folder may be outputs of former runs.
            self.reads.extend(GUEST.map(|name| path.join(name)));
            let is_trace = |path: &PathBuf| path.extension().is_some_and(|e| e == "csv");
            self.reads.extend(entries(&path.join("traces")).filter(is_trace));
        }
        self
    }

    /// Adds files that are written.
    #[must_use]
    pub(crate) fn writes<P: AsRef<Path>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.writes.extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
        self
    }

    /// Adds files with these names that are written into `folder`, if there is one.
    #[must_use]
    pub(crate) fn writes_into(self, folder: Option<&PathBuf>, names: &[&str]) -> Self {
        let folder = folder.into_iter();
        self.writes(folder.flat_map(|folder| names.iter().map(|name| folder.join(name))))
    }

    /// Follows links, and refuses an output that is an input, and two outputs that are the same
    /// file.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let mut known: HashMap<Identity, &Path> = HashMap::new();
        let mut reads = HashMap::new();
        for path in &self.reads {
            if let Some(identity) = identity(path) {
                reads.entry(identity).or_insert(path);
            }
        }
        for path in &self.writes {
            let Some(identity) = identity(path) else { continue };
            let name = path.display();
            if let Some(read) = reads.get(&identity) {
                let what = format_args!("{name}: it is read too, as {}", read.display());
                return Err(
                    Failure::new(what).hint("write to another file: inputs stay as they are")
                );
            }
            if let Some(other) = known.insert(identity, path) {
                let what = format_args!("{name}: it is written twice, as {} too", other.display());
                return Err(Failure::new(what).hint("give each output a file of its own"));
            }
        }
        Ok(())
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().take(MAX_ENTRIES);
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

/// The file that a path refers to. `None` for character devices such as `/dev/null`, which may be
/// used for any number of outputs.
fn identity(path: &Path) -> Option<Identity> {
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_char_device() => None,
        // Includes links to file descriptors (`/dev/fd/N`).
        Ok(found) => Some(Identity::Existing(found.dev(), found.ino())),
        Err(_) => {
            let path = follow_links(path).ok()?;
            let parent = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = fs::metadata(parent.unwrap_or(Path::new("."))).ok()?;
            Some(Identity::Future(folder.dev(), folder.ino(), path.file_name()?.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn inputs_and_other_outputs_are_known_through_all_links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("ram"), "x").unwrap();
        symlink("ram", at("link")).unwrap();
        fs::hard_link(at("ram"), at("twin")).unwrap();
        symlink("new", at("dangling")).unwrap();
        fs::create_dir(at("guest")).unwrap();
        fs::write(at("guest/ram.bin"), "x").unwrap();
        symlink(folder.path(), at("guest/up")).unwrap();
        let check = |reads: &[&str], writes: &[&str]| {
            let files = Files::new().reads_guests(reads.iter().map(|name| at(name)));
            let checked = files.writes(writes.iter().map(|name| at(name))).check();
            checked.map_err(|failure| failure.to_string())
        };
        for output in ["ram", "link", "twin", "guest/up/ram", "./link"] {
            let failure = check(&["link"], &[output]).unwrap_err();
            assert!(failure.contains("it is read too"), "{output}: {failure}");
        }
        assert!(check(&["guest"], &["guest/ram.bin"]).is_err());
        fs::create_dir(at("guest/traces")).unwrap();
        fs::write(at("guest/traces/one.csv"), "x").unwrap();
        fs::write(at("guest/policy.toml"), "x").unwrap();
        assert!(check(&["guest"], &["guest/traces/one.csv"]).is_err());
        assert!(check(&["guest"], &["guest/policy.toml", "guest/traces/one.json"]).is_ok());
        assert!(check(&["ram"], &["new", "guest/new"]).is_ok());
        for twice in [["new", "dangling"], ["new", "guest/up/new"], ["ram", "twin"]] {
            let failure = check(&[], &twice).unwrap_err();
            assert!(failure.contains("written twice"), "{twice:?}: {failure}");
        }
        let null = PathBuf::from("/dev/null");
        assert!(Files::new().reads([&null]).writes([&null, &null]).check().is_ok());
        assert!(check(&["ram"], &["none/x", "none/y"]).is_ok(), "creating them is an error");
    }
}
