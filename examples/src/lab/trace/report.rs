//! The summary of a recording, as text and as JSON.

use std::fmt::{self, Display};
use std::path::PathBuf;

use serde::Serialize;

/// The summary of one recording, also written beside the trace.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Name of the workload, with its seed if that is not 1.
    pub(crate) name: String,
    /// The trace.
    pub(crate) trace: PathBuf,
    /// The seed.
    pub(crate) seed: u32,
    /// The workload's bash script.
    pub(crate) script: String,
    /// Seconds from the resumption to the end.
    pub(crate) seconds: f64,
    /// Seconds from the resumption until the workload began; absent if there was none.
    pub(crate) began_seconds: Option<f64>,
    /// Whether the workload finished within the time limit.
    pub(crate) finished: bool,
    /// Number of first touches, which is the number of touched frames.
    pub(crate) touches: usize,
    /// Touches by vCPUs; the others are by emulated devices.
    pub(crate) touches_by_vcpus: usize,
    /// Touches before the resumption, while the state of devices was loaded.
    pub(crate) touches_before: usize,
    /// Touched frames that had been written to by the end.
    pub(crate) written: usize,
    /// Frames of RAM.
    pub(crate) frames: u64,
    /// Repeated reads of frames that the host had dropped. They are no touches, and mean that the
    /// host was short of memory.
    pub(crate) read_again: u64,
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let percent = |part: usize, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let touches = self.touches as u64;
        write!(
            f,
            "{:<16} {:>6} touches in {:>5.1} s ({:.1} % of RAM; {:.0} % by vCPUs, {:.0} % written)",
            self.name,
            self.touches,
            self.seconds,
            percent(self.touches, self.frames),
            percent(self.touches_by_vcpus, touches),
            percent(self.written, touches),
        )?;
        if !self.finished && self.began_seconds.is_some() {
            write!(f, ", stopped by the time limit")?;
        }
        if self.read_again > 0 {
            write!(f, ", {} read again: the host is short of memory", self.read_again)?;
        }
        Ok(())
    }
}
