//! The messages that host and agent exchange over the guest's second serial port, one per line.

use std::fmt::{self, Display};

/// A message from the agent to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FromGuest {
    /// The agent runs.
    Ready,
    /// The workload is warm and idle.
    Warm,
    /// Everything is dumped, and page flags were just read: the host may pause the guest.
    Bracket,
    /// Page flags were read again and written; the dump is complete.
    Done,
    /// A workload has started in a clone.
    Began,
    /// The workload has ended with this exit status.
    Ended(i32),
    /// The agent gave up.
    Failed(String),
}

/// A message from the host to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FromHost {
    /// Start the dump.
    Dump,
    /// Load the crash kernel and panic into it. The agent then sends `ready` again, from there.
    Crash,
    /// The pause is over: read the page flags again.
    Again,
    /// This is a clone: run this script with bash. It is sent as a JSON string, because it may
    /// contain line feeds.
    Run(String),
}

impl FromGuest {
    /// Parses a line; `None` for anything else, such as console output.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.trim() {
            "ready" => Some(Self::Ready),
            "warm" => Some(Self::Warm),
            "bracket" => Some(Self::Bracket),
            "done" => Some(Self::Done),
            "began" => Some(Self::Began),
            other => match other.split_once(' ')? {
                ("ended", status) => status.parse().ok().map(Self::Ended),
                ("failed", why) => Some(Self::Failed(why.to_owned())),
                _ => None,
            },
        }
    }
}

impl FromHost {
    /// Parses a line; `None` for anything else.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.trim() {
            "dump" => Some(Self::Dump),
            "crash" => Some(Self::Crash),
            "again" => Some(Self::Again),
            other => serde_json::from_str(other.strip_prefix("run ")?).ok().map(Self::Run),
        }
    }
}

impl Display for FromGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Warm => f.write_str("warm"),
            Self::Bracket => f.write_str("bracket"),
            Self::Done => f.write_str("done"),
            Self::Began => f.write_str("began"),
            Self::Ended(status) => write!(f, "ended {status}"),
            Self::Failed(why) => write!(f, "failed {}", why.replace('\n', " ")),
        }
    }
}

impl Display for FromHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dump => f.write_str("dump"),
            Self::Crash => f.write_str("crash"),
            Self::Again => f.write_str("again"),
            Self::Run(script) => write!(f, "run {}", serde_json::Value::from(script.as_str())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_line() {
        let failed = FromGuest::Failed("no swap".to_owned());
        for word in [
            FromGuest::Ready,
            FromGuest::Warm,
            FromGuest::Bracket,
            FromGuest::Done,
            FromGuest::Began,
            FromGuest::Ended(-9),
            failed,
        ] {
            assert_eq!(FromGuest::parse(&format!("{word}\r\n")), Some(word));
        }
        let script = FromHost::Run("echo \"a\\b\"\nexit 3 # äöü".to_owned());
        assert_eq!(script.to_string().lines().count(), 1);
        for word in [FromHost::Dump, FromHost::Crash, FromHost::Again, script] {
            assert_eq!(FromHost::parse(&format!("{word}\n")), Some(word));
        }
        assert_eq!(FromGuest::parse("[ 0.1] Linux"), None);
        assert_eq!(FromGuest::parse("ended well"), None);
        assert_eq!(FromHost::parse("run echo"), None);
    }
}
