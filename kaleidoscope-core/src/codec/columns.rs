//! Columns: one property of all rows (frames or entries) as a string of bytes.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// Region number of rows without a region.
pub(crate) const NO_REGION: u32 = u32::MAX;

/// Last position seen in each region. A column of positions holds differences from the previous
/// row of the same region, modulo 2^64; they compress better than the positions.
///
/// Rows without a region count as one more region. So do rows with an unknown region number, which
/// the format rejects.
pub(crate) struct LastPositions {
    of_region: Vec<u64>,
    outside: u64,
}

impl LastPositions {
    /// All positions are 0 before the first row.
    pub(crate) fn new(regions: usize) -> Self {
        Self { of_region: vec![0; regions], outside: 0 }
    }

    /// The next row's difference, from its position.
    pub(crate) fn difference(&mut self, region: u32, position: u64) -> u64 {
        let before = std::mem::replace(self.slot(region), position);
        position.wrapping_sub(before)
    }

    /// The next row's position, from its difference.
    pub(crate) fn position(&mut self, region: u32, difference: u64) -> u64 {
        let slot = self.slot(region);
        *slot = slot.wrapping_add(difference);
        *slot
    }

    fn slot(&mut self, region: u32) -> &mut u64 {
        let at = usize::try_from(region).unwrap_or(usize::MAX);
        self.of_region.get_mut(at).unwrap_or(&mut self.outside)
    }
}

/// The numbers of a column with four bytes per row, little-endian.
pub(crate) fn u32s(column: &[u8]) -> impl Iterator<Item = u32> + '_ {
    column.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The numbers of a column with eight bytes per row, little-endian.
pub(crate) fn u64s(column: &[u8]) -> impl Iterator<Item = u64> + '_ {
    column.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}
