//! A page installer with injected failures.

use super::log::Call;
use super::script::{Decision, Failure, Script};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Eviction, InstallError, Installed, PageInstaller};
use kaleidoscope_core::memory::Page;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Forwards calls to another installer, with the failures of a [`Script`].
pub struct FaultyInstaller {
    inner: Arc<dyn PageInstaller>,
    script: Script,
    is_dead: AtomicBool,
}

impl FaultyInstaller {
    /// Wraps an installer.
    #[must_use]
    pub fn new(inner: Arc<dyn PageInstaller>, script: Script) -> Self {
        Self { inner, script, is_dead: AtomicBool::new(false) }
    }

    fn call<T: std::fmt::Debug>(
        &self,
        call: Call,
        frames: &[FrameIndex],
        act: impl FnOnce(&Decision) -> Result<T, InstallError>,
    ) -> Result<T, InstallError> {
        let decision = self.script.begin(call, frames, "");
        if decision.has(Failure::Dead) {
            self.is_dead.store(true, Ordering::Release);
        }
        let result = if self.is_dead.load(Ordering::Acquire) || decision.has(Failure::Fail) {
            Err(InstallError::new(format!("{call} fails, as scripted")))
        } else {
            act(&decision)
        };
        match &result {
            Ok(done) => self.script.end(&decision, format_args!("{done:?}")),
            Err(error) => self.script.end(&decision, error),
        }
        result
    }

    fn fill(
        &self,
        call: Call,
        frame: FrameIndex,
        act: impl FnOnce() -> Result<Installed, InstallError>,
    ) -> Result<Installed, InstallError> {
        self.call(call, &[frame], |decision| {
            if decision.has(Failure::Again) {
                self.script.owe_removed_event();
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
        self.call(Call::ZeroRun, &list, |decision| {
            if decision.has(Failure::Again) {
                self.script.owe_removed_event();
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
