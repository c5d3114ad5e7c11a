//! A command that has arguments of its own, or a subcommand.

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Subcommand};

/// A command's own arguments, or a subcommand with its. Derived code would want those of the
/// command in both cases.
#[derive(Clone, Debug)]
pub(crate) enum OrSubcommand<A, S> {
    Own(Box<A>),
    Sub(S),
}

impl<A: Args, S: Subcommand> FromArgMatches for OrSubcommand<A, S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        Ok(match matches.subcommand_name() {
            Some(_) => Self::Sub(S::from_arg_matches(matches)?),
            None => Self::Own(Box::new(A::from_arg_matches(matches)?)),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<A: Args, S: Subcommand> Args for OrSubcommand<A, S> {
    fn augment_args(command: Command) -> Command {
        // Before the arguments, whose description is the command's.
        let command = S::augment_subcommands(command)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true);
        A::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
