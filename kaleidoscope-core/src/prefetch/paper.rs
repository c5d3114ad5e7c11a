//! The windows of the Kaleidoscope paper (Bryant et al., EuroSys 2011, section 4.2 and table 1).

use super::{Fault, LocalityOrder, Planner, PrefetchPolicy};
use crate::addr::FrameIndex;
use crate::color::PaperColor;
use std::sync::Arc;

/// Position of a window relative to the faulting frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Shape {
    /// The next frames of the color.
    Lookahead,
    /// Frames of the color on both sides.
    Pivot,
}

/// A window among the frames of one color in frame-number order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Window {
    shape: Shape,
    size: usize,
}

/// Neighbors in frame-number order among frames of the same one of the paper's six colors.
/// Executable page cache counts as code.
#[derive(Clone, Debug)]
pub struct Paper {
    locality: Arc<LocalityOrder>,
    shape: Shape,
    /// Frames of each color in frame-number order.
    members: Vec<Vec<FrameIndex>>,
    /// Rank of every frame within its color.
    ranks: Vec<u32>,
}

impl Paper {
    /// The paper's windows with its preferred shape, lookahead.
    #[must_use]
    pub fn new(locality: Arc<LocalityOrder>) -> Self {
        Self::shaped(locality, Shape::Lookahead)
    }

    /// The paper's windows with one shape for all colors.
    #[must_use]
    pub fn shaped(locality: Arc<LocalityOrder>, shape: Shape) -> Self {
        let mut members = vec![Vec::new(); PaperColor::PageCache as usize + 1];
        let mut ranks = Vec::with_capacity(locality.frames() as usize);
        for (frame, color) in (0..).map(FrameIndex).zip(locality.map().colors()) {
            let group = members.get_mut(color.paper() as usize);
            let rank = group.map_or(0, |group: &mut Vec<FrameIndex>| {
                group.push(frame);
                group.len() - 1
            });
            ranks.push(u32::try_from(rank).unwrap_or(u32::MAX));
        }
        Self { locality, shape, members, ranks }
    }

    /// Window sizes in pages from table 1 of the paper.
    fn window(&self, color: PaperColor) -> Window {
        let size = match color {
            PaperColor::KernelCode | PaperColor::UserCode => 4,
            // Unknown frames are fetched like data.
            PaperColor::KernelData | PaperColor::Unknown => 12,
            PaperColor::UserData => 16,
            PaperColor::PageCache => 8,
            PaperColor::Free => 0,
        };
        Window { shape: self.shape, size }
    }
}

impl PrefetchPolicy for Paper {
    fn name(&self) -> &str {
        match self.shape {
            Shape::Lookahead => "paper",
            Shape::Pivot => "paper-pivot",
        }
    }

    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        if planner.answer_with_zeros() {
            return;
        }
        let color = self.locality.color(fault.frame).paper();
        let window = self.window(color);
        let (Some(group), Some(&rank)) =
            (self.members.get(color as usize), self.ranks.get(fault.frame.as_usize()))
        else {
            return;
        };
        let rank = rank as usize;
        let first = match window.shape {
            Shape::Lookahead => rank.saturating_add(1),
            Shape::Pivot => rank.saturating_sub(window.size / 2),
        };
        // A pivot window includes the faulting frame, which the planner leaves out.
        let extra = usize::from(window.shape == Shape::Pivot);
        let end = first.saturating_add(window.size + extra).min(group.len());
        for frame in group.get(first..end).unwrap_or(&[]) {
            planner.fetch_used(*frame);
        }
    }
}
