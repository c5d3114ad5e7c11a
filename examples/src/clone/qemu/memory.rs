//! Where the memory of a VM comes from: its backend's file, or a stream that QEMU sends.

use super::image::Image;
use super::parent::Parent;
use crate::failure::Failure;
use kaleidoscope_kvm::qemu::SavedVm;
use rustix::fs::FallocateFlags;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest silence of a stream.
const SILENCE: Duration = Duration::from_secs(60);

/// Opens the file of a VM's memory backend.
pub(super) fn file(parent: &Parent) -> Result<File, Failure> {
    let path = path(parent)?;
    File::open(&path).map_err(|error| Failure::at(&path, error))
}

/// Allocates all of a VM's memory, as QEMU would do while the VM is paused for a background
/// snapshot. Only time is lost where that is not possible.
#[expect(clippy::disallowed_methods, reason = "no file is made, and no contents are written")]
pub(super) fn allocate(parent: &Parent) {
    let Ok(path) = path(parent) else { return };
    if let Ok(file) = File::options().read(true).write(true).open(path) {
        let flags = FallocateFlags::KEEP_SIZE;
        let _ = rustix::fs::fallocate(file, flags, 0, parent.machine.ram_bytes);
    }
}

/// The VM's memory among the files that its process has open: the one that the backend names, or a
/// file without a name.
fn path(parent: &Parent) -> Result<PathBuf, Failure> {
    let folder = PathBuf::from(format!("/proc/{}/fd", parent.pid));
    if parent.is_offset {
        return Err(Failure::at(&folder, "the VM's memory begins within its file"));
    }
    let named = parent.memory_file.as_deref().map(|path| (path, fs::metadata(path)));
    let named = match named {
        None => None,
        Some((_, Ok(named))) => Some(named),
        Some((path, Err(error))) => return Err(Failure::at(path, error)),
    };
    let is_memory = |path: &Path| match &named {
        Some(named) => fs::metadata(path)
            .is_ok_and(|file| (file.dev(), file.ino()) == (named.dev(), named.ino())),
        None => {
            fs::read_link(path)
                .is_ok_and(|name| name.to_string_lossy().starts_with("/memfd:memory-backend"))
                && fs::metadata(path).is_ok_and(|file| file.len() == parent.machine.ram_bytes)
        }
    };
    let entries = fs::read_dir(&folder).map_err(|error| Failure::at(&folder, error))?;
    let mut found: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_memory(path)).collect();
    if named.is_none() && found.len() > 1 {
        return Err(Failure::at(&folder, "two files could be the VM's memory"));
    }
    found.pop().ok_or_else(|| {
        Failure::at(&folder, "the VM's memory is not among its files")
            .hint("--way snapshot and --way precopy have QEMU send the memory")
    })
}

/// A thread that receives what QEMU sends.
pub(super) struct Receiver {
    thread: JoinHandle<Result<(SavedVm, Image), String>>,
    has_pages: Arc<AtomicBool>,
}

impl Receiver {
    /// Starts to receive into an image. Returns the descriptor for QEMU, too.
    pub(super) fn start(ram: &str, mut image: Image) -> Result<(Self, UnixStream), Failure> {
        let (ours, theirs) = UnixStream::pair().map_err(Failure::new)?;
        ours.set_read_timeout(Some(SILENCE)).map_err(Failure::new)?;
        let has_pages = Arc::new(AtomicBool::new(false));
        let (told, ram) = (Arc::clone(&has_pages), ram.to_owned());
        let receive = move || {
            let mut stream = BufReader::with_capacity(1 << 20, ours);
            let mut sink = |offset, page: Option<&_>| -> io::Result<()> {
                told.store(true, Ordering::Release);
                image.page(offset, page)
            };
            let saved = SavedVm::read(&mut stream, &ram, &mut sink);
            saved.map(|saved| (saved, image)).map_err(|error| error.to_string())
        };
        let thread = std::thread::Builder::new().name("receiver".to_owned());
        let thread = thread.spawn(receive).map_err(Failure::new)?;
        Ok((Self { thread, has_pages }, theirs))
    }

    /// Whether a page of the RAM has come.
    pub(super) fn has_pages(&self) -> bool {
        self.has_pages.load(Ordering::Acquire)
    }

    /// What was received, once the stream has ended.
    pub(super) fn end(self) -> Result<(SavedVm, Image), Failure> {
        let received = self.thread.join();
        let received = received.map_err(|_| Failure::new("receiving the VM's state failed"))?;
        received.map_err(|error| Failure::new(format_args!("the VM's state: {error}")))
    }
}
