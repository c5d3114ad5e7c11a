//! `kaleidoscope lab symbols`: learns from traces of clones which kernel symbols every workload
//! uses.

use std::fs;
use std::path::{Path, PathBuf};

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::color::{Color, ColorMap, Temperature};
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::image::{Format, LayoutFile, MemoryImage, RawLayout};
use kaleidoscope_core::linux::{CommonSymbols, Lesson, Linux, Pruning, learn};
use kaleidoscope_core::memory::GuestMemory as _;
use kaleidoscope_core::registers::{VcpuRegisters, parse_qemu_text};
use kaleidoscope_core::replay::Trace;

use super::error::{Error, Result};
use crate::outfile::{self, Files};
use crate::stdio::{print, say};

/// Learn from traces of clones which kernel symbols every workload uses.
///
/// Makes the list that the library comes with. A guest is a folder with ram.bin, layout.txt,
/// regs.txt and traces/*.csv. To know what a list is worth on kernels it has never seen, judge it
/// on guests whose kernels it was not learned from.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope lab symbols guests/* -o kaleidoscope-core/src/linux/common_symbols.txt
      the list that the library comes with
  kaleidoscope lab symbols guests/5.10 guests/6.12 --judge guests/6.1
      what such a list is worth on a kernel that it was not learned from")]
pub(crate) struct Args {
    /// Folders of the guests to learn from
    #[arg(required = true, value_name = "GUEST")]
    guests: Vec<PathBuf>,
    /// Write the list to this file
    #[arg(short, long, value_name = "FILE", required_unless_present = "judge")]
    output: Option<PathBuf>,
    /// Say how well the list does on this guest; repeat for more
    #[arg(long, value_name = "GUEST")]
    judge: Vec<PathBuf>,
    /// Leave out symbols that a smaller share of the traces touched
    #[arg(long, value_name = "SHARE", default_value_t = 0.45)]
    min_share: f64,
    /// Leave out symbols of fewer kernels
    #[arg(long, value_name = "N", default_value_t = 2)]
    min_kernels: usize,
}

impl Args {
    /// The files that are read and written.
    pub(super) fn files(&self) -> Files {
        Files::new().reads_guests(&self.guests).reads_guests(&self.judge).writes(&self.output)
    }

    /// Learns the list, writes it, and prints its scores.
    pub(super) fn run(&self) -> Result<()> {
        let lessons =
            self.guests.iter().map(|folder| lesson(folder)).collect::<Result<Vec<_>>>()?;
        let pruning = Pruning { least_heat: self.min_share, least_kernels: self.min_kernels };
        let heats = learn(&lessons, &pruning);
        say(format_args!("{} symbols", heats.len()));
        if let Some(path) = &self.output {
            let text = heats.to_text(&self.comment(&lessons));
            outfile::write(path, |out| out.write_all(text.as_bytes()))?;
        }
        let common = CommonSymbols::from(&heats);
        for folder in &self.judge {
            let guest = Guest::open(folder, common.clone())?;
            print(&judge(&guest.map, &guest.traces, &folder.display().to_string()))?;
        }
        Ok(())
    }

    fn comment(&self, lessons: &[Lesson]) -> String {
        let guests: Vec<_> = self.guests.iter().map(|g| g.display().to_string()).collect();
        let mut kernels: Vec<_> = lessons.iter().map(Lesson::kernel).collect();
        kernels.sort_unstable();
        kernels.dedup();
        format!(
            "Linux kernel symbols by how often clones of a guest touch the page that holds them.\n\
             Each line: the share of traces in tenths, a letter for how many bytes the name shares \
             with the one\n\
             before (a none, b one, ...), the rest of the name. \
             NAME+1 is the second page of NAME.\n\
             Learned from {} guests with the kernels {};\n\
             left out: what fewer than {} % of the traces touched, \
             and what fewer than {} kernels have.\n\
             Made by: kaleidoscope lab symbols {} -o FILE",
            guests.len(),
            kernels.join(", "),
            self.min_share * 100.0,
            self.min_kernels,
            guests.join(" "),
        )
    }
}

/// A colored guest with its traces.
struct Guest {
    image: MemoryImage,
    registers: Vec<VcpuRegisters>,
    map: ColorMap,
    /// The frames that each trace touched.
    traces: Vec<Vec<FrameIndex>>,
}

impl Guest {
    fn open(folder: &Path, common_symbols: CommonSymbols) -> Result<Self> {
        let ram = folder.join("ram.bin");
        let layout_path = folder.join("layout.txt");
        let layout = LayoutFile::open(&layout_path).map_err(|e| trace_error(&layout_path, &e))?;
        let format = Format::Raw(RawLayout::File(layout));
        let image = MemoryImage::open(&ram, &format).map_err(|e| trace_error(&ram, &e))?;
        let regs_path = folder.join("regs.txt");
        let text = fs::read_to_string(&regs_path).map_err(Error::io("read", &regs_path))?;
        let registers = parse_qemu_text(&text).map_err(|e| trace_error(&regs_path, &e))?;
        let options =
            ColoringOptions::default().registers(registers.clone()).common_symbols(common_symbols);
        let map = color(&image, &options).map_err(|e| trace_error(&ram, &e))?.map;
        let traces = read_traces(&folder.join("traces"), &image)?;
        Ok(Self { image, registers, map, traces })
    }
}

/// All traces of a folder.
fn read_traces(folder: &Path, image: &MemoryImage) -> Result<Vec<Vec<FrameIndex>>> {
    let entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let paths = entries.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>();
    let mut paths = paths.map_err(Error::io("read", folder))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "csv"));
    paths.sort();
    if paths.is_empty() {
        return Err(trace_error(folder, &"no traces (*.csv) in it"));
    }
    let read = |path: PathBuf| {
        let file = fs::File::open(&path).map_err(Error::io("open", &path))?;
        let trace = Trace::from_csv(file, image.layout()).map_err(|e| trace_error(&path, &e))?;
        Ok(trace.touches().iter().map(|touch| touch.frame).collect())
    };
    paths.into_iter().map(read).collect()
}

fn lesson(folder: &Path) -> Result<Lesson> {
    let guest = Guest::open(folder, CommonSymbols::none())?;
    let symbols = Linux::default().symbols_by_page(&guest.image, &guest.registers);
    let symbols = symbols.map_err(|e| trace_error(&folder.join("ram.bin"), &e))?;
    Ok(Lesson::new(symbols, &guest.map, &guest.traces))
}

fn trace_error(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::Traces { path: path.to_owned(), what: what.to_string() }
}

/// For each part of the kernel image and each temperature hint: the number of frames with the hint,
/// the share of those that a trace touches (precision, mean over traces), and the share of touched
/// frames that have the hint (recall).
fn judge(map: &ColorMap, traces: &[Vec<FrameIndex>], name: &str) -> String {
    let mut out = String::new();
    for color in [Color::KernelText, Color::KernelData, Color::KernelRodata] {
        for (hint, hint_name) in
            [(Temperature::COMMON, "common"), (Temperature::FREQUENT, "frequent")]
        {
            let Counts { frames, touched, hits } = count(map, traces, color, hint);
            let share = |part: usize, of: usize| 100.0 * ratio(part, of);
            out += &format!(
                "{name:<24} {color:<14} {hint_name:<9} {frames:>5} frames, \
                 precision {:>5.1} %, recall {:>5.1} %\n",
                share(hits, frames * traces.len()),
                share(hits, touched),
            );
        }
    }
    out
}

/// Frames of a color with a hint, touches of the color in all traces, and touches of the color with
/// the hint.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    frames: usize,
    touched: usize,
    hits: usize,
}

fn count(map: &ColorMap, traces: &[Vec<FrameIndex>], color: Color, hint: Temperature) -> Counts {
    let of_color = map.iter().filter(|(_, _, frame)| frame.color == color);
    let frames = of_color.filter(|(_, _, frame)| frame.temperature.contains(hint)).count();
    let touched = traces.iter().flatten().filter_map(|&index| map.frame(index));
    let touched: Vec<_> = touched.filter(|frame| frame.color == color).collect();
    let hits = touched.iter().filter(|frame| frame.temperature.contains(hint)).count();
    Counts { frames, touched: touched.len(), hits }
}

#[expect(clippy::cast_precision_loss, reason = "counts of frames in traces are far below 2^53")]
fn ratio(part: usize, of: usize) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_core::color::{Frame, FrameKind, KernelIdentity};
    use kaleidoscope_core::memory::MemoryLayout;

    #[test]
    fn precision_and_recall_are_told() {
        let frame = |color, temperature| Frame {
            kind: FrameKind::Kernel,
            color,
            temperature,
            ..Frame::default()
        };
        let both = Temperature::FREQUENT | Temperature::COMMON;
        let frames = [
            frame(Color::KernelText, both),
            frame(Color::KernelText, Temperature::FREQUENT),
            frame(Color::KernelText, Temperature::NONE),
            frame(Color::KernelData, both),
        ];
        let layout = MemoryLayout::contiguous(0x4000).unwrap();
        let map = ColorMap::new(layout, KernelIdentity::default(), frames, Vec::new()).unwrap();
        let traces = [[0, 1, 2].map(FrameIndex).to_vec(), [0, 2].map(FrameIndex).to_vec()];
        let text = judge(&map, &traces, "guest");
        let lines = [
            ("kernel-text    common        1", "precision 100.0 %, recall  40.0 %"),
            ("kernel-text    frequent      2", "precision  75.0 %, recall  60.0 %"),
            ("kernel-data    common        1", "precision   0.0 %, recall   0.0 %"),
        ];
        let lines =
            lines.map(|(frames, share)| format!("{:<24} {frames} frames, {share}\n", "guest"));
        assert!(text.starts_with(&lines.concat()), "{text}");
        assert_eq!(text.lines().count(), 6);
    }
}
