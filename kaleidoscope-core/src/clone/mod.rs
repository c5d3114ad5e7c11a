//! Clones: what they start from, and the engine that fills their memory.
//!
//! A [`Descriptor`] is what a clone starts from, and [`FreeFrames`] says how much it may save on free memory. [`ports`] says what the engine needs of the world around it.

mod address;
mod descriptor;
mod free_frames;
mod id;
pub mod ports;

pub use address::{AddressError, ServerAddress};
pub use descriptor::{Descriptor, DescriptorError, DescriptorLimits, MAX_SERVERS, MAX_STATE};
pub use free_frames::{FreeFrames, Trust, UnknownFreeFrames, Verdict, trust};
pub use id::{CloneId, CloneIdError};
