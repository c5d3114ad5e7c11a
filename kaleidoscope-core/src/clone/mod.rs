//! Clones: what they start from, and the engine that fills their memory.
//!
//! [`ports`] says what the engine needs of the world around it.

mod address;
mod id;
pub mod ports;
pub mod shared;

pub use address::{AddressError, ServerAddress};
pub use id::{CloneId, CloneIdError};
