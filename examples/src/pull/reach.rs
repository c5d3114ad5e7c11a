//! How servers are reached, and what to do where one is not.

use crate::failure::Failure;
use kaleidoscope_core::clone::ServerAddress;
use kaleidoscope_core::wire::client::{Addresses, Connector};
use kaleidoscope_core::wire::transport::Link;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, ErrorKind};

/// Servers by their addresses; remembers how the last attempt to reach each of them went.
pub(super) struct Reached {
    addresses: Addresses,
    /// By the servers' numbers: `None` is a connection, whatever the server said over it.
    attempts: Mutex<BTreeMap<usize, Option<ErrorKind>>>,
}

impl Reached {
    /// None of them was tried yet.
    pub(super) fn new(addresses: Addresses) -> Self {
        Self { addresses, attempts: Mutex::default() }
    }

    /// A failure with what to do about it, for each server that was tried.
    pub(super) fn failure(&self, error: impl Display) -> Failure {
        let attempts = self.attempts.lock();
        let text = error.to_string();
        if text.contains("refused: ") {
            return Failure::new(text).hint("the server says why; it prints more where it runs");
        }
        let hints = self.addresses.servers.iter().enumerate();
        let mut hints: Vec<_> = hints
            .filter_map(|(number, address)| Some(self.hint(address, *attempts.get(&number)?)))
            .collect();
        hints.dedup();
        Failure::new(text).hint(hints.join("\n"))
    }

    /// The same for servers of which one let this client in before.
    pub(super) fn lost(&self, error: impl Display) -> Failure {
        if self.attempts.lock().values().any(Option::is_some) {
            return self.failure(error);
        }
        Failure::new(error).hint(
            "the server let this client in before; has it ended meanwhile, or was it given another image?",
        )
    }

    fn hint(&self, address: &ServerAddress, attempt: Option<ErrorKind>) -> String {
        let own = rustix::process::geteuid().as_raw();
        let options = &self.addresses.options;
        let is_tls = options.has_tls();
        match (address, attempt) {
            (ServerAddress::Unix(_), None | Some(ErrorKind::PermissionDenied)) => format!(
                "a server lets in its own user and root, and others that it is told of: start it \
                 with `kaleidoscope serve --user {own}`, or pull as its user"
            ),
            (ServerAddress::Tcp(_), Some(ErrorKind::PermissionDenied)) if !is_tls => format!(
                "{KEYS}; --insecure does without, where everybody on the network may read and \
                 change the guest's memory"
            ),
            (ServerAddress::Tcp(_), None) if !is_tls => {
                format!("a server that was given certificates wants the client's: {KEYS}")
            }
            (ServerAddress::Tcp(_), None | Some(ErrorKind::InvalidData)) => {
                "are the certificates of one authority, and still valid? --server-name names the \
                 host that the server's is for, where the address does not; the server prints whom \
                 it turns away"
                    .to_owned()
            }
            (_, Some(ErrorKind::TimedOut | ErrorKind::WouldBlock)) => {
                "is the host up, and does a firewall let connections through? --timeout waits \
                 longer"
                    .to_owned()
            }
            (ServerAddress::Tcp(_), Some(error)) if error != ErrorKind::ConnectionRefused => {
                "is the host's name right, and is there a way to it? `kaleidoscope serve` prints \
                 where it listens"
                    .to_owned()
            }
            (_, _) => {
                "`kaleidoscope serve` prints where it listens and how to pull from it; has it ended?"
                    .to_owned()
            }
        }
    }
}

/// Where a client's certificate comes from.
const KEYS: &str = "`kaleidoscope keys -o DIR` makes certificates for a server and its clients, which \
                    take --cert DIR/client.pem --key DIR/client-key.pem --ca DIR/ca.pem";

impl Connector for Reached {
    fn replicas(&self) -> usize {
        self.addresses.replicas()
    }

    fn dial(&self, replica: usize) -> io::Result<Link> {
        let result = self.addresses.dial(replica);
        let attempt = result.as_ref().err().map(io::Error::kind);
        self.attempts.lock().insert(replica, attempt);
        result
    }

    fn name(&self, replica: usize) -> String {
        self.addresses.name(replica)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_core::wire::transport::ConnectOptions;

    fn hint(address: &str) -> String {
        let servers = vec![address.parse().unwrap()];
        let reached = Reached::new(Addresses { servers, options: ConnectOptions::default() });
        let error = reached.dial(0).unwrap_err();
        reached.failure(error).to_string()
    }

    #[test]
    fn each_reason_has_its_hint() {
        let folder = tempfile::tempdir().unwrap();
        let nothing = hint(&format!("unix:{}", folder.path().join("none").display()));
        assert!(nothing.contains("serve` prints"), "{nothing}");
        let other_host = hint("tcp:192.0.2.1:7411");
        assert!(other_host.contains("kaleidoscope keys"), "{other_host}");
        assert!(!other_host.contains("openssl"), "{other_host}");

        let at = |text: &str| text.parse::<ServerAddress>().unwrap();
        let options = ConnectOptions::default();
        let reached = Reached::new(Addresses { servers: Vec::new(), options });
        for attempt in [None, Some(ErrorKind::PermissionDenied)] {
            let hint = reached.hint(&at("unix:/run/k"), attempt);
            assert!(hint.contains("--user"), "{hint}");
        }
        let hint = reached.hint(&at("tcp:192.0.2.1:1"), Some(ErrorKind::TimedOut));
        assert!(hint.contains("firewall"), "{hint}");
        let hint = reached.hint(&at("tcp:nowhere:1"), Some(ErrorKind::Other));
        assert!(hint.contains("host's name"), "{hint}");
        let hint = reached.hint(&at("tcp:127.0.0.1:1"), None);
        assert!(hint.contains("client.pem"), "{hint}");
    }

    #[test]
    fn each_server_that_was_tried_has_a_hint() {
        let servers = ["unix:/nowhere/k", "tcp:192.0.2.1:1"].map(|text| text.parse().unwrap());
        let options = ConnectOptions::default();
        let reached = Reached::new(Addresses { servers: servers.to_vec(), options });
        assert!(!reached.failure("no").to_string().contains("keys"));
        (0..2).for_each(|replica| drop(reached.dial(replica).unwrap_err()));
        let failure = reached.failure("no").to_string();
        assert!(failure.contains("serve` prints") && failure.contains("keys"), "{failure}");
        let refused = reached.failure("k: refused: too many connections: 7 of 7").to_string();
        assert!(refused.contains("the server says why"), "{refused}");
    }
}
