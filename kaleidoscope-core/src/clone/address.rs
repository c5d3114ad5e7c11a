//! Addresses of page servers.

use crate::color::UnknownName;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a page server: `unix:PATH` or `tcp:HOST:PORT`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ServerAddress {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// Host and port, as the system's resolver accepts them. An IPv6 address is in brackets.
    Tcp(String),
}

impl FromStr for ServerAddress {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let error = || UnknownName::with_advice("address", text, "unix:PATH or tcp:HOST:PORT");
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", at)) => {
                let (host, port) = at.rsplit_once(':').ok_or_else(error)?;
                if host.is_empty() || port.parse::<u16>().is_err() {
                    return Err(error());
                }
                Ok(Self::Tcp(at.to_owned()))
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(at) => write!(f, "tcp:{at}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in ["unix:/run/k.sock", "unix:relative", "tcp:localhost:7411", "tcp:[::1]:1"] {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "tcp:", "tcp:7411", "tcp::1", "tcp:host:70000", "vsock:3:1"] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }
}
