//! Firecracker's side of a session: what it sends when it loads a snapshot with
//! `"backend_type": "Uffd"`.
//!
//! Firecracker connects to a Unix socket and sends one message: a JSON array of its memory regions,
//! and one userfaultfd. [`Handshake::parse`] reads the array. It does no I/O: the message comes from
//! [`receive`](crate::uffd::receive), and the regions go to a [`Session`](crate::uffd::Session).
//!
//! ```no_run
//! use kaleidoscope_core::clone::LocalSource;
//! use kaleidoscope_core::coloring::{ColoringOptions, color};
//! use kaleidoscope_core::image::{Format, MemoryImage, Preset, RawLayout};
//! use kaleidoscope_kvm::firecracker::Handshake;
//! use kaleidoscope_kvm::uffd::{Session, receive};
//! use std::{os::unix::net::UnixListener, sync::Arc};
//!
//! let format = Format::Raw(RawLayout::Preset(Preset::Firecracker));
//! let image = Arc::new(MemoryImage::open("snapshot.mem", &format)?);
//! let map = color(&*image, &ColoringOptions::default())?.map;
//! let (vmm, _) = UnixListener::bind("uffd.sock")?.accept()?;
//! let hello = receive(&vmm)?;
//! let vm = Handshake::parse(&hello.message)?;
//! vm.check_layout(map.layout())?;
//! let [userfaultfd] = <[_; 1]>::try_from(hello.descriptors).map_err(|_| "not one descriptor")?;
//! let session = Session::builder(map, LocalSource::new(image))
//!     .userfaultfd(userfaultfd, vm.regions().iter().copied())
//!     .page_size(vm.page_size())
//!     .until_exit(hello.process)
//!     .start()?;
//! session.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod handshake;

pub use handshake::Handshake;
