//! VMs of cloud-hypervisor: captured, and cloned with memory that arrives on demand.
//!
//! cloud-hypervisor has no interface for an outside pager, but it migrates VMs. [`capture`] plays
//! the new host of a VM and keeps what it gets. A [`Session`] plays the old host: it hands the VM to
//! a cloud-hypervisor in postcopy mode, which asks for each page that it needs. Both speak version 0
//! of the protocol, of cloud-hypervisor 53.0 and later, unmodified.
//!
//! ```text
//!  capture        Session          what happens
//!     │              │
//!     └── channel ───┤             messages of which each has a deadline
//!          codec     │             messages as bytes (pure)
//!        guest_ram   │             memory slots of a configuration (pure)
//!                    ├── memory_files   which the VMM maps
//!                    └── connection     requests for pages (faults), answered by the engine (pages)
//! ```
//!
//! Capture a VM:
//!
//! ```no_run
//! use kaleidoscope_kvm::cloud_hypervisor::capture;
//! use std::{fs, os::unix::net::UnixListener, time::Duration};
//!
//! let listener = UnixListener::bind("capture.sock")?;
//! // ch-remote --api-socket vm.api send-migration \
//! //     destination_url=unix:capture.sock,local=on,preserve_source=on
//! let vm = capture(listener.accept()?.0, &fs::File::create_new("memory.bin")?, Duration::from_secs(30))?;
//! fs::write("config.json", vm.config())?;
//! fs::write("state.json", vm.state())?;
//! vm.acknowledge()?; // The VM is paused until `ch-remote resume`.
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A clone of it: [`Session`] has an example.

mod capture;
mod channel;
#[doc(hidden)]
pub mod codec;
mod connection;
mod faults;
mod guest_ram;
mod memory_files;
mod pages;
mod session;

pub use capture::{Capture, capture};
pub use faults::Ended;
#[doc(hidden)]
pub use guest_ram::GuestRam;
pub use guest_ram::RamSlot;
pub use session::{Backing, Session, SessionBuilder};
