//! A clone's resident frames, by color.

use crate::color::Color;
use std::sync::atomic::{AtomicU32, Ordering};

/// Frames by color, in the order of [`Color::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ByColor(pub [u32; Color::ALL.len()]);

impl ByColor {
    /// Frames of a color.
    #[must_use]
    pub fn get(&self, color: Color) -> u32 {
        self.0.get(usize::from(color as u8)).copied().unwrap_or(0)
    }

    /// Frames of all colors.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().copied().map(u64::from).sum()
    }

    /// The colors with at least one frame.
    pub fn iter(&self) -> impl Iterator<Item = (Color, u32)> + '_ {
        Color::ALL.into_iter().zip(self.0).filter(|(_, frames)| *frames > 0)
    }
}

/// The number of resident frames of each color in a clone. Many threads may count at once; each
/// count is one atomic operation.
#[derive(Debug, Default)]
pub(crate) struct Footprint([AtomicU32; Color::ALL.len()]);

impl Footprint {
    /// The footprint of an empty clone.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Counts frames that were installed.
    pub(crate) fn add(&self, color: Color, frames: u32) {
        if let Some(count) = self.0.get(usize::from(color as u8)) {
            count.fetch_add(frames, Ordering::Relaxed);
        }
    }

    /// Counts frames that were removed; [`add`](Self::add) must have counted them.
    pub(crate) fn remove(&self, color: Color, frames: u32) {
        if let Some(count) = self.0.get(usize::from(color as u8)) {
            count.fetch_sub(frames, Ordering::Relaxed);
        }
    }

    /// The current counts. Concurrent changes may or may not be included.
    #[must_use]
    pub(crate) fn now(&self) -> ByColor {
        let mut now = ByColor::default();
        for (to, from) in now.0.iter_mut().zip(&self.0) {
            *to = from.load(Ordering::Relaxed);
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_by_color() {
        let footprint = Footprint::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for color in Color::ALL {
                        footprint.add(color, 3);
                        footprint.remove(color, 1);
                    }
                });
            }
        });
        let now = footprint.now();
        assert!(Color::ALL.into_iter().all(|color| now.get(color) == 8));
        assert_eq!(now.total(), 8 * 23);
        footprint.remove(Color::Slab, 8);
        assert!(footprint.now().iter().all(|(color, _)| color != Color::Slab));
        assert_eq!(footprint.now().iter().count(), 22);
    }
}
