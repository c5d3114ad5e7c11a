//! How much of an image is checked.

use clap::ValueEnum;
use std::num::NonZeroUsize;

/// Which frames are compared with what they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Verify {
    /// A sample: what tells images apart
    Sample,
    /// Every frame
    All,
}

/// Threads for reading all of an image.
pub(crate) fn threads() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
