//! Which policies there are, by name. To add one: a variant of [`PolicyChoice`], its name, and how it is built.

use crate::failure::Failure;
use kaleidoscope_core::prefetch::{Atlas, Blind, Demand, Oracle, Paper, PrefetchPolicy, Shape};
use kaleidoscope_core::replay::Trace;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Largest N of a blind policy.
const MAX_BLIND: u32 = 1 << 20;

/// The names, for help and errors.
pub(super) const NAMES: &str =
    "demand, blind-next-N, blind-aligned-N, paper, paper-pivot and oracle";

/// A policy that can be asked for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum PolicyChoice {
    /// Nothing but what is asked for.
    Demand,
    /// The next N frames by number.
    BlindNext(u32),
    /// The aligned block of N frames.
    BlindAligned(u32),
    /// The windows of the paper.
    Paper,
    /// The windows of the paper on both sides of the fault.
    PaperPivot,
    /// Knows the trace.
    Oracle,
}

/// What all others are compared with.
pub(super) const BASELINE: PolicyChoice = PolicyChoice::BlindAligned(16);

/// The blind policies that show what can be had without colors.
pub(super) const FRONTIER: [PolicyChoice; 8] = [
    PolicyChoice::BlindAligned(2),
    PolicyChoice::BlindAligned(4),
    PolicyChoice::BlindAligned(8),
    PolicyChoice::BlindAligned(16),
    PolicyChoice::BlindAligned(32),
    PolicyChoice::BlindAligned(64),
    PolicyChoice::BlindAligned(128),
    PolicyChoice::BlindAligned(256),
];

impl PolicyChoice {
    /// All that need no file, the blind ones with 16 frames.
    pub(super) fn defaults() -> Vec<Self> {
        vec![
            Self::Demand,
            Self::BlindNext(16),
            BASELINE,
            Self::Paper,
            Self::PaperPivot,
            Self::Oracle,
        ]
    }

    /// A fresh policy for a clone of the guest; only the oracle looks at the trace.
    #[expect(clippy::unnecessary_wraps, reason = "policies that are read from files can fail")]
    pub(super) fn build(
        &self,
        atlas: &Arc<Atlas>,
        trace: &Trace,
    ) -> Result<Box<dyn PrefetchPolicy>, Failure> {
        Ok(match self {
            Self::Demand => Box::new(Demand),
            Self::BlindNext(size) => Box::new(Blind::next(*size)),
            Self::BlindAligned(size) => Box::new(Blind::aligned(*size)),
            Self::Paper => Box::new(Paper::new(Arc::clone(atlas))),
            Self::PaperPivot => Box::new(Paper::shaped(Arc::clone(atlas), Shape::Pivot)),
            Self::Oracle => {
                Box::new(Oracle::new(atlas, trace.touches().iter().map(|touch| touch.frame)))
            }
        })
    }
}

impl fmt::Display for PolicyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demand => f.write_str("demand"),
            Self::BlindNext(size) => write!(f, "blind-next-{size}"),
            Self::BlindAligned(size) => write!(f, "blind-aligned-{size}"),
            Self::Paper => f.write_str("paper"),
            Self::PaperPivot => f.write_str("paper-pivot"),
            Self::Oracle => f.write_str("oracle"),
        }
    }
}

impl FromStr for PolicyChoice {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            _ if text.contains('/') || text.ends_with(".toml") => Err(PolicyError::File),
            "demand" => Ok(Self::Demand),
            "paper" => Ok(Self::Paper),
            "paper-pivot" => Ok(Self::PaperPivot),
            "oracle" => Ok(Self::Oracle),
            _ => match (text.strip_prefix("blind-next-"), text.strip_prefix("blind-aligned-")) {
                (Some(size), _) => blind_size(size).map(Self::BlindNext),
                (_, Some(size)) => blind_size(size).map(Self::BlindAligned),
                (None, None) => Err(PolicyError::Unknown),
            },
        }
    }
}

fn blind_size(text: &str) -> Result<u32, PolicyError> {
    let size: Option<u32> = text.parse().ok();
    size.filter(|size| (1..=MAX_BLIND).contains(size)).ok_or(PolicyError::BlindSize)
}

/// Why a text names no policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum PolicyError {
    #[error("no policy is called that; there are {NAMES}")]
    Unknown,
    #[error("N of a blind policy is a number of frames from 1 to {MAX_BLIND}")]
    BlindSize,
    #[error("policies cannot be read from files yet; there are {NAMES}")]
    File,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_map;

    #[test]
    fn names_are_those_of_the_policies() {
        let atlas = Arc::new(Atlas::new(test_map::small()));
        for choice in PolicyChoice::defaults().into_iter().chain(FRONTIER) {
            assert_eq!(choice.to_string().parse(), Ok(choice.clone()));
            let policy = choice.build(&atlas, &Trace::default()).unwrap();
            assert_eq!(policy.name(), choice.to_string());
        }
    }

    #[test]
    fn other_names_are_refused() {
        let error = |text: &str| text.parse::<PolicyChoice>().unwrap_err();
        assert_eq!(error("clairvoyant"), PolicyError::Unknown);
        assert!(error("").to_string().contains("there are demand, blind-next-N"));
        for text in ["blind-next-", "blind-aligned-0", "blind-next--1", "blind-next-99999999"] {
            assert_eq!(error(text), PolicyError::BlindSize, "{text}");
        }
        assert_eq!(error("./paper"), PolicyError::File);
        assert_eq!(error("tuned.toml"), PolicyError::File);
    }
}
