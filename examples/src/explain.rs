//! `kaleidoscope explain`: why a frame has its color.

use crate::analysis::{Explanation, LayoutArgs, Options, color, read_registers};
use crate::failure::{Failure, print};
use crate::{progress, table};
use kaleidoscope_core::addr::{FRAME_SIZE, Gpa};
use kaleidoscope_core::color::{ColorMap, Region};
use kaleidoscope_core::memory::MemoryLayout;
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// Say why a frame has its color: every fact that was observed, and the rule that decided.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope explain ram.bin --gpa 0x1f3a000
  kaleidoscope explain ram.bin --layout layout.txt --gpa 32743424 --json")]
pub(crate) struct Args {
    /// Memory image: raw, ELF core, or a VMM's memory file
    image: PathBuf,
    /// Guest-physical address, decimal or hexadecimal (0x...); any address in the frame
    #[arg(long, value_name = "N", value_parser = parse_address)]
    gpa: Gpa,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Registers of the vCPUs, as `info registers -a` of QEMU's monitor prints them
    #[arg(long, value_name = "FILE")]
    regs: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Colors the image and explains one frame.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let image = self.layout.open(&self.image)?;
        let registers = self.regs.as_deref().map(read_registers).transpose()?.unwrap_or_default();
        let options = Options { registers, cache_wins: false };
        let coloring = progress::during("coloring", || color(&image, &options))?;
        let explanation = coloring.explain(self.gpa.gfn());
        let explanation = explanation.ok_or_else(|| not_ram(self.gpa, coloring.map.layout()))?;
        print(&if self.json {
            json(self.gpa, &explanation, &coloring.map)
        } else {
            text(self.gpa, &explanation, &coloring.map)
        })
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

fn region_of<'a>(explanation: &Explanation, map: &'a ColorMap) -> Option<&'a Region> {
    map.region(explanation.frame.region?)
}

/// The explanation for people.
fn text(gpa: Gpa, explanation: &Explanation, map: &ColorMap) -> String {
    let frame = &explanation.frame;
    let mut rows = vec![
        ("kind".to_owned(), frame.kind.to_string()),
        ("color".to_owned(), frame.color.to_string()),
    ];
    if let Some(region) = region_of(explanation, map) {
        rows.push(("region".to_owned(), table::printable(&region.name)));
        rows.push(("position".to_owned(), format!("{:#x} ({})", frame.position, region.order)));
    }
    let signs = frame.temperature.to_string();
    rows.push(("signs of use".to_owned(), if signs.is_empty() { "none".into() } else { signs }));
    let mut out = format!("frame {} (guest-physical {:#x})\n", gpa.gfn(), gpa.gfn().gpa().0);
    section(&mut out, &rows);
    out.push_str("\nfacts\n");
    section(&mut out, &explanation.facts);
    let _ = writeln!(out, "\nrule\n  {}", table::printable(&explanation.rule));
    out
}

/// Rows of name and value, the values aligned.
fn section(out: &mut String, rows: &[(String, String)]) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in rows {
        let (name, value) = (table::printable(name), table::printable(value));
        let _ = writeln!(out, "  {name:width$}  {value}");
    }
}

#[derive(Serialize)]
struct Document<'a> {
    gpa: u64,
    gfn: u64,
    kind: &'a str,
    color: &'a str,
    region: Option<&'a str>,
    order: Option<&'a str>,
    position: Option<u64>,
    signs_of_use: String,
    facts: &'a [(String, String)],
    rule: &'a str,
}

/// The explanation for programs, ending with a line feed.
fn json(gpa: Gpa, explanation: &Explanation, map: &ColorMap) -> String {
    let frame = &explanation.frame;
    let region = region_of(explanation, map);
    let document = Document {
        gpa: gpa.gfn().gpa().0,
        gfn: gpa.gfn().0,
        kind: frame.kind.name(),
        color: frame.color.name(),
        region: region.map(|r| r.name.as_str()),
        order: region.map(|r| r.order.name()),
        position: region.map(|_| frame.position),
        signs_of_use: frame.temperature.to_string(),
        facts: &explanation.facts,
        rule: &explanation.rule,
    };
    // Strings and numbers always serialize.
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

fn parse_address(text: &str) -> Result<Gpa, String> {
    let digits = text.replace('_', "");
    let parsed = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    parsed.map(Gpa).map_err(|e| format!("{e}; write 0x1f3a000 or 32743424"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_map;
    use kaleidoscope_core::addr::FrameIndex;

    fn explanation(map: &ColorMap) -> Explanation {
        Explanation {
            facts: vec![
                ("frame table".into(), "flags 0x16c, mapping at 0xffff888001234560".into()),
                (
                    "page tables".into(),
                    "process 812 maps it at 0x55e0c000, executable\u{1b}[2J".into(),
                ),
            ],
            rule: "file page that a process maps executable".into(),
            frame: map.frame(FrameIndex(7)).unwrap(),
        }
    }

    #[test]
    fn the_text_has_every_fact() {
        let map = test_map::small();
        let expected = "\
frame 0x7 (guest-physical 0x7000)
  kind          file
  color         file-code
  region        ext4:65024:12:/usr/bin/perl, \"quoted\": too
  position      0x1 (file-offset)
  signs of use  accessed,active

facts
  frame table  flags 0x16c, mapping at 0xffff888001234560
  page tables  process 812 maps it at 0x55e0c000, executable\\u{1b}[2J

rule
  file page that a process maps executable
";
        assert_eq!(text(Gpa(0x7123), &explanation(&map), &map), expected);
        let value: serde_json::Value =
            serde_json::from_str(&json(Gpa(0x7123), &explanation(&map), &map)).unwrap();
        assert_eq!(value["gpa"], 0x7000);
        assert_eq!(value["facts"][0][0], "frame table");
        assert_eq!(value["position"], 1);
    }

    #[test]
    fn addresses_are_decimal_or_hex() {
        assert_eq!(parse_address("0x1f_3000"), Ok(Gpa(0x1f_3000)));
        assert_eq!(parse_address("4096"), Ok(Gpa(4096)));
        assert!(parse_address("1f3000").is_err());
        assert!(parse_address("0x1ffffffffffffffff").is_err());
    }

    #[test]
    fn addresses_outside_ram_get_a_hint() {
        let failure = not_ram(Gpa(0x20000), test_map::small().layout()).to_string();
        assert_eq!(
            failure,
            "error: the guest has no RAM at 0x20000\nhint: it has RAM at 0x0-0x17fff, 0x100000-0x10ffff"
        );
    }
}
