//! Clones of VMs on Linux: memory that arrives on demand through userfaultfd, and machines on KVM
//! that freeze and clone.
//!
//! The crate has four parts, each a feature. All are on by default.
//!
//! | feature | purpose | needs |
//! |---|---|---|
//! | `uffd` | serve the memory of another program's VM: [`Session`](uffd::Session) | userfaultfd |
//! | `firecracker` | the handshake of Firecracker: [`Handshake`](firecracker::Handshake) | `uffd` |
//! | `qemu` | QEMU's migration stream: [`SavedVm`](qemu::SavedVm), [`PostcopySource`](qemu::PostcopySource) | nothing |
//! | `cloud-hypervisor` | its migration protocol: [`Session`](cloud_hypervisor::Session), [`capture`](cloud_hypervisor::capture) | `uffd` |
//! | `machine` | run, freeze and clone VMs: [`Machine`](machine::Machine) | `/dev/kvm`, `uffd` |
//!
//! Three more features are off by default: `vm-memory` fills the memory of a VMM of the rust-vmm
//! family, `capi` is the interface for C and Go (colors, plans, sessions), and `guest` is a small
//! guest that checks its own memory, for tests.
//!
//! # A session
//! The VMM of the clone maps memory, registers it with a userfaultfd, and sends the descriptor and
//! the addresses over a Unix socket. The session fetches each page that the clone touches, and the
//! pages that its policy expects it to touch next.
//!
//! ```no_run
//! use kaleidoscope_core::clone::LocalSource;
//! use kaleidoscope_core::coloring::{ColoringOptions, color};
//! use kaleidoscope_core::image::{Format, MemoryImage};
//! use kaleidoscope_kvm::uffd::{Region, Session, receive};
//! use std::os::unix::net::UnixListener;
//! use std::sync::Arc;
//!
//! let image = Arc::new(MemoryImage::open("mem.bin", &Format::Auto)?);
//! let map = color(&*image, &ColoringOptions::default())?.map;
//! let (vmm, _) = UnixListener::bind("uffd.sock")?.accept()?;
//! let mut hello = receive(&vmm)?;
//! let address = u64::from_le_bytes(hello.message[..8].try_into()?); // Your own protocol.
//! let region = Region::at_offset(address, map.layout().bytes(), 0);
//! let descriptor = hello.descriptors.pop().ok_or("no descriptor")?;
//! let session = Session::builder(map, LocalSource::new(image))
//!     .userfaultfd(descriptor, [region])
//!     .until_exit(hello.process)
//!     .start()?;
//! session.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A machine
//! A freeze takes as long as saving the vCPUs takes, and copies no memory. The machine then runs
//! on. Any number of clones start from the [`Snapshot`](machine::Snapshot) at once; each shares the
//! pages that it only reads, and copies those that it writes.
//!
#![cfg_attr(feature = "machine", doc = "```no_run")]
#![cfg_attr(not(feature = "machine"), doc = "```ignore")]
//! use kaleidoscope_core::memory::MemoryLayout;
//! use kaleidoscope_kvm::machine::{Host, Machine, NoDevices};
//! use std::sync::Arc;
//!
//! let host = Host::open()?;
//! let layout = MemoryLayout::contiguous(64 << 20)?;
//! let mut parent = Machine::new(&host, layout, 1, Arc::new(NoDevices))?;
//! // Load a guest: `write` its memory, `set_registers` of its vCPUs.
//! parent.resume()?;
//! let snapshot = parent.freeze()?;
//! let mut clone = Machine::clone_of(&host, &snapshot, Arc::new(NoDevices))?;
//! clone.resume()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Errors
//! Every fallible function returns [`Error`]. Its [`kind`](Error::kind) says what a program can do
//! about it.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("KVM guests are supported on Linux, on x86-64");

#[cfg(not(feature = "uffd"))]
compile_error!("kaleidoscope-kvm needs one of its features: `uffd`, or `machine`, which has it");

#[cfg(feature = "capi")]
pub mod capi;
#[cfg(feature = "cloud-hypervisor")]
pub mod cloud_hypervisor;
mod error;
#[cfg(feature = "firecracker")]
pub mod firecracker;
#[cfg(feature = "guest")]
pub mod guest;
#[cfg(feature = "machine")]
pub mod machine;
#[cfg_attr(
    not(feature = "machine"),
    expect(dead_code, reason = "machines use more of it than sessions do")
)]
pub mod memory;
#[cfg(feature = "qemu")]
pub mod qemu;
#[cfg(feature = "machine")]
pub mod state;
#[cfg_attr(
    not(feature = "machine"),
    expect(dead_code, reason = "machines use more of it than sessions do")
)]
mod sys;
pub mod uffd;

pub use error::{Error, ErrorKind};
