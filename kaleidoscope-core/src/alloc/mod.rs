//! The on-demand allocator: a clone's memory is accounted for as it is used, not when the clone is
//! made.
//!
//! It counts frames and does not allocate memory: page installers allocate when they install a
//! page, and this module decides whether the host can afford one more.
//!
//! ```text
//!  Host ─admit─► Reservation ─take_for_fault────► always succeeds, beyond the limits if necessary
//!   ▲  chunks of     │                            (counted as overdraft)
//!   │  512 frames    │       ─take_for_prefetch─► as much as limits and pressure allow
//!   └────────────────┘       ─give_back, drop───► surplus chunks return to the host
//! ```
//!
//! A reservation takes frames from its own balance with one compare-and-swap. It takes the host's
//! lock only when a chunk is used up or two chunks are spare.
//!
//! The granted frames determine a host's [`Pressure`], which rises in steps. Each clone is notified
//! ([`Reservation::on_pressure`]): first prefetch shrinks, then clones reclaim prefetched pages
//! that were not touched, then new clones are refused. A fault that can be served is never refused,
//! because that would stop the clone although the host may have free memory a moment later.

mod account;
mod balance;
mod deliveries;
mod footprint;
mod history;
mod host;
mod limits;
mod pressure;
mod reservation;
#[cfg(test)]
mod tests;

pub use footprint::ByColor;
pub(crate) use footprint::Footprint;
pub(crate) use history::FootprintHistory;
pub use history::FootprintSample;
pub use host::{Host, HostStatistics, Refused};
pub use limits::{CloneLimits, HostLimits};
pub use pressure::Pressure;
pub use reservation::Reservation;

/// Frames in a chunk, the unit that a host grants: 2 MiB, so that a host may back a chunk with one
/// huge page.
pub const CHUNK_FRAMES: u64 = 512;
