//! What was pulled, for people and for programs.

use crate::map_output::statistics::thousands;
use crate::map_output::table::{finish, heading, printable, size, table};
use crate::replay::policies::PolicyChoice;
use comfy_table::CellAlignment::{Left, Right};
use kaleidoscope_core::addr::FRAME_SIZE;
use kaleidoscope_core::clone::{Counts, Descriptor, Statistics};
use kaleidoscope_core::wire::client::ClientStatistics;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// What of the file was compared with the image, and is equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verified {
    /// Free frames are zero in the file, so that the sample says nothing.
    Nothing,
    /// The sample that the image's identity is made of.
    Sample,
    /// Every frame that is not free; those that are free are zero in the file.
    AllButFree,
    /// Every frame.
    All,
}

impl Verified {
    /// For programs.
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Sample => "sample",
            Self::AllButFree => "all-but-free",
            Self::All => "all",
        }
    }
}

/// What was pulled.
pub(super) struct Pulled<'a> {
    pub(super) output: &'a Path,
    pub(super) descriptor: &'a Descriptor,
    pub(super) policy: &'a PolicyChoice,
    pub(super) statistics: &'a Statistics,
    pub(super) client: ClientStatistics,
    /// Frames that the image does not hold.
    pub(super) unavailable: u32,
    pub(super) verified: Verified,
    pub(super) took: Duration,
}

impl Pulled<'_> {
    /// For people.
    pub(super) fn text(&self) -> String {
        let descriptor = self.descriptor;
        let layout = descriptor.layout();
        let mut out = descriptor.map().map_or_else(
            || {
                let frames = thousands(u64::from(layout.frames()));
                format!("{}, {frames} frames, without colors\n", size(layout.bytes()))
            },
            heading,
        );
        out.push('\n');
        out.push_str(&self.table());
        let _ = writeln!(
            out,
            "\npulled in {:.2} s as {}: {} received{}{}",
            self.took.as_secs_f64(),
            self.policy,
            size(self.client.bytes),
            counted(", over", self.client.reconnects, "new connection"),
            counted(";", u64::from(self.unavailable), "frame that the image does not hold"),
        );
        let identity = descriptor.identity();
        let _ = match self.verified {
            Verified::All => {
                writeln!(out, "verified: every frame is that of the image {identity}")
            }
            Verified::AllButFree => writeln!(
                out,
                "verified: every frame that is not free is that of the image {identity}; free frames are zero"
            ),
            Verified::Sample => writeln!(
                out,
                "verified: the file has the image's identity {identity}, which is of a sample of its frames"
            ),
            Verified::Nothing => writeln!(
                out,
                "every page is there; free frames are zero, so the file is not the image byte for byte"
            ),
        };
        let _ = writeln!(out, "{}", printable(&self.output.display().to_string()));
        out
    }

    fn table(&self) -> String {
        let mut table = table([
            ("color", Left),
            ("frames", Right),
            ("streamed", Right),
            ("filled", Right),
            ("faults", Right),
            ("in the file", Right),
        ]);
        let mut row = |name: String, frames: u64, counts: &Counts| {
            table.add_row(vec![
                name,
                thousands(frames),
                thousands(counts.prefetched),
                thousands(counts.filled),
                thousands(counts.faults.saturating_add(counts.late)),
                thousands(counts.resident),
            ]);
        };
        for (color, frames, counts) in self.by_color() {
            row(color.to_owned(), frames, counts);
        }
        row("all".to_owned(), u64::from(self.statistics.frames), &self.statistics.total());
        finish(&table)
    }

    /// Every color that occurs, its frames in the guest and its counts.
    fn by_color(&self) -> impl Iterator<Item = (&'static str, u64, &Counts)> {
        let mut frames = vec![0u64; self.statistics.by_color.len()];
        match self.descriptor.map() {
            Some(map) => {
                for color in map.colors() {
                    if let Some(n) = frames.get_mut(usize::from(*color as u8)) {
                        *n += 1;
                    }
                }
            }
            None => {
                if let Some(unknown) = frames.first_mut() {
                    *unknown = u64::from(self.statistics.frames);
                }
            }
        }
        let colors = self.statistics.by_color.iter().zip(frames);
        colors
            .filter(|(_, frames)| *frames > 0)
            .map(|((color, counts), frames)| (color.name(), frames, counts))
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        let colors: Vec<Value> = self
            .by_color()
            .map(|(color, frames, counts)| {
                let mut object = of(counts);
                object["color"] = color.into();
                object["frames"] = frames.into();
                object
            })
            .collect();
        let client = &self.client;
        let document = json!({
            "output": self.output.display().to_string(),
            "identity": self.descriptor.identity().to_string(),
            "verified": self.verified.name(),
            "policy": self.policy.to_string(),
            "clone": self.descriptor.id().to_string(),
            "frames": self.statistics.frames,
            "frame_size": FRAME_SIZE,
            "seconds": self.took.as_secs_f64(),
            "unavailable_frames": self.unavailable,
            "total": of(&self.statistics.total()),
            "colors": colors,
            "wire": {
                "bytes": client.bytes,
                "frames": client.frames,
                "zero_frames": client.zero_frames,
                "second_copies": client.second_copies,
                "disconnects": client.disconnects,
                "reconnects": client.reconnects,
                "checksum_failures": client.checksum_failures,
            },
        });
        // Strings, numbers and maps with text keys always serialize.
        let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
        text.push('\n');
        text
    }
}

fn of(counts: &Counts) -> Value {
    json!({
        "faults": counts.faults,
        "late": counts.late,
        "prefetched_frames": counts.prefetched,
        "filled_frames": counts.filled,
        "dropped_frames": counts.dropped,
        "resident_frames": counts.resident,
    })
}

/// `, over 2 new connections`; nothing for none.
fn counted(before: &str, count: u64, what: &str) -> String {
    match count {
        0 => String::new(),
        1 => format!("{before} 1 {what}"),
        _ => format!("{before} {} × {what}", thousands(count)),
    }
}
