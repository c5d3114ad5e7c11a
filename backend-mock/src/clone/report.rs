//! Results of running a clone.

use super::memory::VcpuError;
use super::memory_statistics::MemoryStatistics;
use super::program::{Done, Halt};
use std::fmt;
use std::time::Duration;

/// How a clone ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ended {
    /// Every vCPU completed its work, and every byte was right.
    Completed,
    /// The handler stopped the clone, and every byte read until then was right.
    Stopped {
        /// The handler's reason.
        reason: String,
    },
    /// A vCPU waited until its timeout.
    Stuck {
        /// The vCPU.
        vcpu: u32,
        /// What it waited for.
        error: VcpuError,
    },
    /// A vCPU read a wrong byte.
    Wrong {
        /// The vCPU.
        vcpu: u32,
        /// What it read.
        halt: Halt,
    },
    /// A vCPU's thread panicked.
    Panicked,
}

/// Result of running a clone.
#[derive(Debug)]
pub struct Report {
    /// Work of all vCPUs together.
    pub done: Done,
    /// How the clone ended: the worst result of any vCPU.
    pub ended: Ended,
    /// Fault threads that did not end with the clone.
    pub hanging_fault_threads: u32,
    /// What happened to its memory: faults, stalls, coverage, accuracy, footprint.
    pub memory: MemoryStatistics,
    /// Time from the start to the end of the last vCPU.
    pub elapsed: Duration,
}

/// A clone violated a requirement.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misbehaved(String);

impl Report {
    /// Whether the clone completed its work.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.ended, Ended::Completed)
    }

    /// Checks that every byte was right, no thread hangs and no port was misused: the clone either
    /// completed its work or was stopped for a reason.
    ///
    /// # Errors
    /// [`Misbehaved`] describes the violation.
    pub fn check(&self) -> Result<(), Misbehaved> {
        let fail = |what: String| Err(Misbehaved(what));
        match &self.ended {
            Ended::Completed | Ended::Stopped { .. } => {}
            Ended::Stuck { .. } | Ended::Wrong { .. } | Ended::Panicked => {
                return fail(self.ended.to_string());
            }
        }
        if self.hanging_fault_threads > 0 {
            return fail(format!("{} fault threads do not end", self.hanging_fault_threads));
        }
        let MemoryStatistics { collisions, outside, brought_back, .. } = self.memory;
        if collisions > 0 {
            return fail(format!("{collisions} frames were filled by two at once"));
        }
        if outside > 0 {
            return fail(format!("{outside} frames outside the memory were to be filled"));
        }
        if brought_back > 0 {
            return fail(format!("{brought_back} frames given back were filled with bytes"));
        }
        Ok(())
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed => f.write_str("completed"),
            Self::Stopped { reason } => write!(f, "stopped: {reason}"),
            Self::Stuck { vcpu, error } => write!(f, "vCPU {vcpu} is stuck: {error}"),
            Self::Wrong { vcpu, halt } => write!(f, "vCPU {vcpu} saw {halt}"),
            Self::Panicked => f.write_str("a vCPU panicked"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Done { reads, writes, given_back } = self.done;
        writeln!(f, "{} after {:.3} s", self.ended, self.elapsed.as_secs_f64())?;
        writeln!(f, "{reads} reads, {writes} writes, {given_back} frames given back")?;
        let memory = &self.memory;
        writeln!(
            f,
            "{} stalls, mean {:?}, longest {:?}",
            memory.stalls,
            memory.mean_stall(),
            memory.longest_stall()
        )?;
        write!(
            f,
            "{} frames present, coverage {:.3}, accuracy {:.3}",
            memory.present(),
            memory.coverage(),
            memory.accuracy()
        )
    }
}
