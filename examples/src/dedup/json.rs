//! The strategies as a JSON object.

use super::guests::Guest;
use super::ksm::{KsmResult, KsmResults};
use super::strategies::StrategyResult;
use kaleidoscope_core::dedup::Tally;
use serde::Serialize;
use std::collections::BTreeMap;

/// All guests and strategies.
#[derive(Serialize)]
struct Report<'a> {
    images: Vec<Image<'a>>,
    /// Frames that are neither zero nor free: the frames that blind hashes.
    frames: u64,
    zero_frames: u64,
    free_frames: u64,
    strategies: BTreeMap<String, Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ksm: Option<Ksm>,
    /// KSM on only the frames that the adaptive selector hashed.
    #[serde(skip_serializing_if = "Option::is_none")]
    ksm_selected: Option<Ksm>,
}

#[derive(Serialize)]
struct Image<'a> {
    name: &'a str,
    kernel: &'a str,
    ram_frames: u32,
    workload: Option<&'a str>,
}

#[derive(Serialize)]
struct Row {
    /// Frames of which some lines were hashed, to know which ones to hash.
    glanced_frames: u64,
    hashed_frames: u64,
    shared_frames: u64,
    within_frames: u64,
    diverged_frames: u64,
    net_frames: u64,
    glancing_cpu_us: f64,
    hashing_cpu_us: f64,
    choosing_cpu_us: f64,
    counting_cpu_us: f64,
    /// What the same number of hashes could have saved at most.
    bound_frames: Option<u64>,
    colors: BTreeMap<&'static str, Part>,
    /// Pairs of hashes so far and net pages saved so far.
    curve: Vec<[u64; 2]>,
}

#[derive(Serialize)]
struct Part {
    hashed_frames: u64,
    shared_frames: u64,
    net_frames: u64,
}

#[derive(Serialize)]
struct Ksm {
    frames: u64,
    ranges: u64,
    shared_frames: u64,
    zero_frames: u64,
    cpu_us: f64,
    seconds: f64,
    full_scans: u64,
}

fn image(guest: &Guest) -> Image<'_> {
    Image {
        name: &guest.name,
        kernel: &guest.locality.map().kernel().release,
        ram_frames: guest.locality.frames(),
        workload: guest.workload.as_ref().map(|workload| workload.name.as_str()),
    }
}

fn merged(ksm: &KsmResult) -> Ksm {
    Ksm {
        frames: ksm.frames,
        ranges: ksm.ranges,
        shared_frames: ksm.shared,
        zero_frames: ksm.zero,
        cpu_us: ksm.cpu.as_secs_f64() * 1e6,
        seconds: ksm.time.as_secs_f64(),
        full_scans: ksm.full_scans,
    }
}

/// The object, ending with a line feed.
pub(super) fn render(
    guests: &[Guest],
    results: &[StrategyResult],
    ksm: Option<&KsmResults>,
) -> String {
    let blind = results.first();
    let total = blind.map_or_else(Tally::default, |blind| blind.trial.total());
    let row = |result: &StrategyResult| {
        let Tally { glanced, hashed, shared, within, diverged, .. } = result.trial.total();
        let part = |tally: Tally| Part {
            hashed_frames: tally.hashed,
            shared_frames: tally.shared,
            net_frames: tally.net(),
        };
        Row {
            glanced_frames: glanced,
            hashed_frames: hashed,
            shared_frames: shared,
            within_frames: within,
            diverged_frames: diverged,
            net_frames: result.trial.total().net(),
            glancing_cpu_us: result.partial_hashing.as_secs_f64() * 1e6,
            hashing_cpu_us: result.hashing.as_secs_f64() * 1e6,
            choosing_cpu_us: result.choosing.as_secs_f64() * 1e6,
            counting_cpu_us: result.counting.as_secs_f64() * 1e6,
            bound_frames: blind.map(|blind| blind.trial.sharing.bound(hashed)),
            colors: result.trial.sharing.colors().map(|(c, t)| (c.name(), part(t))).collect(),
            curve: result.trial.curve.iter().map(|point| [point.hashed, point.net]).collect(),
        }
    };
    let report = Report {
        images: guests.iter().map(image).collect(),
        frames: total.hashed,
        zero_frames: total.zero,
        free_frames: super::table::free(guests),
        strategies: results.iter().map(|r| (r.strategy.to_string(), row(r))).collect(),
        ksm: ksm.map(|ksm| merged(&ksm.all)),
        ksm_selected: ksm.map(|ksm| merged(&ksm.selected)),
    };
    // Serializing strings, numbers and maps with text keys cannot fail.
    let mut text = serde_json::to_string_pretty(&report).unwrap_or_default();
    text.push('\n');
    text
}
