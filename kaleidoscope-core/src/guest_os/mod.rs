//! What a guest operating system's own structures say of its memory, whatever the system.

mod evidence;
mod facts;
mod introspect;
pub mod name;

pub use evidence::{FrameUse, KernelArea};
pub use facts::{FrameFacts, GuestFacts, Note, NoteKind, Process};
pub use introspect::{Introspect, Phase};
