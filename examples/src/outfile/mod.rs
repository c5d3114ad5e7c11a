//! Writing output files. All output files are written here.
//!
//! A file appears under its name only once it is complete ([`OutputFile`]); before that it
//! disappears with the process. Before the work starts, [`Files`] refuses an output that is an
//! input, and two outputs that are the same file.

mod distinct;

pub(crate) use distinct::Files;

use crate::failure::Failure;
use crate::interrupt::{Armed, Undo, arm_after, uninterrupted};
use crate::stdio;
use kaleidoscope_core::output_file::OutputFile;
use rustix::fs::Access;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Seek, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Durability and permissions of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    /// Not synced, readable by everyone: can be made again.
    Plain,
    /// Synced, so that it survives a power failure.
    Lasting,
    /// Synced, and only its owner may read it: a guest's memory.
    Secret,
}

/// A file that is being written. It is discarded if dropped before it is [written](Self::write) or
/// [kept](Self::keep).
#[derive(Debug)]
pub(crate) struct Output {
    path: PathBuf,
    content: Content,
    /// Absent for a FIFO, which is opened when there is something to write.
    file: Option<OutputFile>,
    /// A temporary file, copied to the output at the end, if the output is not seekable.
    spool: Option<File>,
    /// Removes the file's temporary name.
    armed: Option<Armed>,
}

impl Output {
    /// Begins a file. Called before the work, so that an unwritable path is reported first.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        Self::begin(path, Content::Plain)
    }

    /// Begins a file that survives a power failure.
    pub(crate) fn lasting(path: &Path) -> Result<Self, Failure> {
        Self::begin(path, Content::Lasting)
    }

    /// Begins a file that survives a power failure and that only its owner may read.
    pub(crate) fn secret(path: &Path) -> Result<Self, Failure> {
        Self::begin(path, Content::Secret)
    }

    /// Begins a guest's memory of `bytes` bytes, all zero, for random access.
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
            // Opened later: opening waits for a reader, which may read another output first.
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
            // Opened outside of the registry's lock, so that waiting for a reader does not hold
            // off signals.
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

    /// The path under which the file will appear.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file to write a [memory](Self::memory) to.
    pub(crate) fn file(&self) -> Option<&File> {
        self.spool.as_ref().or_else(|| self.file.as_ref().map(OutputFile::file))
    }

    /// Writes the contents and commits the file under its name.
    pub(crate) fn write(
        mut self,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let written = self.open().and_then(|file| {
            let mut writer = ErrnoWriter { file, errno: None };
            let mut out = BufWriter::with_capacity(1 << 16, &mut writer);
            let written = content(&mut out).and_then(|()| out.flush());
            // `into_parts` discards the buffer. Dropping `out` would try to write it again.
            drop(out.into_parts());
            written.map_err(|error| writer.errno.map_or(error, io::Error::from_raw_os_error))
        });
        self.end(written)
    }

    /// Commits a [memory](Self::memory), which was written, under its name.
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
            // Slow, so not while signals are held off.
            file.file().sync_all()?;
            uninterrupted(|| file.commit_synced())
        });
        if let Some(armed) = self.armed.take() {
            armed.disarm();
        }
        match committed {
            // As for printed results: the reader has closed the pipe.
            Err(error) if error.kind() == ErrorKind::BrokenPipe && stdio::is_stdout_taken() => {
                Ok(())
            }
            committed => committed.map_err(|error| Failure::unwritable(&self.path, &error)),
        }
    }
}

/// Records the system's first error code, because encoders keep only its text.
struct ErrnoWriter<'a> {
    file: &'a mut OutputFile,
    errno: Option<i32>,
}

impl ErrnoWriter<'_> {
    fn note<T>(&mut self, done: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &done
            && error.kind() != ErrorKind::Interrupted
        {
            self.errno = self.errno.or(error.raw_os_error());
        }
        done
    }
}

impl Write for ErrnoWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        self.note(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.file.flush();
        self.note(flushed)
    }
}

fn spooling(path: &Path, error: &io::Error) -> Failure {
    let folder = std::env::temp_dir();
    let what = format_args!("cannot make a temporary copy in {}: {error}", folder.display());
    Failure::at(path, what)
        .hint("set TMPDIR to another folder, or write to a regular file, which needs no copy")
}

/// Begins an output, if its path is given.
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

/// Makes a folder for outputs and its missing parents. When the returned value is dropped, the new
/// folders are removed if they are empty, because the work has failed.
pub(crate) fn create_folder(path: &Path) -> Result<Armed, Failure> {
    let failed = |error: io::Error| {
        Failure::io(format_args!("{}: cannot create it: {error}", path.display()), &error)
    };
    let whole = std::path::absolute(path).map_err(failed)?;
    let missing = whole.ancestors().take_while(|folder| fs::symlink_metadata(folder).is_err());
    let missing: Vec<_> = missing.map(Path::to_owned).collect();
    let make = || Ok((fs::create_dir_all(path).map_err(failed)?, Undo::RemoveEmpty(missing)));
    arm_after(make).map(|((), armed)| armed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_stay_empty_go() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        drop(create_folder(&at("a/b")).unwrap());
        assert!(!at("a").exists());
        fs::create_dir(at("a")).unwrap();
        drop(create_folder(&at("a")).unwrap());
        assert!(at("a").exists(), "it was there before");
        let made = create_folder(&at("a/b/c")).unwrap();
        fs::write(at("a/b/result"), "x").unwrap();
        drop(made);
        assert!(at("a/b/result").exists() && !at("a/b/c").exists());
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
