//! TCP: which addresses are this host's own, and how a connection is set up for pages.

use super::options::ListenError;
use rustix::net::sockopt;
use socket2::SockRef;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Silence after which the peer is asked whether it is still there, and the time between later
/// questions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Questions without an answer after which the connection is lost.
const KEEPALIVE_TRIES: u32 = 3;

/// Whether only processes of this host can reach the address.
pub(super) fn is_loopback(address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
    }
}

/// The addresses that a name stands for, at least one.
pub(super) fn resolve(name: &str) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<_> = name.to_socket_addrs()?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(ErrorKind::NotFound, "the name stands for no address"));
    }
    Ok(addresses)
}

/// Listens at the first of the name's addresses that can be listened at. Unless peers are `known`,
/// all of them must be loopback addresses: which one it will be is the resolver's choice.
pub(super) fn listen(name: &str, known: bool) -> Result<TcpListener, ListenError> {
    let addresses = resolve(name)
        .map_err(|source| ListenError::Unresolved { name: name.to_owned(), source })?;
    if let Some(&address) = addresses.iter().find(|at| !known && !is_loopback(at)) {
        return Err(ListenError::NotLoopback { address });
    }
    let listener = TcpListener::bind(addresses.as_slice()).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| ListenError::Io { address: format!("tcp:{name}"), source })
}

/// Accepts one connection; `None` when there is none (any more).
pub(super) fn accept(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    match listener.accept() {
        Ok(accepted) => Ok(Some(accepted)),
        Err(error) if is_passing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an error of `accept` is about one connection, or about none being there.
pub(super) fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // Linux reports errors of the new connection here; see accept(2).
    const PASSING: [Errno; 11] = [
        Errno::AGAIN,
        Errno::INTR,
        Errno::CONNABORTED,
        Errno::PROTO,
        Errno::NETDOWN,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::HOSTUNREACH,
        Errno::OPNOTSUPP,
        Errno::NETUNREACH,
    ];
    error.raw_os_error().is_some_and(|code| PASSING.contains(&Errno::from_raw_os_error(code)))
}

/// Connects to the first of the addresses that answers, all within `timeout`.
pub(super) fn connect(addresses: &[SocketAddr], timeout: Duration) -> io::Result<TcpStream> {
    let start = Instant::now();
    let mut failure = io::Error::new(ErrorKind::TimedOut, "no time to connect");
    for (tried, address) in addresses.iter().enumerate() {
        // An address that swallows everything leaves time for the ones after it.
        let left = timeout.saturating_sub(start.elapsed());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        if share.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(address, share) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(failure)
}

/// Sets a connection up for pages.
pub(super) fn prepare(stream: &TcpStream, unsent: u32, send_timeout: Duration) -> io::Result<()> {
    let fd = stream.as_fd();
    // A request is small and must not wait for more to send.
    sockopt::set_tcp_nodelay(fd, true)?;
    // A peer whose host died says nothing: ask, and give up on what it does not confirm.
    sockopt::set_socket_keepalive(fd, true)?;
    sockopt::set_tcp_keepidle(fd, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(fd, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(fd, KEEPALIVE_TRIES)?;
    let send_timeout = u32::try_from(send_timeout.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(fd, send_timeout.max(1))?;
    // The send buffer grows to megabytes; what the network has not taken of it would all go out
    // before an urgent page. What is on its way and not confirmed yet does not count, so this
    // does not slow a long way down.
    SockRef::from(stream).set_tcp_notsent_lowat(unsent.max(4096))
}
