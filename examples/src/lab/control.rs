//! The words that host and agent exchange over the guest's second serial port, one per line.

use std::fmt::{self, Display};

/// What the agent tells the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FromGuest {
    /// The agent runs.
    Ready,
    /// The workload is warm and still.
    Warm,
    /// Everything is dumped; page flags were read just now: pause.
    Bracket,
    /// Page flags were read again and written; the dump is complete.
    Done,
    /// The agent gave up.
    Failed(String),
}

/// What the host tells the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromHost {
    /// Start the dump.
    Dump,
    /// The pause is over: read the page flags again.
    Again,
}

impl FromGuest {
    /// Reads a line; `None` for noise.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.trim() {
            "ready" => Some(Self::Ready),
            "warm" => Some(Self::Warm),
            "bracket" => Some(Self::Bracket),
            "done" => Some(Self::Done),
            other => other.strip_prefix("failed ").map(|why| Self::Failed(why.to_owned())),
        }
    }
}

impl FromHost {
    /// Reads a line; `None` for noise.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.trim() {
            "dump" => Some(Self::Dump),
            "again" => Some(Self::Again),
            _ => None,
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
            Self::Failed(why) => write!(f, "failed {}", why.replace('\n', " ")),
        }
    }
}

impl Display for FromHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dump => "dump",
            Self::Again => "again",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_line() {
        let failed = FromGuest::Failed("no swap".to_owned());
        for word in [FromGuest::Ready, FromGuest::Warm, FromGuest::Bracket, FromGuest::Done, failed]
        {
            assert_eq!(FromGuest::parse(&format!("{word}\r\n")), Some(word));
        }
        for word in [FromHost::Dump, FromHost::Again] {
            assert_eq!(FromHost::parse(&format!("{word}\n")), Some(word));
        }
        assert_eq!(FromGuest::parse("[ 0.1] Linux"), None);
    }
}
