//! The frame records as columns of bytes, in frame-index order.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ManifestError;
use crate::color::{Color, ColorMap, Frame, FrameKind, Order, RegionId, Temperature};

/// Region number of frames without a region.
const NO_REGION: u32 = u32::MAX;

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

/// Last position seen in each region.
struct LastPosition {
    of_region: Vec<u64>,
    outside: u64,
}

impl LastPosition {
    fn new(regions: usize) -> Self {
        Self { of_region: vec![0; regions], outside: 0 }
    }

    /// The slot of a region. An unknown region number shares the slot of frames without a region;
    /// `ColorMap` rejects such numbers later.
    fn slot(&mut self, region: u32) -> &mut u64 {
        let at = usize::try_from(region).unwrap_or(usize::MAX);
        self.of_region.get_mut(at).unwrap_or(&mut self.outside)
    }
}

/// The column of positions, as differences; see [`Columns::position`].
pub(crate) fn position_differences(map: &ColorMap) -> impl Iterator<Item = u64> + '_ {
    let mut last = LastPosition::new(map.regions().len());
    let rows = map.region_numbers().iter().zip(map.positions());
    rows.map(move |(&region, &position)| {
        let before = std::mem::replace(last.slot(region), position);
        position.wrapping_sub(before)
    })
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
        let mut last = LastPosition::new(regions);
        let region = self.region.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b));
        let difference = self.position.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        let small = self.kind.iter().zip(self.color).zip(self.temperature);
        let rows = small.zip(region.zip(difference)).enumerate();
        Ok(rows.map(move |(index, (((&kind, &color), &signs), (region, difference)))| {
            let wrong = |column, problem: String| ManifestError::Frame { column, index, problem };
            let slot = last.slot(region);
            *slot = slot.wrapping_add(difference);
            Ok(Frame {
                kind: palette.kinds.get(kind).map_err(|p| wrong("kind", p))?,
                color: palette.colors.get(color).map_err(|p| wrong("color", p))?,
                region: (region != NO_REGION).then_some(RegionId(region)),
                position: *slot,
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

/// The value of each number, or its name if this program does not know it.
pub(crate) struct Names<T>(Vec<Result<T, String>>);

impl<T: Copy> Names<T> {
    pub(crate) fn new(names: &[&str], find: impl Fn(&str) -> Option<T>) -> Self {
        Self(names.iter().map(|n| find(n).ok_or_else(|| (*n).to_owned())).collect())
    }

    pub(crate) fn get(&self, number: u8) -> Result<T, String> {
        match self.0.get(usize::from(number)) {
            Some(Ok(value)) => Ok(*value),
            Some(Err(name)) => Err(format!("`{name}` is not known to this program")),
            None => Err(format!("number {number} is not in the palette")),
        }
    }
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
