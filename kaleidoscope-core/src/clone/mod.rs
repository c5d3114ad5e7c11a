//! Clones: what they start from, and the engine that fills their memory.
//!
//! A [`Descriptor`] is what a clone starts from, and [`trust`] says whether it may save the
//! transfer of free memory. [`ports`] says what the engine needs of the world around it; [`Engine`]
//! is what an embedder starts. Inside, every frame is one atomic byte (`states`), a fault is
//! answered by the thread that brings it (`fault`), pages come in by one way whoever receives them
//! (`deliver`), and one thread per clone streams (`stream`).

mod address;
mod background_fill;
mod deliver;
mod descriptor;
mod engine;
mod events;
mod fault;
mod free_frames;
mod granule;
#[cfg(feature = "hooks")]
pub mod hooks;
mod id;
mod local;
mod local_cache;
mod memory;
#[cfg(all(test, loom))]
mod model;
mod options;
pub mod ports;
mod reclaim;
mod retry;
mod scheduler;
pub mod shared;
mod staging;
mod states;
mod statistics;
mod stream;
#[cfg(all(test, not(loom)))]
mod tests;
mod waiters;

pub use address::ServerAddress;
pub use descriptor::{Descriptor, DescriptorError, DescriptorLimits, MAX_SERVERS, MAX_STATE};
pub use engine::Engine;
pub use free_frames::{FreeFrames, Trust, Verdict, trust};
pub use id::CloneId;
pub use local::LocalSource;
pub use options::{Background, EngineOptions, EngineParts, Feedback, Stopped};
pub use retry::Retry;
pub use statistics::{Counts, Statistics};
