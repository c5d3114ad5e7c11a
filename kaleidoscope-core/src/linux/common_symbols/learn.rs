//! Learns the heat of symbols from traces of clones.

use super::{SymbolScores, SymbolsByPage};
use crate::addr::FrameIndex;
use crate::color::{Color, ColorMap};
use std::collections::{BTreeSet, HashMap};

/// Training data from one guest: the location of its kernel's symbols, and the pages that its
/// clones touched.
#[derive(Clone, Debug)]
pub struct Lesson {
    symbols: SymbolsByPage,
    /// Release of the guest's kernel.
    release: String,
    /// For each page of the kernel image that was not freed, the share of traces that touched it.
    heat: HashMap<u32, f64>,
}

impl Lesson {
    /// A lesson from the touched frames of each trace. A frame counts once per trace.
    #[must_use]
    pub fn new(symbols: SymbolsByPage, map: &ColorMap, traces: &[Vec<FrameIndex>]) -> Self {
        let heat = page_heat(map, traces);
        Self { symbols, release: map.kernel().release.clone(), heat }
    }

    /// Release of the guest's kernel.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.release
    }

    /// For each symbol, the highest heat of a page that holds it: names of local symbols may occur
    /// several times.
    fn heats(&self) -> HashMap<String, f64> {
        let mut out = HashMap::<String, f64>::new();
        for (page, name) in self.symbols.iter() {
            if let Some(&heat) = self.heat.get(&page) {
                let most = out.entry(name).or_default();
                *most = most.max(heat);
            }
        }
        out
    }
}

/// The share of traces that touched each page of the kernel image.
fn page_heat(map: &ColorMap, traces: &[Vec<FrameIndex>]) -> HashMap<u32, f64> {
    let mut counts = vec![0_u32; map.len()];
    for trace in traces {
        let frames: BTreeSet<FrameIndex> = trace.iter().copied().collect();
        for frame in frames {
            if let Some(count) = counts.get_mut(frame.as_usize()) {
                *count = count.saturating_add(1);
            }
        }
    }
    let all = u32::try_from(traces.len()).unwrap_or(u32::MAX).max(1);
    let in_image =
        |color| matches!(color, Color::KernelText | Color::KernelRodata | Color::KernelData);
    let frames = map.iter().zip(counts).filter(|((_, _, frame), _)| in_image(frame.color));
    let page = |position| u32::try_from(position).ok();
    frames
        .filter_map(|((_, _, frame), count)| {
            Some((page(frame.position)?, f64::from(count) / f64::from(all)))
        })
        .collect()
}

/// Thresholds for symbols to be listed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pruning {
    /// Minimum heat, from 0 to 1.
    pub least_heat: f64,
    /// Minimum number of kernel releases that have the symbol. A symbol of a single release will
    /// rarely exist in the next one.
    pub least_kernels: usize,
}

/// The heat of every symbol: the mean over the guests whose kernel has the symbol.
#[must_use]
pub fn learn(lessons: &[Lesson], pruning: &Pruning) -> SymbolScores {
    #[derive(Default)]
    struct Sum<'l> {
        heat: f64,
        guests: u32,
        kernels: BTreeSet<&'l str>,
    }
    let mut sums = HashMap::<String, Sum<'_>>::new();
    for lesson in lessons {
        for (name, heat) in lesson.heats() {
            let sum = sums.entry(name).or_default();
            sum.heat += heat;
            sum.guests = sum.guests.saturating_add(1);
            sum.kernels.insert(&lesson.release);
        }
    }
    let kept = sums.into_iter().filter_map(|(name, sum)| {
        let heat = sum.heat / f64::from(sum.guests);
        let keep = heat >= pruning.least_heat && sum.kernels.len() >= pruning.least_kernels;
        keep.then(|| (name, tenths(heat)))
    });
    kept.collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a heat is between 0 and 1"
)]
fn tenths(heat: f64) -> u8 {
    (heat * 10.0).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::color::{Frame, FrameKind, KernelIdentity, Order, Region, RegionId};
    use crate::memory::MemoryLayout;

    /// A guest whose frame `n` holds page `3 - n` of the image.
    fn lesson(release: &str, symbols: &[(u32, &str)], traces: &[&[u32]]) -> Lesson {
        let region = Region::new(FrameKind::Kernel, Order::KernelAddress, "kernel-text");
        let frame = |position| Frame {
            kind: FrameKind::Kernel,
            color: Color::KernelText,
            region: Some(RegionId(0)),
            position,
            ..Frame::default()
        };
        let layout = MemoryLayout::contiguous(0x5000).unwrap();
        let kernel = KernelIdentity { release: release.into(), ..KernelIdentity::default() };
        let frames = [frame(3), frame(2), frame(1), frame(0), Frame::default()];
        let map = ColorMap::new(layout, kernel, frames, vec![region]).unwrap();
        let mut by_page = SymbolsByPage::default();
        for (page, name) in symbols {
            by_page.push(name, *page, 0);
        }
        let traces: Vec<Vec<_>> =
            traces.iter().map(|trace| trace.iter().copied().map(FrameIndex).collect()).collect();
        Lesson::new(by_page, &map, &traces)
    }

    #[test]
    fn heats_are_means_over_guests() {
        let all = Pruning { least_heat: 0.0, least_kernels: 1 };
        let first =
            [(0, "schedule"), (1, "read"), (1, "twice"), (0, "twice"), (3, "cold"), (9, "freed")];
        let lessons = [
            lesson("6.1", &first, &[&[3, 3, 2], &[3]]),
            lesson("6.12", &[(2, "schedule"), (1, "only")], &[&[1], &[1, 4], &[], &[2, 9]]),
        ];
        let heats = learn(&lessons, &all);
        let expected = [("only", 3), ("read", 5), ("schedule", 8), ("twice", 9)];
        assert_eq!(heats.iter().collect::<Vec<_>>(), expected);
        let common = learn(&lessons, &Pruning { least_kernels: 2, ..all });
        assert_eq!(common.iter().collect::<Vec<_>>(), [("schedule", 8)]);
        let hot = learn(&lessons, &Pruning { least_heat: 0.8, ..all });
        assert_eq!(hot.iter().collect::<Vec<_>>(), [("twice", 9)]);
        let without_the_second = learn(&lessons[..1], &all);
        assert!(without_the_second.iter().any(|symbol| symbol == ("schedule", 9)));
        assert!(learn(&[], &all).is_empty());
    }
}
