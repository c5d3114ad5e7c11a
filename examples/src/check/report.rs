//! The report: findings, verdict, and their display.
use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::coloring::Defect;
use super::judge::anonymous::AnonymousFindings;
use super::judge::files::FileFindings;
use super::judge::frames::{FrameFindings, KindCount};

/// All findings, and the verdict.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    passed: bool,
    /// Why it did not pass.
    failures: Vec<String>,
    frames: FrameFindings,
    files: FileFindings,
    anonymous: AnonymousFindings,
    /// Regions whose row contradicts their frames' rows; not part of the verdict.
    defects: Vec<Defect>,
}

impl Report {
    /// Computes the verdict. Each class may have `tolerance` wrong frames, and `tolerance` frames
    /// may have lost their process.
    pub(crate) fn new(
        frames: FrameFindings,
        files: FileFindings,
        anonymous: AnonymousFindings,
        defects: Vec<Defect>,
        tolerance: u64,
    ) -> Self {
        let mut failures = frames.failures(tolerance);
        if files.wrong > 0 {
            failures.push(format!("{} of {} file pages are wrong", files.wrong, files.pages));
        }
        let (of_processes, lost) = anonymous.lost();
        if lost > tolerance {
            failures.push(format!("{lost} of {of_processes} anonymous frames lost their process"));
        }
        Self { passed: failures.is_empty(), failures, frames, files, anonymous, defects }
    }

    /// Whether the coloring is right.
    pub(crate) fn passed(&self) -> bool {
        self.passed
    }

    /// Why the coloring is not right.
    #[cfg(test)]
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Findings about the kinds of frames.
    #[cfg(test)]
    pub(crate) fn frames(&self) -> &FrameFindings {
        &self.frames
    }

    /// Findings about file pages.
    #[cfg(test)]
    pub(crate) fn files(&self) -> &FileFindings {
        &self.files
    }

    /// Findings about anonymous memory.
    #[cfg(test)]
    pub(crate) fn anonymous(&self) -> &AnonymousFindings {
        &self.anonymous
    }

    /// Regions whose row contradicts their frames' rows.
    #[cfg(test)]
    pub(crate) fn defects(&self) -> &[Defect] {
        &self.defects
    }

    fn write_files(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = &self.files;
        writeln!(f, "\nFile pages\n")?;
        let mut table = table(&[
            "files",
            "files right",
            "pages",
            "found",
            "right index",
            "right path",
            "wrong",
        ]);
        table.add_row(
            [
                files.files,
                files.files_right,
                files.pages,
                files.found,
                files.right_index,
                files.right_path,
                files.wrong,
            ]
            .map(|number| number.to_string()),
        );
        writeln!(f, "{}\n", right_aligned(table, 0..7))?;
        for (verdict, pages) in &files.verdicts {
            writeln!(f, "{}: {} pages", verdict.name(), pages.pages)?;
            for example in &pages.examples {
                writeln!(f, "  {:#x} is {}, not {}", example.gfn, example.truth, example.ours)?;
            }
        }
        writeln!(
            f,
            "not judged: {} unstable, {} not listed by the guest",
            files.unstable, files.unlisted
        )
    }

    fn write_anonymous(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nAnonymous memory of processes\n")?;
        let mut table = table(&[
            "pid",
            "command",
            "frames",
            "right",
            "lost",
            "names pid",
            "names command",
            "neighbors",
            "in order",
        ]);
        for process in &self.anonymous.processes {
            table.add_row([
                process.pid.to_string(),
                process.comm.clone(),
                process.frames.to_string(),
                process.right.to_string(),
                process.lost.to_string(),
                process.named_by_pid.to_string(),
                process.named_by_comm.to_string(),
                process.neighbors.to_string(),
                process.neighbors_in_order.to_string(),
            ]);
        }
        writeln!(f, "{}", right_aligned(table, 2..9))?;
        for process in &self.anonymous.set_aside {
            writeln!(
                f,
                "set aside: {} ({}), of another moment: {} of {} pages agree with the frames' \
                 flags",
                process.pid, process.comm, process.agreeing, process.pages
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for FrameFindings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = self;
        let mut table = table(&["truth", "frames", "right", "wrong", "%"]);
        for class in &frames.classes {
            table.add_row([
                class.class.name().to_owned(),
                class.frames.to_string(),
                class.right.to_string(),
                class.wrong.to_string(),
                percent(class.right, class.frames),
            ]);
        }
        writeln!(f, "{}\n", right_aligned(table, 1..5))?;
        let (unknown, all) = (frames.unknown, frames.frames);
        writeln!(f, "unknown: {unknown} of {all} frames ({} %)", percent(unknown, all))?;
        writeln!(
            f,
            "not judged: {} untyped, {} unstable, {} outside the guest's memory, \
             {} reserved left out",
            frames.untyped.iter().map(|called| called.cell.frames).sum::<u64>(),
            frames.unstable,
            frames.outside,
            frames.reserved_left_out,
        )?;
        if let Some(buffers) = frames.buffers {
            writeln!(
                f,
                "block-device frames: {}, the guest's Buffers: {buffers}",
                frames.block_device
            )?;
        }
        write_counts(f, "Wrong frames", &frames.wrong)?;
        write_counts(f, "Untyped frames (not judged)", &frames.untyped)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.frames.fmt(f)?;
        self.write_files(f)?;
        self.write_anonymous(f)?;
        for defect in &self.defects {
            writeln!(f, "region {} {}", defect.region, defect.problem)?;
        }
        writeln!(f)?;
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        if self.passed {
            write!(f, "passed")?;
        }
        Ok(())
    }
}

fn write_counts(f: &mut fmt::Formatter<'_>, title: &str, all: &[KindCount]) -> fmt::Result {
    if all.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{title}\n")?;
    let mut table = table(&["truth", "ours", "frames", "examples"]);
    for called in all {
        let examples = called
            .cell
            .examples
            .iter()
            .map(|example| format!("{:#x} {}", example.gfn, example.flags));
        table.add_row([
            called.class.name().to_owned(),
            called.kind.map_or("left out", |kind| kind.name()).to_owned(),
            called.cell.frames.to_string(),
            examples.collect::<Vec<_>>().join("\n"),
        ]);
    }
    writeln!(f, "{}", right_aligned(table, 2..3))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    table
}

fn right_aligned(mut table: Table, columns: std::ops::Range<usize>) -> Table {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// `part` of `whole` in percent, rounded down, so that only the whole is 100.
fn percent(part: u64, whole: u64) -> String {
    let thousandths = u128::from(part) * 100_000 / u128::from(whole.max(1));
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn only_the_whole_is_100_percent() {
        assert_eq!(percent(1_000_000, 1_000_000), "100.000");
        assert_eq!(percent(999_999, 1_000_000), "99.999");
        assert_eq!(percent(0, 0), "0.000");
    }
}
