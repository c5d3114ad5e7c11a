//! Clones whose memory comes page by page through userfaultfd. Works without `/dev/kvm`.
//!
//! ```text
//!  another program's VM    Session          regions and descriptors that it sends (handoff)
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
mod claim;
mod frame_set;
mod handoff;
mod install;
mod journal;
mod memory;
mod orphans;
#[cfg(any(feature = "machine", feature = "vm-memory"))]
mod own;
mod page_writer;
mod queue;
mod region;
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
mod shared_cache_tests;
mod takeover;
#[cfg(test)]
mod tests;
mod unwatch;

pub use handoff::{Handoff, receive, send};
pub use journal::Journal;
#[cfg(feature = "machine")]
pub(crate) use own::Part;
pub use region::Region;
pub use running::OnDemand;
#[cfg(feature = "machine")]
pub(crate) use running::Running;
#[cfg(feature = "vm-memory")]
pub use rust_vmm::{Filling, SnapshotMmap};
pub use session::{Session, SessionBuilder};
pub use shared_cache::SharedPageCache;
