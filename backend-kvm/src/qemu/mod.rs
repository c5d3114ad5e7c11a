//! QEMU's migration stream, as much of it as clones need: pure parsers and writers, without I/O of
//! their own.
//!
//! | type | side |
//! |---|---|
//! | [`SavedVm`] | a VM that QEMU has saved: its machine, RAM blocks and device state |
//! | [`PostcopySource`] | what the source of a postcopy migration sends |
//! | [`ReturnPath`] | what the destination asks for |
//!
//! A destination that was started with `-incoming` and the capability `postcopy-ram` runs as soon
//! as it has the device state, and asks for each page that its guest touches. Any page may be sent
//! at any time, but only once.
//!
//! ```no_run
//! use kaleidoscope_kvm::qemu::{PostcopySource, ReturnPath, SavedVm, Wanted};
//! use std::fs::File;
//! use std::io::{Read, Write};
//! use std::os::unix::net::UnixStream;
//!
//! let saved = SavedVm::read(&mut File::open("state")?, "ram", &mut |_, _| Ok(()))?;
//! let mut qemu = UnixStream::connect("incoming.sock")?;
//! let mut bytes = Vec::new();
//! let mut source = PostcopySource::start(&saved, "ram", &mut bytes)?;
//! qemu.write_all(&bytes)?;
//! let mut path = ReturnPath::new("ram", source.ram_bytes());
//! let mut buffer = [0; 4096];
//! let count = qemu.read(&mut buffer)?;
//! path.push(&buffer[..count]);
//! while let Some(wanted) = path.next_wanted()? {
//!     if let Wanted::Pages { offset, bytes: _ } = wanted {
//!         let mut bytes = Vec::new();
//!         source.page(offset, None, &mut bytes); // A zero page.
//!         qemu.write_all(&bytes)?;
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The formats are described in QEMU's `docs/devel/migration` and were checked against QEMU 7.2. No
//! code is QEMU's.

mod postcopy;
mod reader;
mod return_path;
mod saved;
#[cfg(test)]
mod tests;
mod wire;
mod writer;

pub use postcopy::PostcopySource;
pub use return_path::{ReturnPath, Wanted};
pub use saved::{PageSink, RamBlock, SavedVm};
