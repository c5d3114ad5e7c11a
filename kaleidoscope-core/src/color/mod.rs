//! Color map of a guest: palette, per-frame records, regions, temperature.

mod map;
mod palette;
mod region;
mod temperature;
mod trusted;

pub use map::{ColorMap, Frame, KernelIdentity, MapError, Members};
pub use palette::{Color, FrameKind, PaperColor, UnknownName};
pub(crate) use region::MAX_REGIONS;
pub use region::{Order, Region, RegionId};
pub use temperature::Temperature;
pub(crate) use trusted::FreeFrameTrust;
