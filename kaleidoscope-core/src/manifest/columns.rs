//! The frame records as columns of bytes, in frame-index order.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ManifestError;
use crate::codec::columns::{LastPositions, NO_REGION, u32s, u64s};
use crate::codec::names::Names;
use crate::color::{Color, ColorMap, Frame, FrameKind, Order, RegionId, Temperature};

/// One column per frame property.
#[derive(Default)]
pub(crate) struct Columns<B> {
    /// Numbers of [`FrameKind`]s, one byte per frame.
    pub(crate) kind: B,
    /// Numbers of [`Color`]s, one byte per frame.
    pub(crate) color: B,
    /// Bits of [`Temperature`], one byte per frame.
    pub(crate) temperature: B,
    /// Region number or [`NO_REGION`], four bytes per frame, little-endian.
    pub(crate) region: B,
    /// Position minus the position of the previous frame in the same region (0 for the first),
    /// modulo 2^64, eight bytes per frame, little-endian. Frames without a region count as one more
    /// region.
    ///
    /// Files are usually read in order into free frames in order, so most differences are 1.
    pub(crate) position: B,
}

/// The column of positions, as differences; see [`Columns::position`].
pub(crate) fn position_differences(map: &ColorMap) -> impl Iterator<Item = u64> + '_ {
    let mut last = LastPositions::new(map.regions().len());
    let rows = map.region_numbers().iter().zip(map.positions());
    rows.map(move |(&region, &position)| last.difference(region, position))
}

impl Columns<&[u8]> {
    /// The frame records of `frames` frames in `regions` regions.
    pub(crate) fn frames(
        &self,
        frames: usize,
        regions: usize,
        palette: &Palette,
    ) -> Result<impl Iterator<Item = Result<Frame, ManifestError>>, ManifestError> {
        expect_len("kind", self.kind, frames)?;
        expect_len("color", self.color, frames)?;
        expect_len("temperature", self.temperature, frames)?;
        expect_len("region", self.region, frames.saturating_mul(4))?;
        expect_len("position", self.position, frames.saturating_mul(8))?;
        let mut last = LastPositions::new(regions);
        let small = self.kind.iter().zip(self.color).zip(self.temperature);
        let rows = small.zip(u32s(self.region).zip(u64s(self.position))).enumerate();
        Ok(rows.map(move |(index, (((&kind, &color), &signs), (region, difference)))| {
            let wrong = |column, problem: String| ManifestError::Frame { column, index, problem };
            let position = last.position(region, difference);
            Ok(Frame {
                kind: palette.kinds.get(kind).map_err(|p| wrong("kind", p))?,
                color: palette.colors.get(color).map_err(|p| wrong("color", p))?,
                region: (region != NO_REGION).then_some(RegionId(region)),
                position,
                temperature: palette.temperature(signs).map_err(|p| wrong("temperature", p))?,
            })
        }))
    }
}

fn expect_len(column: &'static str, bytes: &[u8], expected: usize) -> Result<(), ManifestError> {
    if bytes.len() == expected {
        return Ok(());
    }
    let problem = format!("the column has {} bytes instead of {expected}", bytes.len());
    Err(ManifestError::Frame { column, index: 0, problem })
}

/// Maps the numbers in a manifest to this program's values. The file lists the name of each number,
/// so the palette can change without changing the meaning of older files.
pub(crate) struct Palette {
    pub(crate) kinds: Names<FrameKind>,
    pub(crate) colors: Names<Color>,
    pub(crate) orders: Names<Order>,
    pub(crate) signs: Names<Temperature>,
}

impl Palette {
    /// The set of flags whose bits are set; bit n is the n-th flag listed in the file.
    fn temperature(&self, bits: u8) -> Result<Temperature, String> {
        let mut out = Temperature::NONE;
        for bit in (0..8).filter(|bit| bits & (1u8 << bit) != 0) {
            out.insert(self.signs.get(bit)?);
        }
        Ok(out)
    }
}
