//! Pages of consecutive frames that arrive together: one call installs them all.

use super::super::super::options::Stopped;
use super::super::super::ports::Delivery;
use super::super::super::statistics::Count;
use super::{Installer, Origin};
use crate::addr::FrameIndex;
use crate::memory::Page;

/// Most frames of a run: 128 KiB of pages are kept for it.
const MAX_RUN: usize = 32;

/// Pages of consecutive frames for which no vCPU waits, or zeros of consecutive frames.
#[derive(Debug, Default)]
pub(in super::super) struct Run {
    first: FrameIndex,
    /// The pages; empty for a run of zeros.
    pages: Vec<Page>,
    zeros: usize,
}

impl Run {
    fn len(&self) -> usize {
        self.pages.len() + self.zeros
    }

    /// The n-th frame.
    fn frame(&self, n: usize) -> FrameIndex {
        FrameIndex(self.first.0.saturating_add(u32::try_from(n).unwrap_or(u32::MAX)))
    }

    fn delivery(&self, n: usize) -> Delivery<'_> {
        let frame = self.frame(n);
        self.pages.get(n).map_or(Delivery::Zero(frame), |page| Delivery::Page(frame, page))
    }

    /// Adds a delivery if it continues the run. Returns whether it did.
    fn push(&mut self, delivery: Delivery<'_>) -> bool {
        let (frame, len) = (delivery.frame(), self.len());
        if len == 0 {
            self.first = frame;
        } else if len == MAX_RUN || frame != self.frame(len) {
            return false;
        }
        match delivery {
            Delivery::Page(_, page) if self.zeros == 0 => {
                self.pages.extend_from_slice(std::slice::from_ref(page));
            }
            Delivery::Zero(_) if self.pages.is_empty() => self.zeros += 1,
            Delivery::Page(..) | Delivery::Zero(_) | Delivery::Unavailable(_) => return false,
        }
        true
    }

    fn clear(&mut self) {
        self.pages.clear();
        self.zeros = 0;
    }
}

impl Installer {
    /// Installs or stages a frame's page, or keeps it in `run` until its neighbors have arrived, if
    /// no vCPU waits for it. The caller calls [`finish_run`](Self::finish_run) soon.
    pub(in super::super) fn collect(
        &self,
        run: &mut Run,
        delivery: Delivery<'_>,
    ) -> Result<(), Stopped> {
        let frame = delivery.frame();
        let is_alone = frame.0 >= self.state().locality.frames()
            || self.granules.of(frame).is_some()
            || self.is_sampled(frame)
            || matches!(delivery, Delivery::Unavailable(_))
            || self.state().frames.is_wanted(frame);
        if is_alone {
            return self.deliver(delivery, Origin::Source);
        }
        if !run.push(delivery) {
            self.finish_run(run)?;
            run.push(delivery);
        }
        Ok(())
    }

    /// Installs the pages of a run, and empties it.
    pub(in super::super) fn finish_run(&self, run: &mut Run) -> Result<(), Stopped> {
        let mut done = 0;
        while done < run.len() {
            done += self.install_some(run, done)?;
        }
        run.clear();
        Ok(())
    }

    /// Installs frames of a run from the n-th on; returns how many need nothing more.
    fn install_some(&self, run: &Run, from: usize) -> Result<usize, Stopped> {
        let state = self.state();
        let gate = self.events.enter();
        let is_claimed = |n: &usize| state.frames.begin_install(run.frame(*n)).is_some();
        let claimed = (from..run.len()).take_while(is_claimed).count();
        if claimed == 0 {
            state.count(run.frame(from), Count::Dropped);
            return Ok(1);
        }
        let (first, end) = (run.frame(from), run.frame(from + claimed));
        let filled = match run.pages.get(from..from + claimed) {
            Some(pages) => self.port.install_run(first, pages)?,
            None => self.port.zero_run(first.0..end.0)?,
        };
        let filled = usize::try_from(filled).unwrap_or(usize::MAX).min(claimed);
        for n in from..from + filled {
            let frame = run.frame(n);
            let flags = state.frames.finish_install(frame);
            state.accounts.add_resident(state.color(frame));
            if flags.wanted {
                self.port.wake(frame)?;
            }
            self.count_arrival(frame, run.pages.get(n), flags, Origin::Source);
            self.finish_request(flags);
        }
        (from + filled..from + claimed).for_each(|n| state.frames.defer_install(run.frame(n)));
        drop(gate);
        if filled < claimed {
            // The memory is changing: this frame is tried again, and then the rest as a run.
            self.deliver(run.delivery(from + filled), Origin::Source)?;
            return Ok(filled + 1);
        }
        Ok(filled)
    }
}
