//! Selectors of the Kaleidoscope paper (Bryant et al., EuroSys 2011).

use super::DedupSelector;
use crate::addr::FrameIndex;
use crate::color::{Color, PaperColor};
use crate::prefetch::LocalityOrder;
use std::sync::Arc;

/// Selects one of the paper's two sets of colors, by frame number. Free frames, which the paper's
/// sets include, are left out.
#[derive(Clone, Debug)]
pub struct Paper {
    locality: Arc<LocalityOrder>,
    set: Set,
    next: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Set {
    KernelAndExecutable,
    CacheAndExecutable,
}

impl Paper {
    /// Kernel pages without the page cache, and executable pages, those in the page cache included:
    /// the set that the paper measured.
    #[must_use]
    pub fn kernel_and_executable(locality: Arc<LocalityOrder>) -> Self {
        Self { locality, set: Set::KernelAndExecutable, next: 0 }
    }

    /// The page cache and executable pages, the kernel's included: the set that an earlier section
    /// of the paper proposes.
    #[must_use]
    pub fn cache_and_executable(locality: Arc<LocalityOrder>) -> Self {
        Self { locality, set: Set::CacheAndExecutable, next: 0 }
    }

    fn includes(&self, color: Color) -> bool {
        match color.paper() {
            PaperColor::KernelCode | PaperColor::UserCode => true,
            PaperColor::KernelData => self.set == Set::KernelAndExecutable,
            PaperColor::PageCache => self.set == Set::CacheAndExecutable,
            PaperColor::Unknown | PaperColor::Free | PaperColor::UserData => false,
        }
    }
}

impl DedupSelector for Paper {
    fn name(&self) -> &str {
        match self.set {
            Set::KernelAndExecutable => "kernel+executable",
            Set::CacheAndExecutable => "cache+executable",
        }
    }

    fn select(&mut self, room: usize, frames: &mut Vec<FrameIndex>) {
        let end = frames.len().saturating_add(room);
        while frames.len() < end && self.next < self.locality.frames() {
            let frame = FrameIndex(self.next);
            self.next = self.next.saturating_add(1);
            if self.includes(self.locality.color(frame)) {
                frames.push(frame);
            }
        }
    }
}
