//! The on-demand allocator: a clone's memory is accounted for as it is used, not when the clone is
//! made.
//!
//! It hands out numbers, not memory: a installer's memory comes into being when a page is placed,
//! and this module says whether the host can bear one more.
//!
//! ```text
//!  Host ──admit──► Reservation ──take_for_fault──► always, beyond the limits if need be (an overdraft, counted)
//!   ▲  chunks of     │   ──take_for_prefetch► as much as limits and pressure allow
//!   └─ 512 frames ───┘   ──give_back, drop──► surplus chunks return to the host
//! ```
//!
//! A reservation takes frames out of a balance of its own with one compare-and-swap; only when a
//! chunk is used up, or two are spare, does it go to the host, which has a lock.
//!
//! What a host has given out makes its [`Pressure`]; it rises in steps, and each clone is told
//! ([`Reservation::on_pressure`]): first prefetch shrinks, then clones take back what was
//! prefetched and not touched, then new clones are refused. A fault that can still be served is
//! never refused: it would stop the clone, while the host may well have memory again a moment
//! later.

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

pub use footprint::{ByColor, Footprint};
pub use history::{FootprintHistory, FootprintSample};
pub use host::{Host, HostStatistics, Refused};
pub use limits::{CloneLimits, HostLimits};
pub use pressure::Pressure;
pub use reservation::Reservation;

/// Frames in a chunk, the unit in which a host gives memory to its clones: 2 MiB, so that a host
/// may back a chunk with one large page.
pub const CHUNK_FRAMES: u64 = 512;
