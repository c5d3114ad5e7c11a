//! `kaleidoscope explain`: why a frame has its color.

use crate::analysis::{color_image_with, linux};
use crate::args::{ColoringArgs, FrameArgs, ImageArgs, RuleArgs};
use crate::failure::Failure;
use crate::map_output::table;
use crate::stdio::print;
use kaleidoscope_core::addr::{FRAME_SIZE, Gfn, Gpa};
use kaleidoscope_core::color::{ColorMap, FrameKind, Region, Temperature};
use kaleidoscope_core::coloring::{Coloring, Rule};
use kaleidoscope_core::guest_os::{FrameFacts, FrameUse, KernelArea};
use kaleidoscope_core::memory::MemoryLayout;
use serde::Serialize;
use std::fmt::Write;

/// Say why a frame has its color: every fact that was observed, and the rule that decided.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope explain ram.bin --gpa 0x1f3a000
      the frame that holds this guest-physical address
  kaleidoscope explain ram.bin --layout layout.txt --gfn 0x1f3a --json
      the frame with this number, as in the CSV of `color --frames-to`; for programs")]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    frame: FrameArgs,
    #[command(flatten)]
    coloring: ColoringArgs,
    #[command(flatten)]
    rules: RuleArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Colors the image and explains one frame.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let image = self.image.open()?;
        let registers = self.image.registers(&image)?;
        let rules = self.rules.rules();
        let coloring = color_image_with(self.coloring, &image, registers.clone(), rules)?.coloring;
        let gfn = self.frame.gfn();
        let explanation = Explanation::of(&coloring, gfn);
        let mut explanation =
            explanation.ok_or_else(|| not_ram(gfn.gpa(), coloring.map.layout()))?;
        if !self.coloring.page_tables {
            let linux = linux(&image);
            let words = linux.inspect(&image, &registers, gfn).map_err(|error| {
                Failure::new(error)
                    .hint("`kaleidoscope color` shows what was found of the guest's kernel")
            })?;
            explanation.facts.extend(words);
        }
        print(&if self.json { explanation.json() } else { explanation.text() })
    }
}

fn not_ram(gpa: Gpa, layout: &MemoryLayout) -> Failure {
    let ranges = layout.regions().iter().map(|r| {
        let (start, bytes) = (r.start.gpa().0, u64::from(r.frames) * FRAME_SIZE);
        format!("{start:#x}-{:#x}", start + bytes - 1)
    });
    let ranges: Vec<String> = ranges.take(8).collect();
    Failure::new(format_args!("the guest has no RAM at {gpa}"))
        .hint(format!("it has RAM at {}", ranges.join(", ")))
}

/// Everything known of one frame, in words. Serialized as it is.
#[derive(Debug, Serialize)]
struct Explanation<'a> {
    gpa: u64,
    gfn: u64,
    kind: &'static str,
    color: &'static str,
    region: Option<&'a str>,
    /// What the position counts.
    order: Option<&'static str>,
    position: Option<u64>,
    /// What was observed, and the observation.
    facts: Vec<(String, String)>,
    /// The rule that decided.
    rule: Reason,
    /// Rules of lower priority that hold too.
    also: Vec<Reason>,
}

/// A rule in words.
#[derive(Debug, Serialize)]
struct Reason {
    color: &'static str,
    because: &'static str,
}

impl From<&Rule> for Reason {
    fn from(rule: &Rule) -> Self {
        Self { color: rule.color.name(), because: rule.condition }
    }
}

impl<'a> Explanation<'a> {
    /// Explains a frame; `None` where there is no RAM.
    fn of(coloring: &'a Coloring, gfn: Gfn) -> Option<Self> {
        let (facts, rules) = coloring.explain(gfn)?;
        let mut rules = rules.into_iter().map(Reason::from);
        Some(Self::new(gfn, facts, &coloring.map, rules.next()?, rules.collect()))
    }

    fn new(
        gfn: Gfn,
        facts: &FrameFacts,
        map: &'a ColorMap,
        rule: Reason,
        also: Vec<Reason>,
    ) -> Self {
        let kind: FrameKind = facts.usage.kind();
        let region: Option<&Region> = facts.region.and_then(|id| map.region(id));
        Self {
            gpa: gfn.gpa().0,
            gfn: gfn.0,
            kind: kind.name(),
            color: rule.color,
            region: region.map(|r| r.name.as_str()),
            order: region.map(|r| r.order.name()),
            position: region.map(|_| facts.position),
            facts: in_words(facts),
            rule,
            also,
        }
    }

    /// For people.
    fn text(&self) -> String {
        let mut rows = vec![
            ("kind".to_owned(), self.kind.to_owned()),
            ("color".to_owned(), self.color.to_owned()),
        ];
        if let (Some(region), Some(order), Some(position)) =
            (self.region, self.order, self.position)
        {
            rows.push(("region".to_owned(), region.to_owned()));
            rows.push((
                "position".to_owned(),
                format!("{position:#x} (by {})", order.replace('-', " ")),
            ));
        }
        let mut out = format!("frame {:#x}, guest-physical address {:#x}\n", self.gfn, self.gpa);
        section(&mut out, &rows);
        out.push_str("\nfacts\n");
        section(&mut out, &self.facts);
        let _ = writeln!(out, "\nrule\n  {}, because {}", self.rule.color, self.rule.because);
        for reason in &self.also {
            let _ = writeln!(out, "  (otherwise {}, because {})", reason.color, reason.because);
        }
        out
    }

    /// For programs, ending with a line feed.
    fn json(&self) -> String {
        // Strings and numbers always serialize.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// The facts that rules and temperature rest on.
fn in_words(facts: &FrameFacts) -> Vec<(String, String)> {
    let user = match (facts.user_mapped, facts.user_executable) {
        _ if facts.inaccessible => "a process maps it, and may not touch it now",
        (_, true) => "a process maps it executable",
        (true, false) => "a process maps it, none executable",
        (false, false) => "no process maps it",
    };
    let symbols = Temperature::FREQUENT | Temperature::COMMON;
    let signs = facts.temperature.without(symbols).to_string();
    let words = [
        ("frame table", usage(facts.usage).to_owned()),
        ("kernel mappings", area(facts.area).to_owned()),
        ("process mappings", user.to_owned()),
        (
            "page-table walks",
            if facts.is_table { "went through it as a table" } else { "did not use it" }.to_owned(),
        ),
        ("signs of recent use", if signs.is_empty() { "none".to_owned() } else { signs }),
    ];
    let mut words: Vec<_> = words.map(|(name, value)| (name.to_owned(), value)).into();
    // Not observed in this guest, so not among the signs of recent use.
    if let Some(symbols) = kernel_symbols(facts.temperature) {
        words.push(("kernel symbols".to_owned(), symbols.to_owned()));
    }
    words
}

/// What is known of the kernel symbols in the frame.
fn kernel_symbols(temperature: Temperature) -> Option<&'static str> {
    if temperature.contains(Temperature::COMMON) {
        Some("most workloads, whatever the guest, use what is in it (common)")
    } else if temperature.contains(Temperature::FREQUENT) {
        Some("many workloads, whatever the guest, use what is in it (frequent)")
    } else {
        None
    }
}

fn usage(usage: FrameUse) -> &'static str {
    match usage {
        FrameUse::Free => "in the page allocator's free lists",
        FrameUse::FreePerCpu => "free, on a CPU's own list",
        FrameUse::Slab => "holds objects of a slab cache",
        FrameUse::LargeKmalloc => "a large block of the object allocator",
        FrameUse::PageTable => "a page table",
        FrameUse::Anonymous => "anonymous memory",
        FrameUse::SwapCache => "in the swap cache",
        FrameUse::File => "page cache of a file",
        FrameUse::Shared => "page cache of a memory file",
        FrameUse::BlockDevice => "page cache of a block device",
        FrameUse::Reserved => "reserved since boot",
        FrameUse::Hugetlb => "in a pool of huge pages",
        FrameUse::Offline => "given back to the host",
        FrameUse::Allocated => "allocated, not said for what",
        FrameUse::Unknown | _ => "nothing, or damaged",
    }
}

fn area(area: KernelArea) -> &'static str {
    match area {
        KernelArea::Text => "in the kernel image, executable",
        KernelArea::Rodata => "in the kernel image, read-only",
        KernelArea::Data => "in the kernel image, writable",
        KernelArea::Module => "as part of a module, or executable",
        KernelArea::PerCpu => "as per-CPU variables",
        KernelArea::FrameTable => "as part of the frame table",
        KernelArea::Stack => "as a task's stack",
        KernelArea::Vmalloc => "in the vmalloc area",
        KernelArea::None | _ => "none but the map of all memory",
    }
}

/// Rows of name and value, the values aligned.
fn section(out: &mut String, rows: &[(String, String)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        let _ = writeln!(out, "  {name:width$}  {}", table::printable(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map_output::test_map;
    use kaleidoscope_core::addr::FrameIndex;
    use kaleidoscope_core::coloring::Rules;

    fn explanation(map: &ColorMap) -> Explanation<'_> {
        let frame = map.frame(FrameIndex(7)).unwrap();
        let facts = FrameFacts {
            usage: FrameUse::File,
            user_mapped: true,
            user_executable: true,
            temperature: frame.temperature,
            region: frame.region,
            position: frame.position,
            ..FrameFacts::default()
        };
        let rules = Rules::default();
        let mut reasons = rules.applying(&facts).map(Reason::from);
        let rule = reasons.next().unwrap();
        Explanation::new(Gfn(7), &facts, map, rule, reasons.collect())
    }

    #[test]
    fn facts_and_rules_are_told() {
        let map = test_map::small();
        let expected = "\
frame 0x7, guest-physical address 0x7000
  kind      file
  color     file-code
  region    ext4:65024:12:/usr/bin/perl, \"quoted\": too
  position  0x1 (by file offset)

facts
  frame table          page cache of a file
  kernel mappings      none but the map of all memory
  process mappings     a process maps it executable
  page-table walks     did not use it
  signs of recent use  accessed,active

rule
  file-code, because it is page cache of a file, and a process maps it executable
  (otherwise file-mapped, because it is page cache of a file, and a process maps it)
  (otherwise file-cache, because it is page cache of a file)
  (otherwise unknown, because nothing says what it is)
";
        assert_eq!(explanation(&map).text(), expected);
        let value: serde_json::Value = serde_json::from_str(&explanation(&map).json()).unwrap();
        assert_eq!(value["gpa"], 0x7000);
        assert_eq!(value["rule"]["color"], "file-code");
        assert_eq!(value["facts"][0][1], "page cache of a file");
        assert_eq!(value["position"], 1);
    }

    #[test]
    fn kernel_symbols_are_no_sign_of_recent_use() {
        let both = Temperature::FREQUENT | Temperature::COMMON;
        let words = |temperature| {
            let facts = FrameFacts { temperature, ..FrameFacts::default() };
            in_words(&facts).into_iter().skip(4).map(|(name, text)| format!("{name}: {text}"))
        };
        let common: Vec<_> = words(both | Temperature::ACTIVE).collect();
        assert_eq!(common[0], "signs of recent use: active");
        assert_eq!(
            common[1],
            "kernel symbols: most workloads, whatever the guest, use what is in it (common)"
        );
        let frequent: Vec<_> = words(Temperature::FREQUENT).collect();
        assert_eq!(frequent[0], "signs of recent use: none");
        assert!(frequent[1].starts_with("kernel symbols: many workloads"), "{frequent:?}");
        assert_eq!(words(Temperature::NONE).count(), 1);
    }

    #[test]
    fn addresses_outside_ram_get_a_hint() {
        let failure = not_ram(Gpa(0x20000), test_map::small().layout()).to_string();
        assert_eq!(
            failure,
            "the guest has no RAM at 0x20000\nhint: it has RAM at 0x0-0x17fff, 0x100000-0x10ffff"
        );
    }
}
