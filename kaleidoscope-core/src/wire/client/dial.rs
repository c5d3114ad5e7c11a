//! How a client reaches its servers.

use crate::clone::ServerAddress;
use crate::wire::transport::{ConnectOptions, Link, connect};
use std::io;

/// The servers that have the image, and how to reach each of them.
pub trait Connector: Send + Sync {
    /// Number of servers, at least one.
    fn replicas(&self) -> usize;

    /// Connects to a server, in bounded time. `replica` counts from 0.
    ///
    /// # Errors
    /// The system's error if the server cannot be reached.
    fn dial(&self, replica: usize) -> io::Result<Link>;

    /// Name of a server, for messages.
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
