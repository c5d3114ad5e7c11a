//! Recordings of real guests, translated to one another and compared with the frames that were
//! touched there.
//!
//! `KALEIDOSCOPE_GUESTS` names a folder of guest folders, each with `ram.bin`, `layout.txt`,
//! `regs.txt` and a folder `traces` of CSV files; a program's trace has the same name in each.
//! Prints how many translated frames were touched (precision) and how many touched frames were
//! translated (recall), by color.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the test prints results and skipped cases for humans"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot read its guests fails")]

mod guests;

use guests::{Guest, guests};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::recording::{
    Recording, RecordingLimits, Salt, Similarity, TranslatedRecording,
};
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// Frames that were not free and that a guest's trace touches.
fn touched(guest: &Guest, trace: &str) -> Vec<FrameIndex> {
    let touches = guest.traces[trace].touches().iter().map(|t| t.frame);
    touches.filter(|f| !guest.locality.is_free(*f)).collect()
}

/// Numbers of translated frames, of those that were touched, and of touched frames.
#[derive(Clone, Copy, Default)]
struct Score {
    translated: u32,
    right: u32,
    touched: u32,
}

impl Score {
    fn precision(&self) -> f64 {
        f64::from(self.right) / f64::from(self.translated.max(1))
    }

    fn recall(&self) -> f64 {
        f64::from(self.right) / f64::from(self.touched.max(1))
    }
}

/// Scores by the color of the image's frames, over all colors, and by whether the confidence is at
/// least a half.
fn scores(
    translation: &TranslatedRecording,
    guest: &Guest,
    trace: &str,
) -> BTreeMap<&'static str, Score> {
    let touched = touched(guest, trace);
    let mut scores: BTreeMap<&str, Score> = BTreeMap::new();
    let groups = |frame| [guest.locality.color(frame).name(), "(all)"];
    for frame in &touched {
        for group in groups(*frame) {
            scores.entry(group).or_default().touched += 1;
        }
    }
    let set: HashSet<FrameIndex> = touched.into_iter().collect();
    for found in &translation.frames {
        let [color, all] = groups(found.frame);
        let sure = if found.confidence >= 0.5 { "(sure)" } else { "(unsure)" };
        for group in [color, all, sure] {
            let score = scores.entry(group).or_default();
            score.translated += 1;
            score.right += u32::from(set.contains(&found.frame));
        }
    }
    scores
}

fn print(title: &str, scores: &BTreeMap<&str, Score>) {
    println!("{title}");
    println!(
        "  {:18} {:>10} {:>7} {:>9} {:>7}",
        "", "translated", "touched", "precision", "recall"
    );
    for (name, s) in scores {
        let (precision, recall) = (s.precision(), s.recall());
        let (translated, touched) = (s.translated, s.touched);
        println!("  {name:18} {translated:10} {touched:7} {precision:9.3} {recall:7.3}");
    }
}

fn fastest(mut work: impl FnMut() -> TranslatedRecording) -> Duration {
    let time = |()| {
        let start = Instant::now();
        let translation = work();
        assert!(!translation.frames.is_empty());
        start.elapsed()
    };
    [(); 5].map(time).into_iter().min().unwrap()
}

#[test]
fn real_recordings_carry_over() {
    let guests = guests();
    for from in &guests {
        for name in from.traces.keys() {
            let recording = from.recording(name);
            same_snapshot(from, &recording, name);
            for to in guests.iter().filter(|to| to.name != from.name) {
                if to.traces.contains_key(name) {
                    another_guest(&recording, from, to, name);
                }
            }
        }
    }
}

/// In the same snapshot, keys and frame numbers agree, and every entry is found.
fn same_snapshot(guest: &Guest, recording: &Recording, trace: &str) {
    let by_key = recording.translate(&guest.locality, Some(&guest.identity));
    let by_number = recording.by_frame_number(&guest.locality, Some(&guest.identity));
    assert_eq!(by_key.likeness, Similarity::Snapshot);
    let frames = |t: &TranslatedRecording| t.frames.iter().map(|t| t.frame).collect::<Vec<_>>();
    assert_eq!(frames(&by_key), frames(&by_number));
    assert_eq!(frames(&by_key), touched(guest, trace));
    assert!(by_key.frames.iter().all(|t| t.confidence == 1.0));
    let bytes = recording.to_bytes().unwrap();
    assert_eq!(Recording::from_bytes(&bytes, &RecordingLimits::default()).unwrap(), *recording);
    println!(
        "{} {trace}: {} entries in {} bytes",
        guest.name,
        recording.entries().len(),
        bytes.len()
    );
}

fn another_guest(recording: &Recording, from: &Guest, to: &Guest, trace: &str) {
    let translation = recording.translate(&to.locality, Some(&to.identity));
    let time = fastest(|| recording.translate(&to.locality, Some(&to.identity)));
    let scores = scores(&translation, to, trace);
    print(&format!("{trace}: {} to {} in {time:?}", from.name, to.name), &scores);
    for color in ["file-code", "file-mapped", "file-cache"] {
        let precision = scores[color].precision();
        assert!(precision >= 0.97, "{color}: {precision}");
    }
    assert!(scores["(all)"].recall() >= 0.9);
    assert!(scores["(sure)"].precision() >= 0.97);
    let hashed =
        recording.clone().hashed(Salt([3; 16])).translate(&to.locality, Some(&to.identity));
    assert_eq!(hashed, translation, "hashed names translate alike");
    // An unoptimized build takes several times as long.
    if !cfg!(debug_assertions) {
        assert!(time < Duration::from_millis(50), "{time:?}");
    }
}

#[test]
fn real_runs_are_merged() {
    for guest in guests() {
        let recordings: Vec<Recording> = guest.traces.keys().map(|t| guest.recording(t)).collect();
        let merged = Recording::merge(&recordings).unwrap();
        assert_eq!(merged.runs() as usize, recordings.len());
        let all: HashSet<FrameIndex> =
            guest.traces.keys().flat_map(|t| touched(&guest, t)).collect();
        let found = merged.translate(&guest.locality, Some(&guest.identity));
        assert_eq!(found.frames.len(), all.len());
        assert!(found.frames.iter().all(|t| all.contains(&t.frame)));
    }
}
