//! What every frame is: the palette, the map of a guest, its regions and their temperature.

mod map;
mod palette;
mod region;
mod temperature;

pub use map::{ColorMap, Frame, KernelIdentity, MapError, Members};
pub use palette::{Color, FrameKind, PaperColor, UnknownName};
pub(crate) use region::MAX_REGIONS;
pub use region::{Order, Region, RegionId};
pub use temperature::Temperature;
