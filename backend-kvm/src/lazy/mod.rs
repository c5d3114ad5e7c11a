//! Clones whose memory comes page by page: from a page server, or from anywhere else.
//!
//! The kernel says which page a vCPU waits for (userfaultfd), the clone engine fetches it and what belongs to it, and fills it in.

mod bits;
mod blocks;
mod inlet;
mod pages;
mod running;
#[cfg(feature = "vm-memory")]
mod rust_vmm;
mod stage;
#[cfg(test)]
mod stage_tests;
#[cfg(test)]
mod tests;

pub(crate) use pages::Part;
pub use running::Lazy;
pub(crate) use running::Running;
#[cfg(feature = "vm-memory")]
pub use rust_vmm::{Filling, FrozenMmap};
pub use stage::Stage;
