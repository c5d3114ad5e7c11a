//! The client's side of a connection.

use super::link::Link;
use super::options::ConnectOptions;
use super::peer::Peer;
use super::{tcp, unix};
use crate::clone::ServerAddress;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

/// Connects to a server.
///
/// # Errors
/// [`ErrorKind::PermissionDenied`] if the address is on another host and there is no TLS to
/// authenticate it; [`ErrorKind::TimedOut`] after [`ConnectOptions::timeout`]; or the system's
/// error.
pub fn connect(address: &ServerAddress, options: &ConnectOptions) -> io::Result<Link> {
    let connected = match address {
        ServerAddress::Unix(path) => {
            let socket = unix::connect_path(path, options.timeout)?;
            unix::prepare(&socket, options.unsent)?;
            let peer = Peer::of_unix(&socket)?;
            Link::plain(socket, peer, options.send_timeout)
        }
        ServerAddress::Tcp(name) => connect_tcp(name, options),
    };
    connected.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
}

fn connect_tcp(name: &str, options: &ConnectOptions) -> io::Result<Link> {
    let addresses = tcp::resolve(name)?;
    #[cfg(feature = "tls")]
    if let Some(tls) = &options.tls {
        let start = std::time::Instant::now();
        let stream = tcp::connect(&addresses, options.timeout)?;
        tcp::prepare(&stream, options.unsent, options.send_timeout)?;
        let address = stream.peer_addr()?;
        let left = options.timeout.saturating_sub(start.elapsed());
        return tls.connect(stream.into(), name, address, options.send_timeout, left);
    }
    if let Some(other) = addresses.iter().find(|at| !options.insecure && !tcp::is_loopback(at)) {
        let message = format!(
            "{other} is another host: give a certificate, a key and a CA for TLS, \
             or allow insecure connections where the network is trusted"
        );
        return Err(io::Error::new(ErrorKind::PermissionDenied, message));
    }
    let stream = tcp::connect(&addresses, options.timeout)?;
    tcp::prepare(&stream, options.unsent, options.send_timeout)?;
    let peer = Peer::Tcp { address: stream.peer_addr()?, subject: None };
    Link::plain(OwnedFd::from(stream), peer, options.send_timeout)
}
