//! What a handler goes on with after another one has died: its socket, and its memory file.

use super::Args;
use crate::args::{ImageFormat, LayoutArgs};
use crate::failure::Failure;
use crate::interrupt::{Entrusted, Undo, entrust};
use crate::socket::Socket;
use crate::supervise::{self, Store};
use kaleidoscope_core::image::MemoryImage;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A socket that outlives the handler, and the removal of its file.
pub(super) struct Listening {
    pub(super) socket: Socket,
    /// The guard's, unless the handler comes to its end: the next one goes on with the socket.
    pub(super) file: Entrusted,
}

/// Listens where the arguments say, or goes on for a handler that has died.
pub(super) fn socket(args: &Args, store: &Store) -> Result<Listening, Failure> {
    let failed = |error: io::Error| Failure::at(&args.socket, error);
    let path = std::path::absolute(&args.socket).map_err(failed)?;
    if let Some(listener) = store.take_on(supervise::SOCKET).map_err(failed)?.pop() {
        let file = entrust(Undo::Remove(path.clone()));
        return Ok(Listening { socket: Socket::of(listener.into(), path), file });
    }
    // Any user may connect where others are named; the kernel tells a peer's user.
    let mode = if args.user.is_empty() { 0o600 } else { 0o666 };
    let mut socket = Socket::bind(&path, mode)?;
    let file = entrust(Undo::Remove(path));
    socket.keep_file();
    let copy = socket.listener().try_clone().map_err(failed)?;
    store.put(supervise::SOCKET, vec![copy.into()])?;
    Ok(Listening { socket, file })
}

/// A memory file, and what tells it from any other.
pub(super) struct Memory {
    pub(super) image: MemoryImage,
    pub(super) identity: String,
}

/// The memory file: the one that a handler which has died had open, whatever has its name now.
pub(super) fn memory(args: &Args, store: &Store) -> Result<Memory, Failure> {
    let failed = |error: io::Error| Failure::at(&args.memory, error);
    let (file, is_new) = match store.take_on(supervise::MEMORY).map_err(failed)?.pop() {
        Some(file) => (File::from(file), false),
        None => (File::open(&args.memory).map_err(failed)?, true),
    };
    let layout = layout(&args.layout);
    let image = match layout.open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))) {
        // Says the same of the file by its name.
        Err(failure) if is_new => return Err(layout.open(&args.memory).err().unwrap_or(failure)),
        opened => opened?,
    };
    let found = file.metadata().map_err(failed)?;
    let (device, inode, bytes) = (found.dev(), found.ino(), found.len());
    let identity = format!("{device}:{inode}:{bytes}:{}.{:09}", found.mtime(), found.mtime_nsec());
    if is_new {
        store.put(supervise::MEMORY, vec![file.into()])?;
    }
    Ok(Memory { image, identity })
}

/// The layout of a memory file of Firecracker, unless another one is given.
fn layout(given: &LayoutArgs) -> LayoutArgs {
    let format = match (&given.layout, given.format) {
        (None, ImageFormat::Auto) => ImageFormat::Firecracker,
        (_, format) => format,
    };
    LayoutArgs { layout: given.layout.clone(), format }
}
