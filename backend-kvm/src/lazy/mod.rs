//! Clones whose memory comes page by page: from a page server, or from anywhere else.
//!
//! The kernel says which page a vCPU waits for (userfaultfd), the clone engine fetches it and what belongs to it, and fills it in.

mod pages;
mod running;
mod stage;
#[cfg(test)]
mod tests;

pub use running::Lazy;
pub(crate) use running::Running;
pub use stage::Stage;
