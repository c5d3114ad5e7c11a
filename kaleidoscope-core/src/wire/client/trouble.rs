//! Why a client drops a connection.

use super::statistics::{Counters, add};
use crate::wire::protocol::{ErrorCode, ProtocolError, Violation};
use std::fmt;
use std::io;
use std::time::Duration;

/// Why a client drops a connection.
#[derive(Debug)]
pub(super) enum DisconnectReason {
    Closed,
    Io(io::Error),
    Broken,
    Ended(ErrorCode, String),
    Protocol(ProtocolError),
    Silent(Duration),
}

impl From<ProtocolError> for DisconnectReason {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl DisconnectReason {
    /// Counts a dropped connection.
    pub(super) fn count(&self, counters: &Counters) {
        add(&counters.disconnects, 1);
        match self {
            Self::Protocol(error) => match error.violation {
                Violation::Checksum { .. } | Violation::DescriptorChecksum => {
                    add(&counters.checksum_failures, 1);
                }
                Violation::Magic
                | Violation::Version { .. }
                | Violation::Type { .. }
                | Violation::Value { .. }
                | Violation::TooLarge { .. }
                | Violation::OutsideImage { .. }
                | Violation::Length { .. }
                | Violation::Compression { .. }
                | Violation::NotAskedFor { .. }
                | Violation::Repeated { .. }
                | Violation::Unexpected => add(&counters.violations, 1),
            },
            Self::Silent(_) => add(&counters.silences, 1),
            Self::Closed | Self::Io(_) | Self::Broken | Self::Ended(..) => {}
        }
    }
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the server"),
            Self::Io(error) => write!(f, "receiving: {error}"),
            Self::Broken => f.write_str("sending failed"),
            Self::Ended(code, text) if text.is_empty() => write!(f, "ended by the server: {code}"),
            Self::Ended(code, text) => write!(f, "ended by the server: {code}: {text}"),
            Self::Protocol(error) => error.fmt(f),
            Self::Silent(time) => write!(f, "a page did not arrive for {} ms", time.as_millis()),
        }
    }
}
