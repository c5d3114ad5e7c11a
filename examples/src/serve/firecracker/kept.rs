//! What a handler goes on with after another one has died: its socket, and its memory file.

use super::Args;
use crate::args::{ImageFormat, LayoutArgs};
use crate::failure::Failure;
use crate::socket::Socket;
use crate::supervise::{self, Store};
use kaleidoscope_core::image::MemoryImage;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Listens where the arguments say, or goes on for a handler that has died.
pub(super) fn socket(args: &Args, store: &Store) -> Result<Socket, Failure> {
    let failed = |error: io::Error| Failure::at(&args.socket, error);
    let path = std::path::absolute(&args.socket).map_err(failed)?;
    if let Some(listener) = store.take_on(supervise::SOCKET).map_err(failed)?.pop() {
        return Socket::of(listener.into(), path);
    }
    // Any user may connect where others are named; the kernel tells a peer's user.
    let mode = if args.user.is_empty() { 0o600 } else { 0o666 };
    let socket = Socket::bind(&path, mode)?;
    let copy = socket.listener().try_clone().map_err(failed)?;
    store.put(supervise::SOCKET, vec![copy.into()])?;
    Ok(socket)
}

/// The memory file: the one that a handler which has died had open, whatever has its name now.
pub(super) fn memory(args: &Args, store: &Store) -> Result<MemoryImage, Failure> {
    let failed = |error: io::Error| Failure::at(&args.memory, error);
    match store.take_on(supervise::MEMORY).map_err(failed)?.pop() {
        Some(file) => {
            layout(&args.layout).open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
        }
        None => {
            let image = layout(&args.layout).open(&args.memory)?;
            let file = File::open(&args.memory).map_err(failed)?;
            store.put(supervise::MEMORY, vec![file.into()])?;
            Ok(image)
        }
    }
}

/// The layout of a memory file of Firecracker, unless another one is given.
fn layout(given: &LayoutArgs) -> LayoutArgs {
    let format = match (&given.layout, given.format) {
        (None, ImageFormat::Auto) => ImageFormat::Firecracker,
        (_, format) => format,
    };
    LayoutArgs { layout: given.layout.clone(), format }
}
