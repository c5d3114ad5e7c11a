//! Contract tests for implementations of the engine's ports.
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

/// How long a suite waits for something that must happen promptly.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A violated requirement of a port.
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

    /// The violated requirement.
    #[must_use]
    pub fn promise(&self) -> &'static str {
        self.promise
    }
}

/// Creates a new object under test with this number of frames.
pub type Make<'m, S> = dyn Fn(u32) -> Result<S, Box<dyn Error + Send + Sync>> + 'm;

/// A clone's memory under test: the ports from outside, a vCPU from inside.
pub trait ContractTarget: Send + Sync {
    /// The port that fills the memory.
    fn installer(&self) -> &dyn PageInstaller;

    /// The port that reports faults and removals.
    fn queue(&self) -> &dyn FaultQueue;

    /// Reads like a vCPU; blocks while the frame is empty.
    ///
    /// # Errors
    /// The error that keeps the vCPU from continuing.
    fn read(
        &self,
        frame: FrameIndex,
        offset: usize,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// Writes like a vCPU; blocks while the frame is empty.
    ///
    /// # Errors
    /// The error that keeps the vCPU from continuing.
    fn write(
        &self,
        frame: FrameIndex,
        offset: usize,
        buf: &[u8],
    ) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// Gives frames back like a balloon; `false` if this memory does not support it.
    ///
    /// # Errors
    /// The error that keeps the balloon from continuing.
    fn give_back(&self, frames: Range<u32>) -> Result<bool, Box<dyn Error + Send + Sync>>;

    /// Ends the clone: all waiting vCPUs and readers return.
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
        MockMemory::close(self, "the test is over");
    }
}

/// One check of a suite.
type Check<S> = fn(&S) -> Result<(), Broken>;

/// Returns an error unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $promise:expr, $($what:tt)+) => {
        if !$condition {
            return Err(super::Broken::new($promise, format_args!($($what)+)));
        }
    };
}
use ensure;

/// Whether a condition becomes true before the timeout.
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

/// The next event, if one arrives before the timeout.
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

/// Ends a clone when dropped, so that no thread of a failed check waits forever.
struct CloseOnDrop<'s, S: ContractTarget>(&'s S);

impl<S: ContractTarget> Drop for CloseOnDrop<'_, S> {
    fn drop(&mut self) {
        self.0.close();
    }
}
