//! Flags that earlier versions had. They are refused as any other unknown flag is, with a tip that
//! names the flag to use instead.

use clap::builder::UnknownArgumentValueParser;
use clap::{Arg, Command};

/// A flag that is no more.
struct Removed {
    /// The subcommand's words.
    command: &'static str,
    long: &'static str,
    instead: &'static str,
}

const fn removed(command: &'static str, long: &'static str, instead: &'static str) -> Removed {
    Removed { command, long, instead }
}

const REMOVED: &[Removed] = &[
    removed("bench", "largest", "--max-memory"),
    removed("bench kvm", "largest", "--max-memory"),
    removed("check", "frames", "--frames-from"),
    removed("check", "regions", "--regions-from"),
    removed("clone", "mib", "--memory"),
    removed("clone", "out", "--output"),
    removed("clone", "patience", "--timeout"),
    removed("color", "frames", "--frames-to"),
    removed("color", "png", "--plot"),
    removed("color", "regions", "--regions-to"),
    removed("dedup", "hit-rates", "--hit-rates-from"),
    removed("dedup", "learn", "--hit-rates-to"),
    removed("dedup", "png", "--plot"),
    removed("demo", "out", "--output"),
    removed("lab run", "patience", "--timeout"),
    removed("lab symbols", "least-heat", "--min-share"),
    removed("lab symbols", "least-kernels", "--min-kernels"),
    removed("lab trace", "patience", "--timeout"),
    removed("lab trace", "seconds", "--duration"),
    removed("map", "frames", "--frames-to"),
    removed("map", "png", "--plot"),
    removed("map", "regions", "--regions-to"),
    removed("pull", "layout", "--layout-to"),
    removed("pull", "manifest", "--map-to"),
    removed("pull", "patience", "--timeout"),
    removed("record inspect", "regions", "--top"),
    removed("serve", "descriptor", "--descriptor-to"),
    removed("serve", "manifest", "--map-from"),
];

/// Makes the removed flags known to the parser, which then names what replaced them.
pub(super) fn known(command: Command) -> Command {
    command.mut_subcommands(|sub| known_below(sub, ""))
}

fn known_below(command: Command, above: &str) -> Command {
    let path = format!("{above}{}", command.get_name());
    let own = REMOVED.iter().filter(|removed| removed.command == path);
    let command = command.args(own.map(Removed::arg));
    command.mut_subcommands(|sub| known_below(sub, &format!("{path} ")))
}

impl Removed {
    fn arg(&self) -> Arg {
        Arg::new(self.long)
            .long(self.long)
            .value_name("VALUE")
            .hide(true)
            .value_parser(UnknownArgumentValueParser::suggest_arg(self.instead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    #[test]
    fn removed_flags_are_refused_with_a_tip() {
        for Removed { command, long, instead } in REMOVED {
            let flag = format!("--{long}");
            let words = ["kaleidoscope"].into_iter().chain(command.split(' '));
            let words = words.chain([flag.as_str(), "value"]);
            let error = super::super::parse_from(words).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownArgument, "{command} {flag}: {error}");
            let tip = format!("tip: a similar argument exists: '{instead}'");
            assert!(error.to_string().contains(&tip), "{command} {flag}: {error}");
        }
    }

    #[test]
    fn what_replaces_a_removed_flag_exists() {
        let root = super::super::command();
        for Removed { command, long, instead } in REMOVED {
            let found = command.split(' ').try_fold(&root, |at, word| at.find_subcommand(word));
            let longs: Vec<_> = found.unwrap().get_arguments().filter_map(Arg::get_long).collect();
            assert!(longs.contains(&instead.trim_start_matches('-')), "{command} {instead}");
            assert!(!longs.contains(long), "{command} --{long}");
        }
    }
}
