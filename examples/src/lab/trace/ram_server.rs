//! A FUSE file system with one file, a clone's RAM. It records the thread and time of each read.
//!
//! QEMU maps the file privately. At first none of its pages is resident. With readahead off, each
//! page fault reads exactly the touched page. The request names the faulting thread (Linux
//! `Documentation/filesystems/fuse/fuse.rst`, `struct fuse_in_header`).

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, Request,
    Session,
};
use rustix::mount::UnmountFlags;

use crate::interrupt::{Armed, Scratch, Undo, arm_with};

use super::recorder::{FRAME, Recorder};
use crate::lab::error::{Error, Result};

const DEVICE: &str = "/dev/fuse";
const NAME: &str = "ram";

/// The file's inode number, which identifies it in QEMU's `/proc/PID/maps`.
pub(crate) const INODE: u64 = 0x6b72_616d;

/// How long the kernel may cache attributes, which never change.
const VALID: Duration = Duration::from_secs(3600);

/// Largest read in bytes. Any read but that of one frame invalidates the recording anyway.
const LARGEST_READ: u32 = 1 << 20;

/// The mounted file system; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct RamServer {
    recorder: Arc<Mutex<Recorder>>,
    /// Declared before the folder, so that it is unmounted before the folder is removed.
    _session: BackgroundSession,
    /// Also declared before the folder.
    _mount: Armed,
    folder: Scratch,
}

impl RamServer {
    /// Mounts a file system that serves the contents of `ram`.
    ///
    /// # Errors
    /// If the size of `ram` is not a multiple of a frame, FUSE is missing, or mounting is not
    /// allowed.
    pub(crate) fn mount(ram: &Path) -> Result<Self> {
        let file = File::open(ram).map_err(Error::io("open", ram))?;
        let size = file.metadata().map_err(Error::io("examine", ram))?.len();
        let pages = usize::try_from(size / FRAME).unwrap_or(usize::MAX);
        if !size.is_multiple_of(FRAME) || pages == 0 {
            return Err(Error::Trace(format!(
                "{}: {size} bytes are not whole frames",
                ram.display()
            )));
        }
        let recorder = Arc::new(Mutex::new(Recorder::new(pages)));
        let folder = Scratch::new("kaleidoscope-ram-")
            .map_err(Error::io("create", Path::new("mount point")))?;
        let server = Server { file, size, recorder: Arc::clone(&recorder) };
        let mut options = fuser::Config::default();
        options.mount_options =
            vec![MountOption::FSName("kaleidoscope-lab".to_owned()), MountOption::NoDev];
        let mount = || Session::new(server, folder.path(), &options).and_then(Session::spawn);
        let (session, mount) =
            arm_with(Undo::Unmount(folder.path().to_owned()), mount).map_err(|error| {
                Error::Trace(format!(
                    "cannot mount a file system for the clone's memory: {error}; recording needs \
                     {DEVICE} and root's rights"
                ))
            })?;
        Ok(Self { recorder, _session: session, _mount: mount, folder })
    }

    /// The path of the clone's RAM file.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join(NAME)
    }

    /// Detaches the mount once QEMU has opened the file. The file system then ends with QEMU, so
    /// that no mount remains if this process is killed.
    ///
    /// # Errors
    /// If the file system cannot be unmounted.
    pub(crate) fn detach(&self) -> Result<()> {
        let folder = self.folder.path();
        rustix::mount::unmount(folder, UnmountFlags::DETACH)
            .map_err(|error| Error::io("unmount", folder)(error.into()))
    }

    /// The recording so far.
    pub(crate) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        lock(&self.recorder)
    }
}

/// Ignores poisoning: the recorder is consistent even if a thread panicked while holding the lock.
fn lock(recorder: &Mutex<Recorder>) -> MutexGuard<'_, Recorder> {
    recorder.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Server {
    file: File,
    size: u64,
    recorder: Arc<Mutex<Recorder>>,
}

impl Server {
    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode.0 {
            INODE => (FileType::RegularFile, 0o600, self.size),
            inode if inode == INodeNo::ROOT.0 => (FileType::Directory, 0o700, 0),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            // Owner and mode are not checked: only the user that mounted the file system can access
            // it.
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// The bytes at `offset`, up to the file's end.
    fn bytes(&self, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        let left = self.size.saturating_sub(offset);
        let length = u64::from(size.min(LARGEST_READ)).min(left);
        let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The kernel rounds down to whole pages, so that one byte turns readahead off.
        config
            .set_max_readahead(1)
            .map(drop)
            .map_err(|nearest| io::Error::other(format!("readahead is at least {nearest} bytes")))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = (parent == INodeNo::ROOT && name == NAME)
            .then(|| self.attributes(INodeNo(INODE)))
            .flatten();
        match found {
            Some(attributes) => reply.entry(&VALID, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&VALID, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let now = Instant::now();
        lock(&self.recorder).read(offset, u64::from(size), request.pid(), now);
        match self.bytes(offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(contents: &[u8]) -> Server {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(contents, 0).unwrap();
        let size = contents.len() as u64;
        Server { file, size, recorder: Arc::new(Mutex::new(Recorder::new(1))) }
    }

    #[test]
    fn reads_end_with_the_file() {
        let server = server(&[3; 10_000]);
        assert_eq!(server.bytes(4096, 4096).unwrap(), [3; 4096]);
        assert_eq!(server.bytes(8192, 4096).unwrap().len(), 10_000 - 8192);
        assert!(server.bytes(10_000, 4096).unwrap().is_empty());
        assert!(server.bytes(u64::MAX, u32::MAX).unwrap().is_empty());
    }

    #[test]
    fn only_the_file_and_its_folder_exist() {
        let server = server(&[0; 4096]);
        assert_eq!(server.attributes(INodeNo(INODE)).unwrap().size, 4096);
        assert_eq!(server.attributes(INodeNo::ROOT).unwrap().kind, FileType::Directory);
        assert!(server.attributes(INodeNo(7)).is_none());
    }

    #[test]
    fn a_file_of_broken_frames_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for length in [0, 4097] {
            file.as_file().set_len(length).unwrap();
            let message = RamServer::mount(file.path()).unwrap_err().to_string();
            assert!(message.contains("whole frames"), "{message}");
        }
    }

    #[test]
    fn a_mounted_file_is_read_page_by_page() {
        let mut ram = tempfile::NamedTempFile::new().unwrap();
        let contents: Vec<u8> = (0..64u8).flat_map(|page| [page; 4096]).collect();
        io::Write::write_all(&mut ram, &contents).unwrap();
        let server = match RamServer::mount(ram.path()) {
            Ok(server) => server,
            Err(error) => {
                eprintln!("******** SKIPPED: {error} ********");
                return;
            }
        };
        let file = File::open(server.path()).unwrap();
        server.detach().unwrap();
        assert!(!server.path().exists());
        let mut buffer = [0; 4096];
        for page in [9u8, 3, 4, 5, 6, 7, 9, 63] {
            file.read_exact_at(&mut buffer, u64::from(page) * FRAME).unwrap();
            assert_eq!(buffer, [page; 4096]);
        }
        let recorder = server.recorder();
        let touches = recorder.touches().unwrap();
        let pages: Vec<_> = touches.iter().map(|touch| touch.page).collect();
        assert_eq!(pages, [9, 3, 4, 5, 6, 7, 63]);
        assert!(touches.iter().all(|touch| touch.thread == touches[0].thread));
    }
}
