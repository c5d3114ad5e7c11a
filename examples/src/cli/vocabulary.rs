//! Walks all commands and holds them to one vocabulary of flags.

use super::{WIDTH, command};
use clap::{Arg, Command};
use std::collections::BTreeMap;

/// Words that are no flags here, and what to say instead.
const FORBIDDEN: &[(&str, &str)] = &[
    ("address", "gpa"),
    ("bytes", "memory"),
    ("chart", "plot"),
    ("dir", "output"),
    ("file", "output, or a word with -from or -to"),
    ("frame", "gpa or gfn"),
    ("frames", "frames-from or frames-to"),
    ("image", "plot"),
    ("largest", "max-memory"),
    ("learn", "hit-rates-to"),
    ("manifest", "map-from or map-to"),
    ("mb", "memory"),
    ("mib", "memory"),
    ("out", "output"),
    ("patience", "timeout"),
    ("pfn", "gfn"),
    ("picture", "plot"),
    ("png", "plot"),
    ("ram", "memory"),
    ("regions", "regions-from or regions-to"),
    ("seconds", "timeout or duration"),
    ("size", "memory"),
    ("svg", "plot"),
    ("wait", "timeout"),
];

/// The value names of flags that several commands have: one for each, whatever the command.
const VALUE_NAMES: &[(&str, &str)] = &[
    ("duration", "SECONDS"),
    ("frames-from", "FILE.csv"),
    ("frames-to", "FILE.csv"),
    ("max-memory", "SIZE"),
    // A size where memory is made, a memory file where it is served.
    ("memory", "SIZE|MEM"),
    ("policy", "NAME"),
    ("regs", "FILE"),
    ("timeout", "SECONDS"),
];

/// Every command that is not hidden, with its words.
fn commands() -> Vec<(String, Command)> {
    fn collect(command: &Command, words: &str, all: &mut Vec<(String, Command)>) {
        all.push((words.to_owned(), command.clone()));
        let subs = command.get_subcommands();
        for sub in subs.filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            collect(sub, &format!("{words} {}", sub.get_name()), all);
        }
    }
    let mut root = command();
    root.build();
    let mut all = Vec::new();
    collect(&root, root.get_name(), &mut all);
    assert!(all.len() > 20, "{}", all.len());
    all
}

fn longs(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)))
}

#[test]
fn no_command_has_a_forbidden_flag() {
    for (words, command) in commands() {
        for (long, _) in longs(&command) {
            let found = FORBIDDEN.iter().find(|(forbidden, _)| *forbidden == long);
            assert!(found.is_none(), "{words}: say {found:?}");
            assert!(!long.contains('_'), "{words}: --{long}");
        }
    }
}

#[test]
fn outputs_have_the_short_flag_and_no_place() {
    for (words, command) in commands() {
        for (long, arg) in longs(&command) {
            assert_eq!(arg.get_short() == Some('o'), long == "output", "{words}: --{long}");
        }
        let mut places = command.get_positionals().map(|arg| arg.get_id().as_str());
        assert!(!places.any(|id| id.contains("out")), "{words}: an output has a place");
    }
}

#[test]
fn a_flag_has_one_kind_of_value() {
    let wanted: BTreeMap<_, _> = VALUE_NAMES.iter().copied().collect();
    for (words, command) in commands() {
        for (long, arg) in longs(&command).filter(|(_, arg)| arg.get_action().takes_values()) {
            let names = arg.get_value_names().unwrap_or_default();
            let name = names.first().map_or("", |name| name.as_str());
            if let Some(wanted) = wanted.get(long) {
                assert!(wanted.split('|').any(|one| one == name), "{words}: --{long} {name}");
            }
            let is_written_or_read = long.ends_with("-to") || long.ends_with("-from");
            assert!(!is_written_or_read || name.starts_with("FILE"), "{words}: --{long} {name}");
        }
    }
}

#[test]
fn whatever_colors_an_image_can_do_so_by_page_tables() {
    let all = commands();
    let coloring: Vec<_> = all
        .iter()
        .filter(|(_, command)| longs(command).any(|(long, _)| long == "regs"))
        .map(|(words, command)| (words, longs(command).any(|(long, _)| long == "page-tables")))
        .collect();
    assert!(coloring.len() >= 6, "{coloring:?}");
    for (words, has) in coloring {
        assert!(has, "{words}");
    }
}

#[test]
fn every_help_has_an_example_that_is_right() {
    for (words, mut command) in commands() {
        let help = command.render_long_help().to_string();
        let examples = help.split("\nExamples:\n").nth(1);
        let examples = examples.unwrap_or_else(|| panic!("{words} has no example"));
        let own = format!("  {words} ");
        let mut lines = examples.lines();
        let is_own = |line: &str| line.starts_with(&own) || line == own.trim_end();
        assert!(lines.any(is_own), "{words}: {examples}");
        assert!(help.contains("\nExit status:\n") || command.is_subcommand_required_set());
    }
}

/// The command lines of all examples: without comments, pipes and continuation signs.
fn examples(help: &str) -> Vec<String> {
    let text = help.replace("\\\n", " ");
    let lines = text.lines().filter_map(|line| line.strip_prefix("  kaleidoscope "));
    let own = lines.map(|line| line.split(" | ").next().unwrap_or(line));
    own.map(|line| line.split(" > ").next().unwrap_or(line).to_owned()).collect()
}

#[test]
fn examples_can_be_parsed() {
    for (words, mut command) in commands() {
        for example in examples(&command.render_long_help().to_string()) {
            // A shell would keep quoted words together.
            let mut quoted = false;
            let split = example.split(|c| {
                quoted ^= c == '\'';
                c == ' ' && !quoted
            });
            let own = split.filter(|word| !word.is_empty()).map(|word| word.trim_matches('\''));
            let line: Vec<_> = ["kaleidoscope"].into_iter().chain(own).collect();
            match super::parse_from(&line) {
                Ok(_) => {}
                Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelp => {}
                Err(error) => panic!("{words}: {line:?}: {error}"),
            }
        }
    }
}

#[test]
fn help_is_not_wide() {
    for (words, mut command) in commands() {
        for help in [command.render_long_help(), command.render_help()] {
            for line in help.to_string().lines() {
                assert!(line.chars().count() <= WIDTH, "{words}: {line}");
            }
        }
    }
}

#[test]
fn the_version_is_that_of_the_program() {
    let version = command().render_version();
    assert_eq!(version, format!("kaleidoscope {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_commands_are_consistent() {
    super::removed::known(command()).debug_assert();
}
