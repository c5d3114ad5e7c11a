//! What is printed: when the VM is captured, and when a clone starts and ends.

use crate::map_output::table::{printable, size};
use serde::Serialize;

/// An event, which is printed as a line of JSON or as text.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    Captured(Capture),
    Started(Started),
    Ended(Ended),
}

/// A VM was captured, and runs on.
#[derive(Serialize)]
pub(super) struct Capture {
    pub(super) folder: String,
    /// How its memory was kept.
    pub(super) way: &'static str,
    /// What that costs the VM.
    pub(super) cost: &'static str,
    /// How long it was paused, by QEMU's clock.
    pub(super) pause_us: u64,
    /// From the start of the command until the folder was complete.
    pub(super) seconds: f64,
    pub(super) memory_bytes: u64,
    /// Pages that were copied.
    pub(super) written_pages: u64,
    pub(super) device_bytes: usize,
    pub(super) disks: usize,
    /// What the VM writes to from now on.
    pub(super) overlays: Vec<String>,
    /// Where the colors come from, or why there are none.
    pub(super) colors: String,
    /// Ways that are not possible here, and why.
    pub(super) passed_over: Vec<String>,
}

/// A clone runs, or waits to be continued.
#[derive(Serialize)]
pub(super) struct Started {
    pub(super) clone: u32,
    pub(super) process: u32,
    pub(super) qmp: String,
    pub(super) folder: String,
    pub(super) start_us: u64,
    pub(super) paused: bool,
    /// Host ports that lead to it.
    pub(super) ports: Vec<String>,
}

/// A clone has ended by itself.
#[derive(Serialize)]
pub(super) struct Ended {
    pub(super) clone: u32,
    pub(super) success: bool,
    /// What QEMU said last.
    pub(super) message: String,
    pub(super) seconds: f64,
}

impl Event {
    /// For programs: one line.
    pub(super) fn json(&self) -> String {
        // Numbers and texts; there is no map with other keys.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For people: without the end of the last line.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Captured(capture) => capture.text(),
            Self::Started(started) => {
                let Started { clone, process, qmp, start_us, paused, ports, .. } = started;
                let is = if *paused { "waits for `cont`" } else { "runs" };
                let ms = *start_us as f64 / 1000.0;
                let ports: String = ports.iter().map(|port| format!(", {port}")).collect();
                format!(
                    "clone {clone}: process {process} {is} after {ms:.0} ms, QMP at {}{}",
                    printable(qmp),
                    printable(&ports)
                )
            }
            Self::Ended(Ended { clone, success, message, seconds }) => {
                let how = if *success { "has ended" } else { "has failed" };
                let colon = if message.is_empty() { "" } else { ": " };
                format!("clone {clone}: {how} after {seconds:.1} s{colon}{}", printable(message))
            }
        }
    }
}

impl Capture {
    fn text(&self) -> String {
        let mut text = format!(
            "captured in {}: {} of memory, {} of device state, disks: {}\n\
             way: {} ({} written), pause {:.1} ms\ncost to the VM: {}\ncolors: {}",
            printable(&self.folder),
            size(self.memory_bytes),
            size(self.device_bytes as u64),
            self.disks,
            self.way,
            size(self.written_pages * 4096),
            self.pause_us as f64 / 1000.0,
            self.cost,
            printable(&self.colors)
        );
        for why in &self.passed_over {
            text += &format!("\nnot possible: {}", printable(why));
        }
        for overlay in &self.overlays {
            text += &format!("\nthe VM writes to {} from now on", printable(overlay));
        }
        text
    }
}
