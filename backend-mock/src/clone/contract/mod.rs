//! What every backend promises: suites to run on any implementation of the engine's ports.
//!
//! ```
//! use kaleidoscope_mock::clone::{MockMemory, contract};
//! contract::installer(&|frames| Ok(MockMemory::new(frames)?))?;
//! contract::fault_queue(&|frames| Ok(MockMemory::new(frames)?))?;
//! # Ok::<(), contract::Broken>(())
//! ```

mod fault_queue;
mod installer;
mod source;

pub use fault_queue::fault_queue;
pub use installer::installer;
pub use source::{MakeSource, source};

use super::MockMemory;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, FaultQueue, PageInstaller};
use std::error::Error;
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long a suite waits for what must happen at once, before it says that it does not.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A promise that an implementation does not keep.
#[derive(Debug, thiserror::Error)]
#[error("{promise}: {what}")]
pub struct Broken {
    promise: &'static str,
    what: String,
}

impl Broken {
    fn new(promise: &'static str, what: impl std::fmt::Display) -> Self {
        Self { promise, what: what.to_string() }
    }

    /// The promise that is not kept.
    #[must_use]
    pub fn promise(&self) -> &'static str {
        self.promise
    }
}

/// Makes a fresh subject of so many frames.
pub type Make<'m, S> = dyn Fn(u32) -> Result<S, Box<dyn Error + Send + Sync>> + 'm;

/// A clone's memory as a suite uses it: the ports from outside, a vCPU from inside.
pub trait ContractTarget: Send + Sync {
    /// How pages enter the memory.
    fn installer(&self) -> &dyn PageInstaller;

    /// What the memory reports.
    fn queue(&self) -> &dyn FaultQueue;

    /// Reads as a vCPU does; waits while the frame is empty.
    ///
    /// # Errors
    /// Whatever keeps the vCPU from going on.
    fn read(
        &self,
        frame: FrameIndex,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// Writes as a vCPU does; waits while the frame is empty.
    ///
    /// # Errors
    /// Whatever keeps the vCPU from going on.
    fn write(
        &self,
        frame: FrameIndex,
        offset: usize,
        buf: &[u8],
    ) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// Gives frames back as a balloon does; `false` when this memory has none.
    ///
    /// # Errors
    /// Whatever keeps the balloon from going on.
    fn give_back(&self, frames: Range<u32>) -> Result<bool, Box<dyn Error + Send + Sync>>;

    /// Ends the clone.
    fn close(&self);
}

impl ContractTarget for MockMemory {
    fn installer(&self) -> &dyn PageInstaller {
        self
    }

    fn queue(&self) -> &dyn FaultQueue {
        self.own_queue()
    }

    fn read(
        &self,
        frame: FrameIndex,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(MockMemory::read(self, frame, offset, buf)?)
    }

    fn write(
        &self,
        frame: FrameIndex,
        offset: usize,
        buf: &[u8],
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(MockMemory::write(self, frame, offset, buf)?)
    }

    fn give_back(&self, frames: Range<u32>) -> Result<bool, Box<dyn Error + Send + Sync>> {
        MockMemory::give_back(self, frames)?;
        Ok(true)
    }

    fn close(&self) {
        MockMemory::close(self, "the suite is over");
    }
}

/// One check of a suite.
type Check<S> = fn(&S) -> Result<(), Broken>;

/// Fails with a promise unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $promise:expr, $($what:tt)+) => {
        if !$condition {
            return Err(super::Broken::new($promise, format_args!($($what)+)));
        }
    };
}
use ensure;

/// Whether something becomes true in good time.
fn soon(mut is_true: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + TIMEOUT;
    while !is_true() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

/// The next event, if one comes in good time.
fn next_event(queue: &dyn FaultQueue, promise: &'static str) -> Result<Event, Broken> {
    let end = Instant::now() + TIMEOUT;
    while Instant::now() < end {
        queue.wait(Duration::from_millis(50)).map_err(|error| Broken::new(promise, error))?;
        if let Some(event) = queue.read().map_err(|error| Broken::new(promise, error))? {
            return Ok(event);
        }
    }
    Err(Broken::new(promise, "no event came"))
}

/// Ends a clone when it goes out of scope, so that no thread of a suite that failed waits for ever.
struct Closing<'s, S: ContractTarget>(&'s S);

impl<S: ContractTarget> Drop for Closing<'_, S> {
    fn drop(&mut self) {
        self.0.close();
    }
}
