//! What a server says when it serves, and when it has stopped.

use super::parent::Parent;
use crate::statistics::thousands;
use crate::table::{finish, heading, printable, size, table};
use comfy_table::CellAlignment::{Left, Right};
use kaleidoscope_core::clone::{FreeFrames, ServerAddress};
use kaleidoscope_core::wire::server::ServerStatistics;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

/// What is served, and where.
#[derive(Serialize)]
pub(super) struct Serving {
    event: &'static str,
    image: String,
    identity: String,
    frames: u32,
    colored: bool,
    free_frames: &'static str,
    descriptor_bytes: usize,
    listening: Vec<String>,
    #[serde(skip)]
    heading: String,
    #[serde(skip)]
    trust: String,
}

impl Serving {
    /// What is served at these addresses.
    pub(super) fn new(
        image: &Path,
        parent: &Parent,
        listening: &[ServerAddress],
        descriptor_bytes: usize,
    ) -> Self {
        let descriptor = &parent.descriptor;
        let layout = descriptor.layout();
        let uncolored =
            || format!("{}, {} frames, without colors\n", size(layout.bytes()), layout.frames());
        let free_frames = descriptor.free_frames();
        Self {
            event: "serving",
            image: image.display().to_string(),
            identity: descriptor.identity().to_string(),
            frames: layout.frames(),
            colored: descriptor.map().is_some(),
            free_frames: free_frames.name(),
            descriptor_bytes,
            listening: listening.iter().map(ToString::to_string).collect(),
            heading: descriptor.map().map_or_else(uncolored, heading),
            trust: parent.trust.map_or_else(String::new, |trust| {
                let may = match free_frames {
                    FreeFrames::Zero => "clones may fill them with zeros",
                    FreeFrames::Fetch => "clones fetch them",
                };
                format!("free frames: {may} ({trust})\n")
            }),
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let Self { image, heading, identity, trust, descriptor_bytes, .. } = self;
        let mut out =
            format!("serving {}: {heading}identity {identity}\n{trust}", printable(image));
        let bytes = thousands(u64::try_from(*descriptor_bytes).unwrap_or(u64::MAX));
        let _ = writeln!(out, "clones start from a descriptor of {bytes} bytes");
        for address in &self.listening {
            let _ = writeln!(out, "listening at {}", printable(address));
        }
        let addresses: Vec<_> = self.listening.iter().map(|a| quoted(&printable(a))).collect();
        let _ = writeln!(out, "pull with: kaleidoscope pull {} -o copy.bin", addresses.join(" "));
        out
    }

    /// For programs: one line.
    pub(super) fn json(&self) -> String {
        line(self)
    }
}

/// As a shell takes it.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:".contains(c);
    if text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// An object on a line. Numbers and texts always serialize.
fn line(object: &impl Serialize) -> String {
    let mut text = serde_json::to_string(object).unwrap_or_default();
    text.push('\n');
    text
}

/// The counters, each with its name for programs and for people.
fn counters(statistics: &ServerStatistics) -> [(&'static str, &'static str, u64); 12] {
    let s = statistics;
    [
        ("connections", "connections", s.connections),
        ("refused", "refused", s.refused),
        ("violations", "broke the protocol", s.violations),
        ("broken", "broken by the network", s.broken),
        ("idle", "closed when idle", s.idle),
        ("pages", "pages", s.pages),
        ("urgent_pages", "  waited for", s.urgent_pages),
        ("zero_pages", "  zeros", s.zero_pages),
        ("compressed_pages", "  compressed", s.compressed_pages),
        ("unavailable_pages", "  not in the image", s.unavailable_pages),
        ("bytes", "bytes of pages", s.bytes),
        ("descriptor_bytes", "bytes of descriptors", s.descriptor_bytes),
    ]
}

/// What a server has done, for people.
pub(super) fn text(statistics: &ServerStatistics) -> String {
    let mut table = table([("served", Left), ("", Right)]);
    for (_, name, count) in counters(statistics) {
        table.add_row(vec![name.to_owned(), thousands(count)]);
    }
    finish(&table)
}

/// What a server has done, for programs: one line.
pub(super) fn json(statistics: &ServerStatistics) -> String {
    let mut object = serde_json::Map::new();
    object.insert("event".to_owned(), "stopped".into());
    for (name, _, count) in counters(statistics) {
        object.insert(name.to_owned(), count.into());
    }
    line(&object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_can_be_pasted() {
        assert_eq!(quoted("unix:/run/a-b_c.sock"), "unix:/run/a-b_c.sock");
        assert_eq!(quoted("tcp:[::1]:7411"), "'tcp:[::1]:7411'");
        assert_eq!(quoted("unix:/a b'c"), r"'unix:/a b'\''c'");
    }

    #[test]
    fn counters_are_told() {
        let mut statistics = ServerStatistics::default();
        (statistics.pages, statistics.zero_pages) = (12_345, 67);
        let text = text(&statistics);
        assert!(text.contains("12,345") && text.contains("67"), "{text}");
        let object: serde_json::Value = serde_json::from_str(&json(&statistics)).unwrap();
        assert_eq!((&object["event"], &object["pages"]), (&"stopped".into(), &12_345.into()));
    }
}
