//! The result as tables for people.

use crate::map_output::outputs::View;
use crate::map_output::statistics::{Statistics, cached_files, mib, thousands};
use crate::picture::palette;
use comfy_table::CellAlignment::{self, Left, Right};
use comfy_table::{Table, TableComponent, presets};
use kaleidoscope_core::color::{Color, ColorMap};
use kaleidoscope_core::guest_os::Process;
use std::fmt::Write;

/// The tables. `colored` puts a swatch of each color in front of its name, for terminals.
pub(crate) fn render(
    view: &View<'_>,
    statistics: &Statistics,
    files: bool,
    colored: bool,
) -> String {
    let mut out = heading(view.map);
    out.push('\n');
    out.push_str(&colors(statistics, colored));
    if let Some(processes) = view.processes {
        let _ = write!(out, "\nprocesses\n{}", process_table(processes));
    }
    if files {
        let _ = write!(out, "\ncached files\n{}", file_table(view.map));
    }
    if !view.stages.is_empty() {
        let total: f64 = view.stages.iter().map(|(_, time)| time.as_secs_f64()).sum();
        let stage = |(name, time): &(&str, std::time::Duration)| {
            format!("{name} {:.1}", time.as_secs_f64() * 1e3)
        };
        let stages: Vec<String> = view.stages.iter().map(stage).collect();
        let _ = writeln!(out, "\ncolored in {:.1} ms ({})", total * 1e3, stages.join(", "));
    }
    for note in view.notes {
        let _ = writeln!(out, "note: {}", printable(note));
    }
    out
}

/// The guest in one line: `Linux 6.1.0, x86-64 4-level, 512 MiB`.
pub(crate) fn heading(map: &ColorMap) -> String {
    let kernel = map.kernel();
    let name = match (kernel.os.as_str(), kernel.release.as_str()) {
        ("", "") => "unknown kernel".to_owned(),
        ("linux", release) => format!("Linux {release}"),
        (os, release) => format!("{os} {release}"),
    };
    let mut parts = vec![printable(name.trim_end())];
    if !kernel.paging.is_empty() {
        parts.push(printable(&kernel.paging));
    }
    parts.push(size(map.layout().bytes()));
    parts.push(format!("{} frames", thousands(u64::from(map.layout().frames()))));
    let mut line = parts.join(", ");
    line.push('\n');
    line
}

/// A size in the largest unit that keeps it above 1.
pub(crate) fn size(bytes: u64) -> String {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let (unit, name) = match bytes {
        GIB.. => (GIB, "GiB"),
        MIB.. => (MIB, "MiB"),
        _ => (KIB, "KiB"),
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    match tenths % 10 {
        0 => format!("{} {name}", tenths / 10),
        tenth => format!("{}.{tenth} {name}", tenths / 10),
    }
}

/// Text from a guest or a file, safe to print: control characters, which could steer a terminal,
/// are escaped.
pub(crate) fn printable(text: &str) -> String {
    kaleidoscope_core::guest_os::name::shown(text).into_owned()
}

pub(crate) fn colors(statistics: &Statistics, colored: bool) -> String {
    let mut table = table([
        ("color", Left),
        ("frames", Right),
        ("MiB", Right),
        ("share", Right),
        ("runs", Right),
        ("regions", Right),
    ]);
    for figures in &statistics.colors {
        table.add_row(vec![
            figures.color.to_string(),
            number(figures.frames),
            format!("{:.1}", mib(figures.frames)),
            percent(figures.share),
            number(figures.runs),
            number(figures.regions),
        ]);
    }
    let runs: u32 = statistics.colors.iter().map(|f| f.runs).sum();
    table.add_row(vec![
        "all".to_owned(),
        number(statistics.frames),
        format!("{:.1}", mib(statistics.frames)),
        percent(1.0),
        number(runs),
        thousands(u64::try_from(statistics.regions).unwrap_or(u64::MAX)),
    ]);
    let text = finish(&table);
    if !colored {
        return text;
    }
    // Header and rule come first, then one line per color, then the total.
    let swatches = statistics.colors.iter().map(|f| Some(f.color));
    let lines = [None, None].into_iter().chain(swatches).chain([None]);
    text.lines().zip(lines).fold(String::new(), |mut out, (line, color)| {
        let _ = writeln!(out, "{}{line}", color.map_or("   ".to_owned(), swatch));
        out
    })
}

/// Two cells of a terminal in a color of the picture.
fn swatch(color: Color) -> String {
    let [r, g, b] = palette::rgb(color);
    format!("\x1b[38;2;{r};{g};{b}m██\x1b[0m ")
}

fn process_table(processes: &[Process]) -> String {
    let mut table = table([
        ("pid", Right),
        ("threads", Right),
        ("anonymous", Right),
        ("mapped", Right),
        ("page tables", Right),
        ("last ran", Right),
        ("name", Left),
    ]);
    for process in processes {
        table.add_row(vec![
            process.pid.map_or_else(String::new, |pid| pid.to_string()),
            thousands(u64::from(process.threads)),
            thousands(process.anonymous_frames),
            thousands(process.mapped_frames),
            thousands(process.table_frames),
            // The task that ran last is the first.
            process.recency.map_or_else(String::new, |at| format!("{}.", u64::from(at) + 1)),
            printable(&process.name),
        ]);
    }
    finish(&table)
}

fn file_table(map: &ColorMap) -> String {
    let mut table = table([
        ("pages", Right),
        ("type", Left),
        ("device", Right),
        ("inode", Right),
        ("path", Left),
    ]);
    for file in cached_files(map) {
        table.add_row(vec![
            number(file.resident_frames),
            printable(file.file_system),
            printable(file.device),
            printable(file.inode),
            printable(file.path),
        ]);
    }
    finish(&table)
}

/// An empty table with these columns, each aligned as its title: a rule below the titles, and
/// nothing else drawn.
pub(crate) fn table<const N: usize>(titles: [(&str, CellAlignment); N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_style(TableComponent::HeaderLines, '─');
    table.set_style(TableComponent::MiddleHeaderIntersections, '─');
    table.set_header(titles.map(|(title, _)| title));
    for (column, (_, alignment)) in table.column_iter_mut().zip(titles) {
        column.set_cell_alignment(alignment);
        column.set_padding((0, 1));
    }
    table
}

/// The text of a table, without blanks at the ends of lines.
pub(crate) fn finish(table: &Table) -> String {
    table.lines().fold(String::new(), |mut out, line| {
        out.push_str(line.trim_end());
        out.push('\n');
        out
    })
}

/// A count with its digits grouped.
pub(crate) fn number(value: u32) -> String {
    thousands(u64::from(value))
}

/// A share from 0 to 1 in percent.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map_output::test_map;
    use std::time::Duration;

    fn processes() -> Vec<Process> {
        let process = |pid: u32, name: &str, recency| Process {
            pid: Some(pid),
            name: name.into(),
            mapped_frames: 20,
            anonymous_frames: 1000 + u64::from(pid),
            table_frames: 5,
            threads: 2,
            recency,
            root: kaleidoscope_core::addr::Gpa(0x1000),
        };
        vec![process(1, "systemd", None), process(812, "perl\n\u{1b}[31m", Some(0))]
    }

    const EXPECTED: &str = r#"Linux 6.1.0-test-amd64, x86-64 4-level, 160 KiB, 40 frames

color       frames  MiB     share  runs  regions
─────────────────────────────────────────────────
unknown          1  0.0    2.50 %     1        0
free            12  0.0   30.00 %     3        0
slab             5  0.0   12.50 %     2        1
anonymous       10  0.0   25.00 %     1        1
file-code        6  0.0   15.00 %     1        1
file-cache       6  0.0   15.00 %     1        2
all             40  0.2  100.00 %     9        4

processes
pid  threads  anonymous  mapped  page tables  last ran  name
─────────────────────────────────────────────────────────────────────────
  1        2      1,001      20            5            systemd
812        2      1,812      20            5        1.  perl\x0a\x1b[31m

cached files
pages  type  device  inode  path
─────────────────────────────────────────────────────────
    9  ext4   65024     12  /usr/bin/perl, "quoted": too
    3  ext4   65024     77

colored in 2.5 ms (walk 2.0, rules 0.5)
note: slab list cut
"#;

    #[test]
    fn everything_is_shown() {
        let map = test_map::small();
        let (notes, processes) = (vec!["slab list cut".to_owned()], processes());
        let stages = [("walk", Duration::from_millis(2)), ("rules", Duration::from_micros(500))];
        let view = View { map: &map, notes: &notes, stages: &stages, processes: Some(&processes) };
        let text = render(&view, &Statistics::of(&map), true, false);
        assert_eq!(text, EXPECTED, "\n{text}");
    }

    #[test]
    fn swatches_are_on_the_rows_of_their_colors() {
        let map = test_map::small();
        let text = colors(&Statistics::of(&map), true);
        for line in text.lines().filter(|line| line.contains('█')) {
            let name = line.split_whitespace().nth(1).unwrap();
            assert!(line.starts_with(&swatch(name.parse().unwrap())), "{line:?}");
        }
        assert_eq!(text.lines().filter(|line| line.contains('█')).count(), 6);
        assert!(text.lines().last().unwrap().starts_with("   all"));
    }

    #[test]
    fn sizes_have_fitting_units() {
        assert_eq!(size(160 << 10), "160 KiB");
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size(9 << 29), "4.5 GiB");
    }

    #[test]
    fn an_unknown_kernel_is_named_so() {
        let layout = map_layout();
        let map = ColorMap::new(layout, Default::default(), [Default::default()], Vec::new());
        assert_eq!(heading(&map.unwrap()), "unknown kernel, 4 KiB, 1 frames\n");
    }

    fn map_layout() -> kaleidoscope_core::memory::MemoryLayout {
        kaleidoscope_core::memory::MemoryLayout::contiguous(4096).unwrap()
    }
}
