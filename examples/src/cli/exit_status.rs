//! The exit status of every command, and the paragraph of its help that says so.

use clap::Command;
use std::process::ExitCode;

/// A check found something wrong.
pub(crate) fn finding() -> ExitCode {
    ExitCode::from(1)
}

/// The command was used wrongly, or could not do its work.
pub(crate) fn error() -> ExitCode {
    ExitCode::from(2)
}

/// What the commands that check something find, by their names.
const FINDINGS: [(&str, &str); 4] = [
    ("check", "the coloring is wrong"),
    ("clone", "--check: a clone's kernel contradicts the colors"),
    ("map", "--verify: the map is of another image"),
    ("pull", "the server sent other bytes than the image's"),
];

/// Adds the exit status to the help of every command.
pub(super) fn documented(command: Command) -> Command {
    with_text(command, "a check found something wrong")
        .mut_subcommands(|sub| documented_below(sub, ""))
}

fn documented_below(command: Command, above: &str) -> Command {
    if command.is_subcommand_required_set() {
        // It has no work of its own.
        let path = format!("{above}{} ", command.get_name());
        return command.mut_subcommands(|sub| documented_below(sub, &path));
    }
    let path = format!("{above}{}", command.get_name());
    let found = FINDINGS.iter().find(|(name, _)| *name == path);
    let command = with_text(command, found.map_or("", |(_, text)| text));
    command.mut_subcommands(|sub| documented_below(sub, &format!("{path} ")))
}

fn with_text(command: Command, finding: &str) -> Command {
    let finding = match finding {
        "" => String::new(),
        text => format!("  1  {text}\n"),
    };
    let text = format!(
        "Exit status:\n  0  success\n{finding}  2  an error: wrong use, input that cannot be \
         read, output that cannot be written"
    );
    let text = match command.get_after_help() {
        Some(before) => format!("{before}\n\n{text}"),
        None => text,
    };
    command.after_help(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_finding_is_of_a_command() {
        let command = super::super::Cli::command();
        for (name, _) in super::FINDINGS {
            assert!(command.find_subcommand(name).is_some(), "{name}");
        }
    }
}
