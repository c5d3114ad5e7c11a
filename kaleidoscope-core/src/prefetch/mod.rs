//! Prefetch: which frames a clone receives before it faults on them.
//!
//! A [`PrefetchPolicy`] is called for every fault and fills a [`Plan`]; between faults the clone
//! asks it which frames to stream. It sees the guest through a [`LocalityOrder`], in which related
//! frames are neighbors.
//!
//! A clone that shares its parent's memory can read every page from the start, and waits only for
//! copies on write. Two forecasts serve such a clone: a [`WriteForecast`] of the frames that its
//! siblings wrote, and an [`AllocationForecast`] of the free frames that its kernel will allocate
//! next.

mod allocation;
mod blind;
mod class;
mod colored;
mod forecast;
mod locality;
#[cfg(feature = "replay")]
mod oracle;
#[cfg(feature = "replay")]
mod paper;
mod plan;
mod policy;
#[cfg(feature = "replay")]
mod recorded;
#[cfg(feature = "replay")]
mod recorded_order;
mod settings;

pub use allocation::{AllocationForecast, FreeOrder};
pub use blind::{Blind, Demand};
pub use class::Class;
pub use colored::predicted;
pub use colored::{ColorGuide, Colored};
pub use forecast::WriteForecast;
pub use locality::LocalityOrder;
pub(crate) use locality::Position;
#[cfg(feature = "replay")]
pub use oracle::Oracle;
#[cfg(feature = "replay")]
pub use paper::{Paper, Shape};
pub use plan::{Answer, Plan, Planner, Presence};
pub use policy::{Access, Fault, PrefetchOutcome, PrefetchPolicy};
#[cfg(feature = "replay")]
pub use recorded::{Predict, Recorded, Streamed};
#[cfg(feature = "replay")]
pub use recorded_order::RecordedOrder;
pub use settings::{RecencyHint, Settings, SettingsError, Window};
