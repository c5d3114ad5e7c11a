//! How pages enter memory that userfaultfds watch.

use super::blocks::Blocks;
use super::journal::Journal;
use super::memory::UserfaultMemory;
use super::shared_cache::Put;
use crate::error::Asked;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::ports::{InstallError, Installed, PageInstaller};
use kaleidoscope_core::memory::Page;
use rustix::io::Errno;
use std::ops::Range;

impl UserfaultMemory {
    /// Collects a frame of a huge page, zeros without a page.
    fn collect(
        &self,
        blocks: &Blocks,
        frame: FrameIndex,
        page: Option<&Page>,
    ) -> Result<Installed, InstallError> {
        let (shard, _) = self.shard(frame)?;
        match blocks.put(frame, page, |start, bytes| shard.fill(start, bytes)) {
            Ok(installed) => Ok(installed),
            Err(error) => self.installed(frame, Err((0, error))),
        }
    }

    /// Fills frames of one shard with zeros; returns how many are filled, or had bytes already.
    /// Zero when the memory is changing.
    fn zero_some(&self, frames: Range<u32>) -> Result<u32, InstallError> {
        let (shard, _) = self.shard(FrameIndex(frames.start))?;
        let most = frames.end.min(shard.frames.end) - frames.start;
        let is_missing = |n: &u32| !self.is_cached(FrameIndex(frames.start + n));
        let count = (0..most).take_while(is_missing).count();
        let count = u32::try_from(count).unwrap_or(0);
        if count == 0 {
            return Ok(1);
        }
        let run = frames.start..frames.start + count;
        self.filled(run.clone(), shard.descriptor.zero(shard.addresses_of(run)))
    }

    /// As [`zero_some`](Self::zero_some), with pages.
    fn copy_some(&self, first: u32, pages: &[Page]) -> Result<u32, InstallError> {
        let (shard, addresses) = self.shard(FrameIndex(first))?;
        let most = (shard.frames.end - first) as usize;
        let bytes = pages.get(..most).unwrap_or(pages).as_flattened();
        let run = first..first + u32::try_from(bytes.len() / FRAME_BYTES).unwrap_or(0);
        self.filled(run, shard.descriptor.copy(addresses.start, bytes))
    }

    /// How many frames of a run have a page after an attempt to fill it.
    fn filled(
        &self,
        run: Range<u32>,
        result: Result<(), (usize, Errno)>,
    ) -> Result<u32, InstallError> {
        let Err((bytes, error)) = result else { return Ok(run.end - run.start) };
        let filled = u32::try_from(bytes / FRAME_BYTES).unwrap_or(0);
        // The kernel says EAGAIN, too, when it filled some and not all.
        let next = self.installed(FrameIndex(run.start + filled), Err((0, error)))?;
        Ok(filled + u32::from(next != Installed::TryAgain))
    }

    /// As [`PageInstaller::install_run`], one frame at a time.
    fn install_each(&self, first: FrameIndex, pages: &[Page]) -> Result<u32, InstallError> {
        let mut done = 0;
        for (frame, page) in (first.0..).zip(pages) {
            match self.install(FrameIndex(frame), page)? {
                Installed::Installed | Installed::AlreadyPresent => done += 1,
                Installed::TryAgain => break,
            }
        }
        Ok(done)
    }
}

impl PageInstaller for UserfaultMemory {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        // An engine that has taken over may not know yet.
        if self.journal.as_ref().is_some_and(|journal| journal.is_given_back(frame.0)) {
            return self.zero(frame);
        }
        if let Some(blocks) = &self.blocks {
            return self.collect(blocks, frame, Some(page));
        }
        let (shard, addresses) = self.shard(frame)?;
        let Some(cache) = &self.cache else {
            return self.installed(frame, shard.descriptor.copy(addresses.start, page));
        };
        let failed =
            |error| InstallError::caused_by(format!("frame {frame} cannot be filled"), error);
        let put = cache.put(frame, page).map_err(failed)?;
        match put {
            Put::New | Put::Known => {}
            Put::Again => return Ok(Installed::TryAgain),
            Put::Sealed => return self.installed(frame, shard.descriptor.zero(addresses)),
        }
        shard.descriptor.wake(addresses).asked("waking a vCPU").map_err(failed)?;
        Ok(if put == Put::New { Installed::Installed } else { Installed::AlreadyPresent })
    }

    fn install_run(&self, first: FrameIndex, pages: &[Page]) -> Result<u32, InstallError> {
        let frames =
            first.0..first.0.saturating_add(u32::try_from(pages.len()).unwrap_or(u32::MAX));
        let has_given_back = |journal: &Journal| frames.clone().any(|n| journal.is_given_back(n));
        let is_mixed = self.journal.as_ref().is_some_and(has_given_back);
        if self.blocks.is_some() || self.cache.is_some() || is_mixed {
            return self.install_each(first, pages);
        }
        let mut done = 0;
        while let Some(rest @ [_, ..]) = pages.get(done as usize..) {
            let filled = self.copy_some(first.0 + done, rest)?;
            if filled == 0 {
                break;
            }
            done += filled;
        }
        Ok(done)
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        if let Some(blocks) = &self.blocks {
            return self.collect(blocks, frame, None);
        }
        let (shard, addresses) = self.shard(frame)?;
        if self.is_cached(frame) {
            return Ok(Installed::AlreadyPresent);
        }
        self.installed(frame, shard.descriptor.zero(addresses))
    }

    fn zero_run(&self, frames: Range<u32>) -> Result<u32, InstallError> {
        let mut done = frames.start;
        while done < frames.end {
            let filled = match &self.blocks {
                Some(blocks) => {
                    let installed = self.collect(blocks, FrameIndex(done), None)?;
                    u32::from(installed != Installed::TryAgain)
                }
                None => self.zero_some(done..frames.end)?,
            };
            if filled == 0 {
                break;
            }
            done += filled;
        }
        Ok(done - frames.start)
    }

    fn shown(&self) -> Vec<Range<u32>> {
        self.cache.as_ref().map_or_else(Vec::new, |cache| cache.shared())
    }

    fn wake(&self, frame: FrameIndex) -> Result<(), InstallError> {
        let (shard, addresses) = self.shard(frame)?;
        if !self.reports_removal(shard) {
            // A present frame that faults was given back without an event, so it reads as zeros
            // now; or the fault is older than the page, and the kernel returns EEXIST.
            let zeroed = match &self.blocks {
                Some(blocks) => blocks.refill(frame, |start, bytes| shard.fill(start, bytes)),
                None => shard.descriptor.zero(addresses.clone()).map_err(|(_, error)| error),
            };
            match self.installed(frame, zeroed.map_err(|error| (0, error)))? {
                // Filling a page wakes its vCPUs.
                Installed::Installed => return Ok(()),
                Installed::AlreadyPresent | Installed::TryAgain => {}
            }
        }
        match shard.descriptor.wake(addresses) {
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(InstallError::ended()),
            Err(error) => Err(InstallError::caused_by(
                format!("the vCPUs that wait for frame {frame} cannot be woken"),
                error,
            )),
        }
    }
}
