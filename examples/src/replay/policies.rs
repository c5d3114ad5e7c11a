//! The policies by name. To add one, add a variant to [`PolicyChoice`], its name, and its
//! construction.

use crate::failure::Failure;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::manifest::ImageIdentity;
use kaleidoscope_core::prefetch::{
    Blind, ColorGuide, Colored, Demand, LocalityOrder, Oracle, Paper, Predict, PrefetchPolicy,
    Recorded, RecordedOrder, Settings, Shape, Streamed,
};
use kaleidoscope_core::recording::{Recording, RecordingLimits, Similarity};
use kaleidoscope_core::replay::Trace;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Largest N of a blind policy.
const MAX_BLIND: u32 = 1 << 20;

/// The names, for help and errors.
pub(crate) const NAMES: &str = "demand, blind-next-N, blind-aligned-N, paper, paper-pivot, \
     region, predicted, recorded=FILE, recorded-frames=FILE, idle=FILE, oracle, and the path of a \
     policy file";

/// A policy by name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum PolicyChoice {
    /// No prefetch.
    Demand,
    /// The next N frames by number.
    BlindNext(u32),
    /// The aligned block of N frames.
    BlindAligned(u32),
    /// The windows of the paper.
    Paper,
    /// The windows of the paper on both sides of the fault.
    PaperPivot,
    /// Blocks of related frames.
    Region,
    /// As `Region`, and streams frames that are likely to be used from the start.
    Predicted,
    /// Follows a recording for as long as the clone does.
    Recorded(PathBuf),
    /// Streams a recording's frames by number, and has no other prefetch: the state of the art of
    /// record and replay.
    RecordedFrames(PathBuf),
    /// Streams the frames that an idle throwaway clone touched; then as `Region`.
    Idle(PathBuf),
    /// A policy file.
    File(PathBuf),
    /// Knows the trace: the bound.
    Oracle,
}

/// The policy that all others are compared with.
pub(super) const BASELINE: PolicyChoice = PolicyChoice::BlindAligned(16);

/// The frontier of blind prefetch: the trade-off without colors.
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
    /// The file that the policy is read from.
    pub(crate) fn input(&self) -> Option<&PathBuf> {
        match self {
            Self::Recorded(path)
            | Self::RecordedFrames(path)
            | Self::Idle(path)
            | Self::File(path) => Some(path),
            Self::Demand
            | Self::BlindNext(_)
            | Self::BlindAligned(_)
            | Self::Paper
            | Self::PaperPivot
            | Self::Region
            | Self::Predicted
            | Self::Oracle => None,
        }
    }

    /// All policies that need no file; the blind ones with 16 frames.
    pub(super) fn defaults() -> Vec<Self> {
        vec![
            Self::Demand,
            Self::BlindNext(16),
            BASELINE,
            Self::Paper,
            Self::PaperPivot,
            Self::Region,
            Self::Predicted,
            Self::Oracle,
        ]
    }

    /// Reads the policy's file and prepares the policy for the guest, once for all traces.
    pub(crate) fn prepare(&self, guest: &Guest) -> Result<Prepared, Failure> {
        let guide = |settings| Arc::new(ColorGuide::new(Arc::clone(&guest.locality), settings));
        let shipped = || Settings::shipped_for(guest.locality.map().kernel());
        Ok(match self {
            Self::Demand
            | Self::BlindNext(_)
            | Self::BlindAligned(_)
            | Self::Paper
            | Self::PaperPivot
            | Self::Oracle => Prepared::Plain(self.clone()),
            Self::Region => Prepared::Colored(guide(shipped().without_prediction("region"))),
            Self::Predicted => Prepared::Colored(guide(shipped())),
            Self::File(path) => Prepared::Colored(guide(read_settings(path)?)),
            Self::Recorded(path) => {
                let translation =
                    read_recording(path, guest)?.translate(&guest.locality, Some(&guest.identity));
                let predict = match translation.likeness {
                    Similarity::Snapshot | Similarity::Kernel => Predict::Lost,
                    Similarity::Other => Predict::Always,
                };
                let frames = translation.frames.iter().map(|t| (t.frame, t.confidence));
                let recorded_order =
                    Arc::new(RecordedOrder::new(&guest.locality, frames, LEAST_CONFIDENCE));
                let guide = guide(shipped());
                Prepared::Recorded { name: self.to_string(), guide, recorded_order, predict }
            }
            Self::RecordedFrames(path) => {
                let recording = read_recording(path, guest)?;
                let found = recording.by_frame_number(&guest.locality, Some(&guest.identity));
                let frames = found.frames.iter().map(|t| t.frame).collect();
                Prepared::FrameSet { name: self.to_string(), frames, guide: None }
            }
            Self::Idle(path) => {
                let found =
                    read_recording(path, guest)?.translate(&guest.locality, Some(&guest.identity));
                let frames = found.at_least(LEAST_CONFIDENCE).map(|t| t.frame).collect();
                // No prediction by temperature hints: frames that are predicted but that an idle
                // clone does not touch are not worth streaming.
                let guide = Some(guide(shipped().without_prediction(self.to_string())));
                Prepared::FrameSet { name: self.to_string(), frames, guide }
            }
        })
    }
}

/// Least confidence of a recorded frame to be streamed before the clone is known to follow the
/// recording.
const LEAST_CONFIDENCE: f32 = 0.5;

/// Parses a policy for real clones, whose touches are not known in advance.
///
/// # Errors
/// If the text names no policy, or the oracle.
pub(crate) fn for_a_clone(text: &str) -> Result<PolicyChoice, String> {
    match text.parse() {
        Ok(PolicyChoice::Oracle) => Err("the oracle needs a trace; choose another policy".into()),
        Ok(choice) => Ok(choice),
        Err(error) => Err(format!("{error}")),
    }
}

/// The guest that policies are prepared for.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) locality: Arc<LocalityOrder>,
    /// Identifies recordings of the same snapshot.
    pub(crate) identity: ImageIdentity,
}

/// A policy with its data, from which a policy for each clone is made.
#[derive(Clone, Debug)]
pub(crate) enum Prepared {
    Plain(PolicyChoice),
    Colored(Arc<ColorGuide>),
    Recorded {
        name: String,
        guide: Arc<ColorGuide>,
        recorded_order: Arc<RecordedOrder>,
        predict: Predict,
    },
    FrameSet {
        name: String,
        frames: Arc<[FrameIndex]>,
        guide: Option<Arc<ColorGuide>>,
    },
}

impl Prepared {
    /// A new policy for a clone. Only the oracle uses the trace.
    pub(crate) fn build(
        &self,
        locality: &Arc<LocalityOrder>,
        trace: &Trace,
    ) -> Box<dyn PrefetchPolicy> {
        match self {
            Self::Plain(choice) => choice.plain(locality, trace),
            Self::Colored(guide) => Box::new(Colored::new(Arc::clone(guide))),
            Self::Recorded { name, guide, recorded_order, predict } => {
                let (guide, recorded_order) = (Arc::clone(guide), Arc::clone(recorded_order));
                Box::new(Recorded::new(name, guide, recorded_order, *predict))
            }
            Self::FrameSet { name, frames, guide: Some(guide) } => {
                let then = Colored::new(Arc::clone(guide));
                Box::new(Streamed::new(name, Arc::clone(frames), then))
            }
            Self::FrameSet { name, frames, guide: None } => {
                Box::new(Streamed::new(name, Arc::clone(frames), Demand))
            }
        }
    }
}

impl PolicyChoice {
    /// A policy without preparation. [`PolicyChoice::prepare`] makes [`Prepared::Plain`] of no
    /// others.
    fn plain(&self, locality: &Arc<LocalityOrder>, trace: &Trace) -> Box<dyn PrefetchPolicy> {
        match self {
            Self::BlindNext(size) => Box::new(Blind::next(*size)),
            Self::BlindAligned(size) => Box::new(Blind::aligned(*size)),
            Self::Paper => Box::new(Paper::new(Arc::clone(locality))),
            Self::PaperPivot => Box::new(Paper::shaped(Arc::clone(locality), Shape::Pivot)),
            Self::Oracle => Box::new(Oracle::new(trace.touches().iter().map(|touch| touch.frame))),
            Self::Demand
            | Self::Region
            | Self::Predicted
            | Self::Recorded(_)
            | Self::RecordedFrames(_)
            | Self::Idle(_)
            | Self::File(_) => Box::new(Demand),
        }
    }
}

fn read_settings(path: &Path) -> Result<Settings, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::at(path, e))?;
    Settings::parse(&text).map_err(|e| {
        Failure::at(path, e)
            .hint("docs/policies.md describes policy files; `kaleidoscope tune` makes them")
    })
}

/// Reads a recording, or makes one from a trace (`.csv`) of this guest.
fn read_recording(path: &Path, guest: &Guest) -> Result<Recording, Failure> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")) {
        let file = File::open(path).map_err(|e| Failure::at(path, e))?;
        let trace = Trace::from_csv(file, guest.locality.layout()).map_err(|e| {
            Failure::at(path, e).hint(
                "a trace must be of this guest; `kaleidoscope record make` makes recordings that \
                 other guests can use",
            )
        })?;
        return Ok(Recording::from_trace(&trace, &guest.locality, guest.identity));
    }
    Recording::read_file(path, &RecordingLimits::default()).map_err(|e| {
        Failure::at(path, e).hint("`kaleidoscope record make` makes recordings from traces")
    })
}

impl fmt::Display for PolicyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demand => f.write_str("demand"),
            Self::BlindNext(size) => write!(f, "blind-next-{size}"),
            Self::BlindAligned(size) => write!(f, "blind-aligned-{size}"),
            Self::Paper => f.write_str("paper"),
            Self::PaperPivot => f.write_str("paper-pivot"),
            Self::Region => f.write_str("region"),
            Self::Predicted => f.write_str("predicted"),
            Self::Recorded(path) => write!(f, "recorded={}", path.display()),
            Self::RecordedFrames(path) => write!(f, "recorded-frames={}", path.display()),
            Self::Idle(path) => write!(f, "idle={}", path.display()),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Oracle => f.write_str("oracle"),
        }
    }
}

/// Makes a choice of a path.
type MakeChoice = fn(PathBuf) -> PolicyChoice;

/// Prefixes of names that are followed by a recording's path.
const FILE_PREFIXES: [(&str, MakeChoice); 3] = [
    ("recorded=", PolicyChoice::Recorded),
    ("recorded-frames=", PolicyChoice::RecordedFrames),
    ("idle=", PolicyChoice::Idle),
];

impl FromStr for PolicyChoice {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        for (prefix, make) in FILE_PREFIXES {
            if let Some(path) = text.strip_prefix(prefix) {
                return if path.is_empty() {
                    Err(PolicyError::NoFile)
                } else {
                    Ok(make(path.into()))
                };
            }
        }
        match text {
            _ if text.contains('/') || text.ends_with(".toml") => Ok(Self::File(text.into())),
            "region" => Ok(Self::Region),
            "predicted" => Ok(Self::Predicted),
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

/// Why a text is not the name of a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("unknown policy; there are {NAMES}")]
    Unknown,
    #[error("N of a blind policy must be a number of frames from 1 to {MAX_BLIND}")]
    BlindSize,
    #[error("the path of a recording is missing after `=`")]
    NoFile,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map_output::test_map;
    use kaleidoscope_core::memory::VecMemory;

    #[test]
    fn names_are_those_of_the_policies() {
        let locality = Arc::new(LocalityOrder::new(test_map::small()));
        let identity =
            ImageIdentity::of(&VecMemory::zeroed(locality.layout().clone()), locality.map())
                .unwrap();
        let guest = Guest { locality, identity };
        for choice in PolicyChoice::defaults().into_iter().chain(FRONTIER) {
            assert_eq!(choice.to_string().parse(), Ok(choice.clone()));
            let policy = choice.prepare(&guest).unwrap().build(&guest.locality, &Trace::default());
            assert_eq!(policy.name(), choice.to_string());
        }
        let missing = PolicyChoice::Recorded("/nonexistent".into()).prepare(&guest).unwrap_err();
        assert!(missing.to_string().contains("record make"), "{missing}");
    }

    #[test]
    fn the_example_policies_can_be_used() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let names: Vec<String> = files.map(|f| read_settings(&f).unwrap().name).collect();
        assert!(names.contains(&"eager".into()) && names.contains(&"thrifty".into()));
    }

    #[test]
    fn other_names_are_refused() {
        let error = |text: &str| text.parse::<PolicyChoice>().unwrap_err();
        assert_eq!(error("clairvoyant"), PolicyError::Unknown);
        assert!(error("").to_string().contains("there are demand, blind-next-N"));
        for text in ["blind-next-", "blind-aligned-0", "blind-next--1", "blind-next-99999999"] {
            assert_eq!(error(text), PolicyError::BlindSize, "{text}");
        }
        assert_eq!(error("recorded="), PolicyError::NoFile);
    }

    #[test]
    fn files_are_told_by_their_names() {
        let parse = |text: &str| text.parse::<PolicyChoice>().unwrap();
        assert_eq!(parse("./paper"), PolicyChoice::File("./paper".into()));
        assert_eq!(parse("tuned.toml"), PolicyChoice::File("tuned.toml".into()));
        assert_eq!(parse("recorded=a/b.krec"), PolicyChoice::Recorded("a/b.krec".into()));
        assert_eq!(parse("idle=i.krec"), PolicyChoice::Idle("i.krec".into()));
    }
}
