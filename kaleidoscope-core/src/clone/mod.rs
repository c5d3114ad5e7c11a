//! Clones: their descriptors, and the engine that fills their memory on demand.
//!
//! An embedder starts a clone in four steps:
//!
//! 1. Read a [`Descriptor`]: the snapshot, the page servers and the VM state of the clone.
//! 2. Implement the [`ports`]: a [`PageInstaller`](ports::PageInstaller) for the clone's memory,
//!    and a [`FaultQueue`](ports::FaultQueue) if that memory reports faults as events.
//!    [`LocalSource`] is a [`PageSource`](ports::PageSource) for a snapshot on this host.
//! 3. Choose [`EngineOptions`]. [`trust`] tells whether free frames may be filled with zeros
//!    instead of being fetched.
//! 4. [Start](Engine::start) the [`Engine`], and call [`Engine::serve`] on the fault threads, or
//!    [`Engine::fault`] for each fault.
//!
//! A fault is answered on the thread that calls the engine. One further thread per clone streams
//! prefetched pages. [`hooks`] change what a clone must not share with its parent; [`shared`] lets
//! the clones of one host share pages.

mod address;
mod descriptor;
mod engine;
mod free_frames;
#[cfg(feature = "hooks")]
pub mod hooks;
mod id;
mod local;
mod local_cache;
mod options;
pub mod ports;
mod retry;
pub mod shared;
mod statistics;

pub use crate::coloring::{Trust, Verdict, trust};
pub use address::ServerAddress;
pub use descriptor::{Descriptor, DescriptorError, DescriptorLimits, MAX_SERVERS, MAX_STATE};
pub use engine::Engine;
pub use free_frames::FreeFrames;
pub use id::CloneId;
pub use local::LocalSource;
pub use options::{Background, EngineOptions, EngineParts, Feedback, Stopped};
pub use retry::Retry;
pub use statistics::{Counts, Statistics};
