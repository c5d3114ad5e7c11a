//! `kaleidoscope tune`: makes a policy file from guests and traces of their clones.
//!
//! The tuner itself is in the core. This module reads [guests], tunes on them in parallel [folds],
//! and prints the scores.
mod folds;
mod guests;
mod json;
mod table;

use crate::args::ColoringArgs;
use crate::failure::Failure;
use crate::outfile::{Files, Output};
use crate::stdio::print;
use guests::Guest;
use kaleidoscope_core::prefetch::{Class, Settings, Window};
use kaleidoscope_core::tune::Tuner;
use std::path::{Path, PathBuf};

/// Longest policy file that is read, in bytes. The core has the same limit.
const MAX_POLICY: u64 = 1 << 20;

/// Find a prefetch policy's numbers on traces of what clones touched.
///
/// Colors each guest, replays the traces of its clones under many policies, and writes the best as
/// a policy file. The best has the lowest faults plus price times wasted pages, both relative to
/// blind-aligned-16: the mean over all traces.
///
/// Numbers look better on the guests they were tuned on than elsewhere. --cross-validate gives the
/// honest figures: each guest is judged with numbers that were tuned without any guest of its
/// kernel release.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
A guest is a folder as `kaleidoscope lab` makes it: ram.bin and traces/*.csv, with layout.txt and
regs.txt if there are any.

Examples:
  kaleidoscope tune guests/6.1 guests/6.12 -o mine.toml
      a policy for guests like these two
  kaleidoscope tune guests/* -o frugal.toml --name frugal --price 3
      one that would rather wait than waste
  kaleidoscope tune guests/* -o mine.toml --start mine.toml --rounds 2
      two more rounds, also with new traces
  kaleidoscope tune guests/* -o mine.toml --cross-validate --json | jq .held_out
      what to expect on guests with other kernels
  kaleidoscope tune guests/* -o others.toml --page-tables
      a policy for guests whose system is not known")]
pub(crate) struct Args {
    /// Folders of guests
    #[arg(value_name = "GUEST", required = true)]
    guests: Vec<PathBuf>,
    /// What a wasted page costs relative to a fault, when both are measured relative to
    /// blind-aligned-16
    #[arg(long, value_name = "P", default_value = "1", value_parser = price,
          allow_negative_numbers = true)]
    price: f64,
    /// Policy file to start from; plain windows of eight pages unless told otherwise
    #[arg(long, value_name = "FILE.toml")]
    start: Option<PathBuf>,
    /// Most rounds over all numbers; a round that helps little is the last
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Name of the policy; that of the file to start from, or else `tuned`
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Policy file to write
    #[arg(short, long, value_name = "FILE.toml")]
    output: PathBuf,
    #[command(flatten)]
    coloring: ColoringArgs,
    /// Also tune once without each kernel release, and judge on its guests
    #[arg(long)]
    cross_validate: bool,
    /// Print the scores as one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

fn price(text: &str) -> Result<f64, &'static str> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|n| n.is_finite() && *n >= 0.0).ok_or("it must be a number of at least 0")
}

impl Args {
    /// The files that are read and written.
    pub(crate) fn files(&self) -> Files {
        Files::new().reads_guests(&self.guests).reads(&self.start).writes([&self.output])
    }

    /// Tunes, writes the policy file, and prints the scores.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let start = self.start()?;
        let output = Output::create(&self.output)?;
        let guests: Result<Vec<_>, _> =
            self.guests.iter().map(|path| Guest::read(path, self.coloring)).collect();
        let guests = guests?;
        if self.cross_validate && folds::kernels(&guests).len() < 2 {
            let cause = "cannot cross-validate: all guests have the same kernel release";
            return Err(Failure::new(cause).hint("give guests of two or more kernels"));
        }
        let tuner = Tuner { price: self.price, rounds: self.rounds };
        let tuned = folds::run(&guests, &start, &tuner, self.cross_validate);
        let text =
            table::comment(&guests, self.coloring, &tuned, &tuner) + &tuned.settings.to_text();
        // Names of slab caches are the guests': whatever they hold, the file must say what was
        // tuned.
        if Settings::parse(&text).as_ref() != Ok(&tuned.settings) {
            return Err(Failure::new("the tuned settings cannot be written as a policy file"));
        }
        output.write(|out| out.write_all(text.as_bytes()))?;
        print(&if self.json {
            json::render(&guests, &tuned, &tuner)
        } else {
            let scores = table::render(&guests, &tuned);
            format!("{scores}\nwrote {}\n", self.output.display())
        })
    }

    /// The settings to start from, with the policy's name.
    fn start(&self) -> Result<Settings, Failure> {
        let mut settings = match &self.start {
            Some(path) => read(path)?,
            None => start(),
        };
        if let Some(name) = &self.name {
            settings.name.clone_from(name);
        }
        Ok(settings)
    }
}

/// The default settings to start from. They contain nothing that was learned from guests, which
/// would invalidate the cross-validation.
fn start() -> Settings {
    let mut settings = Settings { zero_ahead: 256, ..Settings::bare("tuned") };
    for class in Class::all() {
        // The symbols tell which pages of the kernel image are hot. From windows of 8 pages for
        // the whole image, the coordinate descent does not find this optimum.
        let is_image = ["kernel-text", "kernel-rodata", "kernel-data"].contains(&class.name());
        let (cold, hot) = if is_image { (4, 64) } else { (8, 8) };
        if let Some(window) = settings.windows.get_mut(class.index()) {
            *window = Window { cold, hot, ..Window::fixed(1) };
        }
    }
    settings
}

fn read(path: &Path) -> Result<Settings, Failure> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_POLICY + 1).read_to_string(&mut text))
        .map_err(|e| Failure::at(path, e))?;
    Settings::parse(&text).map_err(|e| {
        Failure::at(path, e).hint("--start takes a policy file, such as `kaleidoscope tune` writes")
    })
}
