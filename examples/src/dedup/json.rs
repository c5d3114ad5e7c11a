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
    zero: u64,
    free: u64,
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
    /// Partially hashed frames.
    glanced: u64,
    hashed: u64,
    shared: u64,
    within: u64,
    diverged: u64,
    net: u64,
    glancing_cpu_ms: f64,
    hashing_cpu_ms: f64,
    choosing_cpu_ms: f64,
    counting_cpu_ms: f64,
    /// Most pages that an oracle could save with the same number of hashes.
    bound: Option<u64>,
    colors: BTreeMap<&'static str, Part>,
    /// Pairs of hashes so far and net pages saved so far.
    curve: Vec<[u64; 2]>,
}

#[derive(Serialize)]
struct Part {
    hashed: u64,
    shared: u64,
    net: u64,
}

#[derive(Serialize)]
struct Ksm {
    frames: u64,
    ranges: u64,
    shared: u64,
    zero: u64,
    cpu_ms: f64,
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
        shared: ksm.shared,
        zero: ksm.zero,
        cpu_ms: ksm.cpu.as_secs_f64() * 1e3,
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
        let part =
            |tally: Tally| Part { hashed: tally.hashed, shared: tally.shared, net: tally.net() };
        Row {
            glanced,
            hashed,
            shared,
            within,
            diverged,
            net: result.trial.total().net(),
            glancing_cpu_ms: result.partial_hashing.as_secs_f64() * 1e3,
            hashing_cpu_ms: result.hashing.as_secs_f64() * 1e3,
            choosing_cpu_ms: result.choosing.as_secs_f64() * 1e3,
            counting_cpu_ms: result.counting.as_secs_f64() * 1e3,
            bound: blind.map(|blind| blind.trial.sharing.bound(hashed)),
            colors: result.trial.sharing.colors().map(|(c, t)| (c.name(), part(t))).collect(),
            curve: result.trial.curve.iter().map(|point| [point.hashed, point.net]).collect(),
        }
    };
    let report = Report {
        images: guests.iter().map(image).collect(),
        frames: total.hashed,
        zero: total.zero,
        free: super::table::free(guests),
        strategies: results.iter().map(|r| (r.strategy.to_string(), row(r))).collect(),
        ksm: ksm.map(|ksm| merged(&ksm.all)),
        ksm_selected: ksm.map(|ksm| merged(&ksm.selected)),
    };
    // Serializing strings, numbers and maps with text keys cannot fail.
    let mut text = serde_json::to_string_pretty(&report).unwrap_or_default();
    text.push('\n');
    text
}
