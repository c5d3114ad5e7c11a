//! The result as one JSON object.

use crate::map_output::outputs::View;
use crate::map_output::statistics::{
    CachedFile, ColorFigures, KindFigures, Statistics, cached_files,
};
use kaleidoscope_core::addr::FRAME_SIZE;
use kaleidoscope_core::guest_os::Process;
use serde::{Serialize, Serializer};
use std::time::Duration;

#[derive(Serialize)]
struct Document<'a> {
    kernel: Kernel<'a>,
    /// RAM regions: first guest-physical address and size, in bytes.
    layout: Vec<Ram>,
    frames: u32,
    frame_size: u64,
    unknown_share: f64,
    regions: usize,
    colors: &'a [ColorFigures],
    kinds: &'a [KindFigures],
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<CachedFile<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<Vec<ProcessRow<'a>>>,
    /// Microseconds per stage.
    #[serde(serialize_with = "microseconds")]
    timings_us: &'a [(&'static str, Duration)],
    notes: &'a [String],
}

#[derive(Serialize)]
struct Kernel<'a> {
    os: &'a str,
    release: &'a str,
    banner: &'a str,
    build_id: &'a str,
    paging: &'a str,
}

#[derive(Serialize)]
struct Ram {
    gpa: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct ProcessRow<'a> {
    pid: Option<u32>,
    name: &'a str,
    threads: u32,
    anonymous_frames: u64,
    mapped_frames: u64,
    page_table_frames: u64,
    /// Place among all tasks by when they last ran, 0 the most recent.
    recency: Option<u32>,
}

/// The object, ending with a line feed.
pub(crate) fn render(view: &View<'_>, statistics: &Statistics, files: bool) -> String {
    let kernel = view.map.kernel();
    let document = Document {
        kernel: Kernel {
            os: &kernel.os,
            release: &kernel.release,
            banner: &kernel.banner,
            build_id: &kernel.build_id,
            paging: &kernel.paging,
        },
        layout: view
            .map
            .layout()
            .regions()
            .iter()
            .map(|r| Ram { gpa: r.start.gpa().0, bytes: u64::from(r.frames) * FRAME_SIZE })
            .collect(),
        frames: statistics.frames,
        frame_size: FRAME_SIZE,
        unknown_share: statistics.unknown_share,
        regions: statistics.regions,
        colors: &statistics.colors,
        kinds: &statistics.kinds,
        files: files.then(|| cached_files(view.map)),
        processes: view.processes.map(|all| all.iter().map(process).collect()),
        timings_us: view.stages,
        notes: view.notes,
    };
    // Strings, numbers and maps with text keys always serialize.
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

/// Durations as an object of microseconds, in order.
fn microseconds<S: Serializer>(
    stages: &[(&'static str, Duration)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(stages.iter().map(|(name, time)| (*name, time.as_secs_f64() * 1e6)))
}

fn process(process: &Process) -> ProcessRow<'_> {
    ProcessRow {
        pid: process.pid,
        name: &process.name,
        threads: process.threads,
        anonymous_frames: process.anonymous_frames,
        mapped_frames: process.mapped_frames,
        page_table_frames: process.table_frames,
        recency: process.recency,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map_output::test_map;

    #[test]
    fn the_object_says_it_all() {
        let map = test_map::small();
        let notes = vec!["one note".to_owned()];
        let stages = [("walk", Duration::from_micros(1500))];
        let view = View { map: &map, notes: &notes, stages: &stages, processes: None };
        let text = render(&view, &Statistics::of(&map), true);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["kernel"]["release"], "6.1.0-test-amd64");
        assert_eq!(value["layout"][1]["gpa"], 0x10_0000);
        assert_eq!(value["frames"], 40);
        assert_eq!(value["colors"][1]["color"], "free");
        assert_eq!(value["colors"][1]["runs"], 3);
        assert_eq!(value["kinds"][1]["frames"], 12);
        assert_eq!(value["unknown_share"], 0.025);
        assert_eq!(value["files"][0]["resident_frames"], 9);
        assert_eq!(value["timings_us"]["walk"], 1500.0);
        assert_eq!(value["notes"][0], "one note");
        assert!(value.get("processes").is_none());
    }
}
