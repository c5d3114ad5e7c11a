//! A installer with whom something goes wrong.

use super::log::Call;
use super::script::{Decided, Failure, Script};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Eviction, InstallError, Installed, PageInstaller};
use kaleidoscope_core::memory::Page;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Passes pages on as a [`Script`] says.
pub struct FaultyInstaller {
    inner: Arc<dyn PageInstaller>,
    script: Script,
    is_dead: AtomicBool,
}

impl FaultyInstaller {
    /// A installer that fails as the script says.
    #[must_use]
    pub fn new(inner: Arc<dyn PageInstaller>, script: Script) -> Self {
        Self { inner, script, is_dead: AtomicBool::new(false) }
    }

    fn call<T: std::fmt::Debug>(
        &self,
        call: Call,
        frames: &[FrameIndex],
        act: impl FnOnce(&Decided) -> Result<T, InstallError>,
    ) -> Result<T, InstallError> {
        let decided = self.script.begin(call, frames, "");
        if decided.has(Failure::Dead) {
            self.is_dead.store(true, Ordering::Release);
        }
        let result = if self.is_dead.load(Ordering::Acquire) || decided.has(Failure::Fail) {
            Err(InstallError::new(format!("{call} fails, as scripted")))
        } else {
            act(&decided)
        };
        match &result {
            Ok(done) => self.script.end(&decided, format_args!("{done:?}")),
            Err(error) => self.script.end(&decided, error),
        }
        result
    }

    fn fill(
        &self,
        call: Call,
        frame: FrameIndex,
        act: impl FnOnce() -> Result<Installed, InstallError>,
    ) -> Result<Installed, InstallError> {
        self.call(call, &[frame], |decided| {
            if decided.has(Failure::Again) {
                self.script.owe_excuse();
                return Ok(Installed::TryAgain);
            }
            act()
        })
    }
}

impl PageInstaller for FaultyInstaller {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        self.fill(Call::Install, frame, || self.inner.install(frame, page))
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        self.fill(Call::Zero, frame, || self.inner.zero(frame))
    }

    fn zero_run(&self, frames: Range<u32>) -> Result<u32, InstallError> {
        let list: Vec<_> = frames.clone().map(FrameIndex).collect();
        self.call(Call::ZeroRun, &list, |decided| {
            if decided.has(Failure::Again) {
                self.script.owe_excuse();
                return Ok(0);
            }
            self.inner.zero_run(frames)
        })
    }

    fn shown(&self) -> Vec<Range<u32>> {
        self.inner.shown()
    }

    fn wake(&self, frame: FrameIndex) -> Result<(), InstallError> {
        self.call(Call::Wake, &[frame], |_| self.inner.wake(frame))
    }

    fn evict(&self, frame: FrameIndex) -> Result<Eviction, InstallError> {
        self.call(Call::Evict, &[frame], |_| self.inner.evict(frame))
    }
}

impl std::fmt::Debug for FaultyInstaller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultyInstaller").field("script", &self.script).finish_non_exhaustive()
    }
}
