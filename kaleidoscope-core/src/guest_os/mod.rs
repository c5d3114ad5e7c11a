//! What a guest operating system's own structures say of its memory, whatever the system.

mod evidence;

pub use evidence::{FrameUse, KernelArea};
