//! TCP: loopback checks, and socket options for page transfer.

use super::options::ListenError;
use rustix::net::sockopt;
use socket2::SockRef;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Idle time before the first keepalive probe, and the time between later probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Unanswered keepalive probes after which the connection is lost.
const KEEPALIVE_TRIES: u32 = 3;

/// Whether only processes of this host can reach the address.
pub(super) fn is_loopback(address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
    }
}

/// The addresses of a host name, at least one.
pub(super) fn resolve(name: &str) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<_> = name.to_socket_addrs()?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

/// Listens at the first of the name's addresses that works. Unless peers are `known`, i.e.
/// authenticated by TLS, all of them must be loopback addresses, because the resolver chooses their
/// order.
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

/// Accepts one connection; `None` if there is none.
pub(super) fn accept(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    match listener.accept() {
        Ok(accepted) => Ok(Some(accepted)),
        Err(error) if is_transient(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an error of `accept` concerns a single connection, or means that none is queued.
pub(super) fn is_transient(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // Linux reports pending errors of the new connection here; see accept(2).
    const TRANSIENT: [Errno; 11] = [
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
    error.raw_os_error().is_some_and(|code| TRANSIENT.contains(&Errno::from_raw_os_error(code)))
}

/// Connects to the first of the addresses that answers, all within `timeout`.
pub(super) fn connect(addresses: &[SocketAddr], timeout: Duration) -> io::Result<TcpStream> {
    let start = Instant::now();
    let mut failure = io::Error::new(ErrorKind::TimedOut, "no time to connect");
    for (tried, address) in addresses.iter().enumerate() {
        // Divide the time, so that an unresponsive address leaves some for the others.
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

/// Sets the socket options for page transfer.
pub(super) fn prepare(stream: &TcpStream, unsent: u32, send_timeout: Duration) -> io::Result<()> {
    let fd = stream.as_fd();
    // A request is small and must not wait for more data.
    sockopt::set_tcp_nodelay(fd, true)?;
    // A peer whose host died sends nothing: probe, and time out on unacknowledged data.
    sockopt::set_socket_keepalive(fd, true)?;
    sockopt::set_tcp_keepidle(fd, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(fd, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(fd, KEEPALIVE_TRIES)?;
    let send_timeout = u32::try_from(send_timeout.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(fd, send_timeout.max(1))?;
    // The send buffer grows to megabytes, and its unsent part would precede an urgent page. Data in
    // flight does not count towards this limit, so it does not slow down long-distance links.
    SockRef::from(stream).set_tcp_notsent_lowat(unsent.max(4096))
}
