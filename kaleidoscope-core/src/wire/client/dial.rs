//! How servers are reached.

use crate::clone::ServerAddress;
use crate::wire::transport::{ConnectOptions, Link, connect};
use std::io;

/// The servers that have the image, and how each is reached.
pub trait Connector: Send + Sync {
    /// How many there are, at least one.
    fn replicas(&self) -> usize;

    /// Connects to one of them, in bounded time.
    ///
    /// # Errors
    /// The system's reason when it cannot be reached.
    fn dial(&self, replica: usize) -> io::Result<Link>;

    /// What to call one of them, for people.
    fn name(&self, replica: usize) -> String;
}

/// Servers by their addresses.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The addresses, the preferred one first.
    pub servers: Vec<ServerAddress>,
    /// How to connect.
    pub options: ConnectOptions,
}

impl Connector for Addresses {
    fn replicas(&self) -> usize {
        self.servers.len()
    }

    fn dial(&self, replica: usize) -> io::Result<Link> {
        let server = self.servers.get(replica).ok_or(io::ErrorKind::NotFound)?;
        connect(server, &self.options)
    }

    fn name(&self, replica: usize) -> String {
        self.servers.get(replica).map(ToString::to_string).unwrap_or_default()
    }
}
