//! Facts about a guest's memory, independent of the guest operating system.

mod evidence;
mod facts;
mod introspect;
pub mod name;

pub use evidence::{FrameUse, KernelArea};
pub use facts::{FrameFacts, GuestFacts, Note, NoteKind, Process};
pub use introspect::{Introspect, IntrospectError, IntrospectErrorKind, Phase};
