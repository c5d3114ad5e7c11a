//! `kaleidoscope man`: manual pages, one for each command.

use crate::failure::Failure;
use crate::outfile::{self, Files, create_folder};
use crate::stdio::print;
use clap_mangen::Man;
use std::io;
use std::path::PathBuf;

/// Write manual pages, one for each command.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope man -o man
      kaleidoscope.1, kaleidoscope-color.1 and so on, in the folder `man`
  kaleidoscope man -o /usr/local/share/man/man1
      where `man kaleidoscope` finds them")]
pub(crate) struct Args {
    /// Folder for the pages; it is made if there is none
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

impl Args {
    /// What is written.
    pub(crate) fn files(&self) -> Files {
        let names = pages().into_iter().map(|page| self.output.join(page.get_filename()));
        Files::new().writes(names)
    }

    /// Writes the pages.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let folder = create_folder(&self.output)?;
        let mut listed = String::new();
        for page in pages() {
            let path = self.output.join(page.get_filename());
            let text = text(&page).map_err(|error| Failure::unwritable(&path, &error))?;
            outfile::write(&path, |out| out.write_all(&text))?;
            listed.push_str(&format!("{}\n", path.display()));
        }
        drop(folder);
        print(&listed)
    }
}

/// A page for each command that is not hidden.
fn pages() -> Vec<Man> {
    let mut command = super::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages);
    pages
}

fn collect(command: &clap::Command, pages: &mut Vec<Man>) {
    let source = concat!("kaleidoscope ", env!("CARGO_PKG_VERSION"));
    pages.push(Man::new(command.clone()).source(source));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        collect(sub, pages);
    }
}

fn text(page: &Man) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let pages = pages();
        let names: Vec<_> = pages.iter().map(Man::get_filename).collect();
        for name in ["kaleidoscope.1", "kaleidoscope-color.1", "kaleidoscope-lab-run.1"] {
            assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("guard") || name.contains("agent")));
        for (page, name) in pages.iter().zip(&names) {
            let text = String::from_utf8(text(page).unwrap()).unwrap();
            assert!(text.contains(".SH NAME") && text.contains("Examples:"), "{name}: {text}");
        }
    }
}
