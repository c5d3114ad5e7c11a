//! Clones whose memory comes page by page through userfaultfd. Works without `/dev/kvm`.
//!
//! ```text
//!  another program's VM    Session          regions and descriptors that it sends (handoff)
//!  VMs of cloud-hypervisor  its own Session  memory files that it maps (files)
//!  a VM of this process    OnDemand         memory of a Machine, or of a rust-vmm VMM (Filling)
//!                             │
//!                          Running          engine and the threads that answer faults
//!                             │
//!                        UserfaultMemory    the engine's ports: install, queue
//!                             │
//!                           Shard           frames at consecutive addresses
//!                             │
//!                      sys::Descriptor      ioctls
//! ```

mod blocks;
#[cfg(feature = "cloud-hypervisor")]
mod files;
mod frame_set;
mod install;
mod journal;
mod memory;
#[cfg(any(feature = "machine", feature = "vm-memory"))]
mod own;
mod page_writer;
mod queue;
#[cfg(feature = "machine")]
mod release;
mod running;
#[cfg(feature = "vm-memory")]
mod rust_vmm;
mod session;
mod shard;
#[cfg_attr(not(feature = "machine"), expect(dead_code, reason = "only machines map a cache"))]
mod shared_cache;
#[cfg(test)]
mod tests;
mod unwatch;

pub use crate::sys::Peer;
#[cfg(feature = "cloud-hypervisor")]
pub(crate) use files::FilePart;
#[cfg(feature = "cloud-hypervisor")]
pub(crate) use frame_set::FrameSet;
pub use journal::Journal;
#[cfg(feature = "cloud-hypervisor")]
pub(crate) use memory::UserfaultMemory;
#[cfg(feature = "machine")]
pub(crate) use own::Part;
pub use running::OnDemand;
#[cfg(any(feature = "machine", feature = "cloud-hypervisor"))]
pub(crate) use running::Running;
#[cfg(feature = "vm-memory")]
pub use rust_vmm::{Filling, SnapshotMmap};
#[cfg(feature = "cloud-hypervisor")]
pub(crate) use session::frames_of;
pub use session::{Handoff, Region, Session, SessionBuilder, peer, receive, send};
pub use shared_cache::SharedPageCache;
