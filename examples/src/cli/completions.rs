//! `kaleidoscope completions`: completion scripts for shells.

use super::NAME;
use crate::failure::Failure;
use crate::stdio::print;
use clap_complete::Shell;

/// Print a completion script for a shell.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope completions bash > /etc/bash_completion.d/kaleidoscope
      for all users of Bash
  kaleidoscope completions zsh > ~/.zfunc/_kaleidoscope
      for Zsh, where ~/.zfunc is in $fpath
  kaleidoscope completions fish > ~/.config/fish/completions/kaleidoscope.fish
      for fish")]
pub(crate) struct Args {
    /// Shell that the script is for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Args {
    /// Prints the script.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        print(&script(self.shell))
    }
}

fn script(shell: Shell) -> String {
    // Hidden commands are for other processes, and their names for no user.
    let all = super::command();
    let shown = all.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned();
    let mut command =
        clap::Command::new(NAME).version(env!("CARGO_PKG_VERSION")).subcommands(shown);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let script = script(*shell);
            let commands = super::super::command();
            for sub in commands.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                assert!(script.contains(sub.get_name()), "{shell}: {}", sub.get_name());
            }
            for flag in ["frames-to", "page-tables", "output"] {
                assert!(script.contains(flag), "{shell}: {flag}");
            }
            for hidden in ["--mib", "lab-agent", "undo-guard"] {
                assert!(!script.contains(hidden), "{shell}: {hidden}");
            }
        }
    }
}
