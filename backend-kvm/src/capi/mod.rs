//! The C interface: what C, Go and other languages call. The header is
//! `backend-kvm/include/kaleidoscope.h`; `scripts/capi` builds and installs the libraries.
//!
//! The rules of every function:
//! - All but those that free an object return a [`Status`]. The message of a thread's last failure is [`kaleidoscope_last_error`].
//! - Null where a pointer is required, and a length that no buffer has, are
//!   [`Status::InvalidArgument`]. A result is written only if the status is [`Status::Ok`].
//! - A panic does not leave the library: it becomes [`Status::Panicked`].
//! - Objects may be used by several threads at once. An object is freed once, when no call uses it;
//!   the objects that were made from it live on.

mod color;
mod failure;
mod map;
mod pointers;
mod policy;
mod session;
mod statistics;

pub use color::Color;
pub use failure::{Status, kaleidoscope_last_error};
pub use map::{
    Map, kaleidoscope_map_color, kaleidoscope_map_frames, kaleidoscope_map_free,
    kaleidoscope_map_open,
};
pub use policy::{
    Access, Action, PlannedFrame, Policy, kaleidoscope_policy_free, kaleidoscope_policy_new,
    kaleidoscope_policy_plan,
};
pub use session::{
    Region, Session, SessionOptions, kaleidoscope_session_free, kaleidoscope_session_start,
    kaleidoscope_session_stop, kaleidoscope_session_wait,
};
pub use statistics::{Statistics, kaleidoscope_session_statistics};

// The header promises that several threads may use an object at once.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<Map>();
    is_shared::<Policy>();
    is_shared::<Session>();
};
