//! The hidden command `commands`: every command that there is, for the test that runs each of them.

use crate::failure::Failure;
use crate::stdio::print;
use clap::builder::ValueParser;
use std::fmt::Write;

/// List all commands, each with its arguments that are paths. Not for users.
#[derive(Debug, clap::Args)]
pub(crate) struct Args;

impl Args {
    /// Prints a line for each command: its words, a tab, and its paths, separated by blanks:
    /// `--output` for an option, `image` for one that has a place.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let mut text = String::new();
        list(&super::command(), "", &mut text);
        print(&text)
    }
}

fn list(command: &clap::Command, words: &str, out: &mut String) {
    let path = ValueParser::path_buf().type_id();
    let is_path = |arg: &&clap::Arg| arg.get_value_parser().type_id() == path;
    let name = |arg: &clap::Arg| match arg.get_long() {
        Some(long) => format!("--{long}"),
        None => arg.get_id().to_string(),
    };
    let has_own_work = !command.is_subcommand_required_set() && !words.is_empty();
    if has_own_work {
        let paths: Vec<_> = command.get_arguments().filter(is_path).map(name).collect();
        let _ = writeln!(out, "{words}\t{}", paths.join(" "));
    }
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        list(sub, format!("{words} {}", sub.get_name()).trim_start(), out);
    }
}
