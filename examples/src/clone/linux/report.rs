//! How it went.

use crate::check::FrameFindings;
use crate::map_output::table::{finish, table};
use comfy_table::CellAlignment::{Left, Right};
use kaleidoscope_core::color::ColorMap;
use serde::Serialize;

/// What the parent's pages are, and figures.
pub(super) struct Report {
    pub(super) map: ColorMap,
    pub(super) figures: Figures,
}

/// How it went, in figures.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    /// The kernel's release.
    pub(super) kernel: String,
    pub(super) memory_bytes: u64,
    /// Until the guest was warm.
    pub(super) booted_seconds: f64,
    /// How long it stood still to be snapshot.
    pub(super) pause_us: f64,
    pub(super) colored_us: f64,
    /// Memory of the parent that is not shared: what it wrote since.
    pub(super) parent_own_bytes: u64,
    /// Memory that staged clones share.
    pub(super) shared_bytes: u64,
    pub(super) clones: Vec<OfClone>,
    /// How the colors compare with what a clone says of its pages.
    pub(super) check: Option<FrameFindings>,
}

/// A clone.
#[derive(Debug, Serialize)]
pub(super) struct OfClone {
    pub(super) way: &'static str,
    pub(super) id: String,
    pub(super) start_us: f64,
    /// Since the start of the first clone of its way.
    pub(super) done_us: f64,
    pub(super) faults: u64,
    pub(super) prefetched_frames: u64,
    pub(super) moved_bytes: u64,
    pub(super) own_bytes: u64,
}

#[expect(clippy::cast_precision_loss, reason = "bytes are below 2^53")]
fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

impl Report {
    /// Tables for people.
    pub(super) fn text(&self) -> String {
        let Figures { kernel, memory_bytes, booted_seconds, pause_us, colored_us, .. } =
            &self.figures;
        let mut text = format!(
            "Linux {kernel} in {} MiB: warm after {booted_seconds:.1} s, stood still for {:.2} ms, colored in {:.0} ms\n\
             the parent goes on, and has written {} MiB since\n",
            memory_bytes >> 20,
            pause_us / 1e3,
            colored_us / 1e3,
            mib(self.figures.parent_own_bytes)
        );
        if self.figures.shared_bytes > 0 {
            text.push_str(&format!("clones share {} MiB\n", mib(self.figures.shared_bytes)));
        }
        let mut out = table([
            ("way", Left),
            ("clone", Left),
            ("start ms", Right),
            ("done ms", Right),
            ("faults", Right),
            ("ahead", Right),
            ("moved MiB", Right),
            ("own MiB", Right),
        ]);
        for clone in &self.figures.clones {
            out.add_row([
                clone.way.to_owned(),
                clone.id.clone(),
                format!("{:.1}", clone.start_us / 1e3),
                format!("{:.0}", clone.done_us / 1e3),
                clone.faults.to_string(),
                clone.prefetched_frames.to_string(),
                mib(clone.moved_bytes),
                mib(clone.own_bytes),
            ]);
        }
        text.push('\n');
        text.push_str(&finish(&out));
        if let Some(check) = &self.figures.check {
            text.push_str("\nWhat a clone says of its pages, and what was found from outside\n\n");
            text.push_str(&check.to_string());
        }
        text
    }
}
