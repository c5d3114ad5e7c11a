//! The files that the command writes: the one place where it does.
//!
//! A file has its name once it is whole ([`OutputFile`]), and is gone with the process before that.
//! [`Files`] refuses beforehand an output that is an input, and two outputs under one name.

use crate::failure::Failure;
use crate::interrupt::{Armed, Undo, arm_after, uninterrupted};
use crate::stdio;
use kaleidoscope_core::output_file::{OutputFile, follow_links};
use rustix::fs::Access;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Most entries of a folder of inputs that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// What is read of a guest's folder, beside its traces.
const GUEST: [&str; 4] = ["ram.bin", "ram.kscope", "layout.txt", "regs.txt"];

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    /// What can be made again, and anybody may read.
    Plain,
    /// What is to outlast a power failure.
    Lasting,
    /// The same, and only its owner may read it: a guest's memory.
    Secret,
}

/// A file that is being written. Dropped before it is [written](Self::write) or
/// [kept](Self::keep), it is gone.
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    content: Content,
    /// Absent for a FIFO, which is opened when there is something to write.
    file: Option<OutputFile>,
    /// What is written first where the output cannot be sought.
    spool: Option<File>,
    /// Takes a temporary name away.
    armed: Option<Armed>,
}

impl Output {
    /// Begins a file before the work whose result it will hold, so that the work is not done in vain.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        Self::begin(path, Content::Plain)
    }

    /// Begins a file that is to outlast a power failure.
    pub(crate) fn lasting(path: &Path) -> Result<Self, Failure> {
        Self::begin(path, Content::Lasting)
    }

    /// Begins a file that is to outlast a power failure and that only its owner may read.
    pub(crate) fn secret(path: &Path) -> Result<Self, Failure> {
        Self::begin(path, Content::Secret)
    }

    /// Begins a guest's memory: of so many bytes, all zero, to be written and read anywhere.
    pub(crate) fn memory(path: &Path, bytes: u64) -> Result<Self, Failure> {
        let mut output = Self::begin(path, Content::Secret)?;
        let failed = |error: io::Error| Failure::unwritable(path, &error);
        if output.file.as_ref().is_none_or(OutputFile::is_stream) {
            output.spool = Some(tempfile::tempfile().map_err(|error| spooling(path, &error))?);
        }
        output
            .file()
            .ok_or_else(|| failed(ErrorKind::InvalidInput.into()))?
            .set_len(bytes)
            .map_err(failed)?;
        Ok(output)
    }

    fn begin(path: &Path, content: Content) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::unwritable(path, &error);
        let mut output =
            Self { path: path.to_owned(), content, file: None, spool: None, armed: None };
        if fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
            // Opening waits for a reader, who may be reading another output first.
            rustix::fs::access(path, Access::WRITE_OK).map_err(|error| failed(error.into()))?;
        } else {
            output.open().map_err(failed)?;
        }
        Ok(output)
    }

    fn open(&mut self) -> io::Result<&mut OutputFile> {
        let (path, content) = (&self.path, self.content);
        let create = || match content {
            Content::Plain | Content::Lasting => OutputFile::create(path),
            Content::Secret => OutputFile::create_private(path),
        };
        if self.file.is_none() {
            let is_fifo = || fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
            // Waiting for a reader must not keep a signal waiting.
            let waited = if is_fifo() { Some(create()?) } else { None };
            let (file, armed) = arm_after(|| {
                let file = waited.map_or_else(create, Ok)?;
                let name = file.temporary_name().unwrap_or(Path::new("")).to_owned();
                Ok::<_, io::Error>((file, Undo::Remove(name)))
            })?;
            if file.temporary_name().is_some() {
                self.armed = Some(armed);
            } else {
                armed.disarm();
            }
            if file.is_standard_output() {
                stdio::take_stdout();
            }
            self.file = Some(file);
        }
        self.file.as_mut().ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// Where it will be.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A [memory](Self::memory)'s file.
    pub(crate) fn file(&self) -> Option<&File> {
        self.spool.as_ref().or_else(|| self.file.as_ref().map(OutputFile::file))
    }

    /// Writes all of it and gives it its name.
    pub(crate) fn write(
        mut self,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let written = self.open().and_then(|file| {
            let mut out = BufWriter::with_capacity(1 << 16, file);
            content(&mut out)?;
            out.flush()
        });
        self.end(written)
    }

    /// Gives a [memory](Self::memory), which was written, its name.
    pub(crate) fn keep(mut self) -> Result<(), Failure> {
        let written = match self.spool.take() {
            None => Ok(()),
            Some(mut spool) => {
                spool.rewind().and_then(|()| io::copy(&mut spool, self.open()?).map(drop))
            }
        };
        self.end(written)
    }

    fn end(mut self, written: io::Result<()>) -> Result<(), Failure> {
        let committed = written.and_then(|()| {
            let file = self.file.take().ok_or(ErrorKind::NotFound)?;
            if self.content == Content::Plain || file.is_stream() {
                return uninterrupted(|| file.commit());
            }
            // Takes its time, which the name does not.
            file.file().sync_all()?;
            uninterrupted(|| file.commit_synced())
        });
        if let Some(armed) = self.armed.take() {
            armed.disarm();
        }
        match committed {
            // As for results: its reader has had enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe && stdio::is_stdout_taken() => {
                Ok(())
            }
            committed => committed.map_err(|error| Failure::unwritable(&self.path, &error)),
        }
    }
}

fn spooling(path: &Path, error: &io::Error) -> Failure {
    let folder = std::env::temp_dir();
    Failure::at(path, format_args!("cannot be collected in {} first: {error}", folder.display()))
        .hint("TMPDIR names another folder; a regular file is written without this detour")
}

/// Begins the outputs that are asked for.
pub(crate) fn create_if(path: Option<&PathBuf>) -> Result<Option<Output>, Failure> {
    path.map(|path| Output::create(path)).transpose()
}

/// Writes a file.
pub(crate) fn write(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Failure> {
    Output::create(path)?.write(content)
}

/// Makes a folder for outputs, with those above it.
pub(crate) fn create_folder(path: &Path) -> Result<(), Failure> {
    let made = fs::create_dir_all(path);
    made.map_err(|error| {
        Failure::io(format_args!("{}: cannot be made: {error}", path.display()), &error)
    })
}

/// What a command reads and writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    reads: Vec<PathBuf>,
    writes: Vec<PathBuf>,
}

/// What makes two paths the same file.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Identity {
    /// Device and inode.
    Is(u64, u64),
    /// Device and inode of its folder, and its name there: nothing is there yet.
    Will(u64, u64, OsString),
}

impl Files {
    /// None.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Files that are read.
    #[must_use]
    pub(crate) fn reads<P: AsRef<Path>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.reads.extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
        self
    }

    /// Guests that are read: files, or folders as the lab makes them.
    #[must_use]
    pub(crate) fn reads_guests<P: AsRef<Path>>(
        mut self,
        paths: impl IntoIterator<Item = P>,
    ) -> Self {
        for path in paths {
            let path = path.as_ref();
            self.reads.push(path.to_owned());
            // Other files in them may well be outputs, of former runs.
            self.reads.extend(GUEST.map(|name| path.join(name)));
            let is_trace = |path: &PathBuf| path.extension().is_some_and(|e| e == "csv");
            self.reads.extend(entries(&path.join("traces")).filter(is_trace));
        }
        self
    }

    /// Files that are written.
    #[must_use]
    pub(crate) fn writes<P: AsRef<Path>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.writes.extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
        self
    }

    /// Files of these names that are written into a folder, if there is one.
    #[must_use]
    pub(crate) fn writes_into(self, folder: Option<&PathBuf>, names: &[&str]) -> Self {
        let folder = folder.into_iter();
        self.writes(folder.flat_map(|folder| names.iter().map(|name| folder.join(name))))
    }

    /// Refuses an output that is an input, and two outputs that are one file, through whatever links.
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

/// Which file a path leads to; `None` for what any number of outputs may go to (`/dev/null`).
fn identity(path: &Path) -> Option<Identity> {
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_char_device() => None,
        // Links to a file descriptor lead here too.
        Ok(found) => Some(Identity::Is(found.dev(), found.ino())),
        Err(_) => {
            let path = follow_links(path).ok()?;
            let parent = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = fs::metadata(parent.unwrap_or(Path::new("."))).ok()?;
            Some(Identity::Will(folder.dev(), folder.ino(), path.file_name()?.to_owned()))
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

    #[test]
    fn memory_goes_through_a_pipe_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        let reader = std::thread::spawn({
            let path = path.clone();
            move || fs::read(path).unwrap()
        });
        let output = Output::memory(&path, 8).unwrap();
        std::os::unix::fs::FileExt::write_all_at(output.file().unwrap(), b"end", 5).unwrap();
        output.keep().unwrap();
        assert_eq!(reader.join().unwrap(), b"\0\0\0\0\0end");
    }
}
