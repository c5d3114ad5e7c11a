//! Output files that appear under their name only when they are complete.
//!
//! If the program is interrupted or the disk is full, the older file stays as it was and no partial
//! file remains: on Linux the new file has no name until [`OutputFile::commit`]. Symbolic links are
//! followed. A target that is not a regular file (a device, a FIFO, a file descriptor under
//! `/proc`) is written in place, because replacing it would destroy it.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use tempfile::TempPath;

/// Prefix of temporary names, on file systems that need them.
const PREFIX: &str = ".kscope-";

/// Symbolic links followed before ELOOP, the same limit as in Linux.
const MAX_LINKS: u32 = 40;

/// Magic numbers of procfs and sysfs, whose files are written in place.
#[cfg(target_os = "linux")]
const KERNEL_FILE_SYSTEMS: [rustix::fs::FsWord; 2] = [rustix::fs::PROC_SUPER_MAGIC, 0x6265_6572];

/// A file that is being written and gets its name when it is [committed](Self::commit).
///
/// If it is dropped without a commit, the new file is removed.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    target: Target,
}

#[derive(Debug)]
enum Target {
    /// Written in place.
    Stream { is_stdout: bool },
    /// Gets this name, to which all symbolic links lead.
    Name {
        path: PathBuf,
        /// Its temporary name, on file systems without unnamed files.
        temporary: Option<TempPath>,
        /// Metadata of the file that has the name now.
        replaced: Option<Box<Metadata>>,
    },
}

/// The target of a path.
enum ResolvedPath {
    Stream(PathBuf),
    Name(PathBuf, Option<Metadata>),
}

impl OutputFile {
    /// Creates a file with the permissions of the file that it will replace, or else with
    /// `rw-rw-rw-` as masked by the umask.
    ///
    /// Opening a FIFO waits for a reader.
    ///
    /// # Errors
    /// If the path leads to a directory or to a file without write permission; if its directory is
    /// missing or not writable.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::begin(path, 0o666)
    }

    /// Creates a file that only its owner may read, unless the file that it will replace has other
    /// permissions: for guest memory and keys.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_private(path: &Path) -> io::Result<Self> {
        Self::begin(path, 0o600)
    }

    fn begin(path: &Path, mode: u32) -> io::Result<Self> {
        match resolve(path)? {
            ResolvedPath::Stream(path) => {
                let (file, is_stdout) = open_stream(&path)?;
                Ok(Self { file, target: Target::Stream { is_stdout } })
            }
            ResolvedPath::Name(path, replaced) => {
                if replaced.is_some() {
                    // The permissions of the directory alone would allow replacing a file that is
                    // not writable.
                    rustix::fs::access(&path, Access::WRITE_OK)?;
                }
                let (file, temporary) = match unnamed(parent_directory(&path), mode)? {
                    Some(file) => (file, None),
                    None => {
                        let (file, name) = named(parent_directory(&path), mode)?.into_parts();
                        (file, Some(name))
                    }
                };
                let replaced = replaced.map(Box::new);
                Ok(Self { file, target: Target::Name { path, temporary, replaced } })
            }
        }
    }

    /// The file. Bytes written to a [stream](Self::is_stream) take effect at once.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether the target is written in place; it may not support reading or seeking.
    pub fn is_stream(&self) -> bool {
        matches!(self.target, Target::Stream { .. })
    }

    /// Whether the bytes go to this process's standard output.
    pub fn is_standard_output(&self) -> bool {
        matches!(self.target, Target::Stream { is_stdout: true })
    }

    /// The temporary name until the commit, on file systems that need one. A caller that ends the
    /// process without dropping this value must remove the file.
    pub fn temporary_name(&self) -> Option<&Path> {
        match &self.target {
            Target::Name { temporary: Some(name), .. } => Some(name),
            Target::Name { .. } | Target::Stream { .. } => None,
        }
    }

    /// Gives the file its name, which an older file keeps until then.
    ///
    /// # Errors
    /// If the system refuses; then the older file is unchanged, and the new file is removed.
    pub fn commit(self) -> io::Result<()> {
        let Target::Name { path, temporary, replaced } = self.target else { return Ok(()) };
        if let Some(replaced) = &replaced {
            copy_permissions(&self.file, replaced)?;
        }
        match temporary {
            Some(name) => name.persist(&path).map_err(|error| error.error),
            None => link(&self.file, &path, replaced.is_some()),
        }
    }

    /// Commits, and syncs first the file and then its directory, so that both survive a power
    /// failure.
    ///
    /// # Errors
    /// As [`commit`](Self::commit). If syncing the directory fails, the file has its name
    /// nevertheless.
    pub fn commit_synced(self) -> io::Result<()> {
        let Target::Name { path, replaced, .. } = &self.target else {
            return match self.file.sync_all() {
                // Pipes and many devices do not support fsync.
                Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
                synced => synced,
            };
        };
        let folder = parent_directory(path).to_owned();
        if let Some(replaced) = replaced {
            copy_permissions(&self.file, replaced)?;
        }
        self.file.sync_all()?;
        self.commit()?;
        File::open(folder)?.sync_all()
    }
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The path to which all symbolic links of `path` lead. It need not exist.
///
/// # Errors
/// If a link cannot be read, the links form a loop, or they lead to a directory.
pub fn follow_links(path: &Path) -> io::Result<PathBuf> {
    resolve(path).map(|resolved| match resolved {
        ResolvedPath::Stream(path) | ResolvedPath::Name(path, _) => path,
    })
}

fn resolve(path: &Path) -> io::Result<ResolvedPath> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(ResolvedPath::Name(path, None));
            }
            Err(error) => return Err(error),
        };
        if found.is_dir() {
            return Err(Errno::ISDIR.into());
        }
        // Links in procfs lead to open files, not to their names.
        if is_kernel_file_system(parent_directory(&path))
            || !(found.is_file() || found.is_symlink())
        {
            return Ok(ResolvedPath::Stream(path));
        }
        if found.is_file() {
            return Ok(ResolvedPath::Name(path, Some(found)));
        }
        if !may_follow(parent_directory(&path), &found)? {
            return Err(Errno::ACCESS.into());
        }
        path = parent_directory(&path).join(fs::read_link(&path)?);
    }
    Err(Errno::LOOP.into())
}

/// The rule of Linux's `fs.protected_symlinks`, which does not apply because links are read here:
/// in a world-writable sticky directory, only links of the user or of the directory's owner are
/// followed.
fn may_follow(folder: &Path, link: &Metadata) -> io::Result<bool> {
    let folder = fs::metadata(folder)?;
    let is_shared = folder.mode() & 0o1002 == 0o1002;
    let own = rustix::process::geteuid().as_raw();
    Ok(!is_shared || link.uid() == own || link.uid() == folder.uid())
}

fn parent_directory(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(target_os = "linux")]
fn is_kernel_file_system(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|found| KERNEL_FILE_SYSTEMS.contains(&found.f_type))
}

#[cfg(not(target_os = "linux"))]
fn is_kernel_file_system(folder: &Path) -> bool {
    folder.starts_with("/dev") || folder.starts_with("/proc")
}

/// Opens a target that is written in place. Also returns whether it is standard output.
fn open_stream(path: &Path) -> io::Result<(File, bool)> {
    let is_own =
        fs::canonicalize(parent_directory(path)).ok() == fs::canonicalize("/proc/self/fd").ok();
    let number = path.file_name().and_then(|name| name.to_str()).filter(|_| is_own);
    // The descriptors are duplicated: reopening a file would overwrite it from the start.
    match number {
        Some("1") => {
            let file = io::stdout().as_fd().try_clone_to_owned()?;
            return Ok((file.into(), true));
        }
        Some("2") => return Ok((io::stderr().as_fd().try_clone_to_owned()?.into(), false)),
        _ => {}
    }
    let kind = fs::metadata(path)?.file_type();
    if kind.is_socket() {
        return Err(Errno::NXIO.into());
    }
    let mut options = OpenOptions::new();
    options.write(true).append(kind.is_file());
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(i32::try_from(OFlags::NOCTTY.bits()).unwrap_or(0));
    }
    options.open(path).map(|file| (file, false))
}

/// Creates a file without a name; `None` if the file system cannot.
#[cfg(target_os = "linux")]
fn unnamed(folder: &Path, mode: u32) -> io::Result<Option<File>> {
    // [`link`] needs this directory.
    if !Path::new("/proc/self/fd").is_dir() {
        return Ok(None);
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::from_raw_mode(mode)) {
        Ok(file) => Ok(Some(file.into())),
        // File systems without O_TMPFILE, and kernels that do not know the flag.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_folder: &Path, _mode: u32) -> io::Result<Option<File>> {
    Ok(None)
}

fn named(folder: &Path, mode: u32) -> io::Result<tempfile::NamedTempFile> {
    let permissions = fs::Permissions::from_mode(mode);
    tempfile::Builder::new().prefix(PREFIX).permissions(permissions).tempfile_in(folder)
}

/// Copies the permissions of the replaced file, and its owner if that is allowed.
fn copy_permissions(file: &File, replaced: &Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (replaced.uid(), replaced.gid()) {
        let (owner, group) = (Uid::from_raw(replaced.uid()), Gid::from_raw(replaced.gid()));
        // Only root may change the owner; other users may set a group that they belong to.
        if rustix::fs::fchown(file, Some(owner), Some(group)).is_err() {
            let _ = rustix::fs::fchown(file, None, Some(group));
        }
    }
    file.set_permissions(fs::Permissions::from_mode(replaced.mode() & 0o777))
}

/// Gives an unnamed file a name, and replaces a file of that name.
fn link(file: &File, path: &Path, replaces: bool) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |to: &Path| rustix::fs::linkat(CWD, &*own, CWD, to, AtFlags::SYMLINK_FOLLOW);
    if !replaces {
        match link(path) {
            Err(Errno::EXIST) => {}
            linked => return Ok(linked?),
        }
    }
    // linkat(2) does not replace a file, rename(2) does. The temporary name exists only until the
    // rename.
    let temporary = tempfile::Builder::new()
        .prefix(PREFIX)
        .make_in(parent_directory(path), |name| link(name).map_err(io::Error::from))?;
    temporary.into_temp_path().persist(path).map_err(|error| error.error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A temporary directory.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.0.path()).unwrap();
            let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
            let mut names: Vec<_> =
                entries.map(|entry| name(entry).into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    fn write(path: &Path, text: &str) -> io::Result<()> {
        let mut output = OutputFile::create(path)?;
        output.write_all(text.as_bytes())?;
        output.commit_synced()
    }

    #[test]
    fn nothing_is_there_before_and_all_of_it_after() {
        let folder = Folder::new();
        let path = folder.path("new");
        let mut output = OutputFile::create(&path).unwrap();
        output.write_all(b"half").unwrap();
        if output.temporary_name().is_none() {
            assert!(folder.names().is_empty(), "without a name there is nothing to leave behind");
        }
        drop(output);
        assert!(folder.names().is_empty());
        write(&path, "whole").unwrap();
        let older = OutputFile::create(&path).unwrap();
        drop(older);
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        write(&path, "newer").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
        assert_eq!(folder.names(), ["new"]);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_replaced() {
        let folder = Folder::new();
        let path = folder.path("new");
        let mut output = OutputFile::create(&path).unwrap();
        output.write_all(b"ours").unwrap();
        fs::write(&path, "theirs").unwrap();
        output.commit().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ours");
        assert_eq!(folder.names(), ["new"]);
    }

    #[test]
    fn temporary_names_go_too() {
        let folder = Folder::new();
        let (file, name) = named(folder.0.path(), 0o600).unwrap().into_parts();
        let path = folder.path("new");
        let target = Target::Name { path, temporary: Some(name), replaced: None };
        let output = OutputFile { file, target };
        assert_eq!(folder.names().len(), 1);
        assert!(output.temporary_name().is_some());
        drop(output);
        assert!(folder.names().is_empty());
    }

    #[test]
    fn links_are_followed_and_stay() {
        let folder = Folder::new();
        fs::create_dir(folder.path("far")).unwrap();
        symlink("far/real", folder.path("link")).unwrap();
        symlink("link", folder.path("link2")).unwrap();
        write(&folder.path("link2"), "through a dangling link").unwrap();
        write(&folder.path("link2"), "through two links").unwrap();
        assert_eq!(fs::read_to_string(folder.path("far/real")).unwrap(), "through two links");
        assert!(fs::symlink_metadata(folder.path("link")).unwrap().is_symlink());
        assert_eq!(follow_links(&folder.path("link")).unwrap(), folder.path("far/real"));
        symlink("loop", folder.path("loop")).unwrap();
        assert!(OutputFile::create(&folder.path("loop")).is_err());
    }

    #[test]
    fn rights_are_those_of_the_file_that_is_replaced() {
        let folder = Folder::new();
        let path = folder.path("file");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        OutputFile::create_private(&path).unwrap().commit().unwrap();
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write(&path, "x").unwrap();
        assert_eq!(mode(), 0o640);
        OutputFile::create_private(&path).unwrap().commit().unwrap();
        assert_eq!(mode(), 0o640);
        if !rustix::process::geteuid().is_root() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
            let error = write(&path, "y").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn special_files_are_written_in_place() {
        let folder = Folder::new();
        let fifo = folder.path("fifo");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(CWD, &fifo, kind, Mode::from_raw_mode(0o600), 0).unwrap();
        let read = {
            let fifo = fifo.clone();
            std::thread::spawn(move || fs::read_to_string(fifo).unwrap())
        };
        write(&fifo, "through a pipe").unwrap();
        assert_eq!(read.join().unwrap(), "through a pipe");
        assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
        assert!(OutputFile::create(Path::new("/dev/null")).unwrap().is_stream());
        let full = write(Path::new("/dev/full"), "x").unwrap_err();
        assert_eq!(full.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
        assert!(OutputFile::create(folder.0.path()).is_err(), "a folder");
        assert_eq!(folder.names(), ["fifo"]);
    }

    #[test]
    fn open_files_are_appended_to() {
        let folder = Folder::new();
        let path = folder.path("open");
        fs::write(&path, "before, ").unwrap();
        let open = OpenOptions::new().append(true).open(&path).unwrap();
        write(Path::new(&format!("/proc/self/fd/{}", open.as_raw_fd())), "after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before, after");
        assert_eq!(folder.names(), ["open"]);
    }

    #[test]
    fn links_of_others_in_shared_folders_lead_nowhere() {
        let folder = Folder::new();
        let own = rustix::process::geteuid();
        symlink("target", folder.path("link")).unwrap();
        let link = fs::symlink_metadata(folder.path("link")).unwrap();
        let shared = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(folder.0.path(), shared).unwrap();
        assert!(may_follow(folder.0.path(), &link).unwrap());
        if own.is_root() {
            let other = Some(Uid::from_raw(65_534));
            rustix::fs::chownat(CWD, folder.path("link"), other, None, AtFlags::SYMLINK_NOFOLLOW)
                .unwrap();
            let error = OutputFile::create(&folder.path("link")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
    }
}
