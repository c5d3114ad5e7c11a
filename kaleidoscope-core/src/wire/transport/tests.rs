//! Properties of every transport, and access control.

use super::*;
use crate::clone::ServerAddress;
use parking_lot::Mutex;
use std::io::{ErrorKind, IoSlice};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Watchdog timeout, far above the duration of any test.
const LONG: Duration = Duration::from_secs(60);

/// Both ends of a link through a listener.
fn through(address: &str, listen: ListenOptions, connecting: &ConnectOptions) -> (Link, Link) {
    let listener = Listener::bind(&address.parse().unwrap(), listen).unwrap();
    let client = connect(&listener.local_address(), connecting);
    let server = listener.accept(LONG).unwrap().unwrap();
    (client.unwrap(), server)
}

/// A link over every transport, with this send timeout.
fn every_transport(send_timeout: Duration) -> Vec<(String, Link, Link)> {
    let folder = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", folder.path().display());
    let mut links = Vec::new();
    for address in [unix.as_str(), "tcp:127.0.0.1:0", "tcp:[::1]:0"] {
        let listen = ListenOptions { send_timeout, ..ListenOptions::default() };
        let connecting = ConnectOptions { send_timeout, ..ConnectOptions::default() };
        let (client, server) = through(address, listen, &connecting);
        links.push((address.to_owned(), client, server));
    }
    #[cfg(feature = "tls")]
    {
        let (client, server) = tls::tests::linked(send_timeout);
        links.push(("TLS".to_owned(), client, server));
    }
    links
}

/// The byte at an offset of a stream.
fn byte(stream: u64, offset: u64) -> u8 {
    ((offset ^ (stream << 7)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn send_stream(sender: &mut Sender, stream: u64, total: u64) {
    let mut offset = 0;
    let mut size = 1;
    while offset < total {
        let length = size.min(total - offset);
        let bytes: Vec<u8> = (offset..offset + length).map(|at| byte(stream, at)).collect();
        // Odd sizes, with empty parts in between.
        let (a, b) = bytes.split_at(bytes.len() / 3);
        let mut parts = [b"", a, b"", b"", b, b""].map(IoSlice::new);
        sender.send(&mut parts).unwrap();
        offset += length;
        size = (size * 3 + 1) % 300_007;
    }
}

fn check_stream(receiver: &mut Receiver, stream: u64, total: u64) {
    let mut offset = 0;
    let mut buf = vec![0; 100_000];
    let mut room = 1;
    while offset < total {
        let got = receiver.receive(&mut buf[..room], LONG).unwrap().expect("in time");
        assert_ne!(got, 0, "the peer ended at {offset}");
        for &found in &buf[..got] {
            assert_eq!(found, byte(stream, offset), "stream {stream}, offset {offset}");
            offset += 1;
        }
        room = (room * 5 + 3) % buf.len() + 1;
    }
    assert_eq!(offset, total);
}

#[test]
fn much_goes_both_ways_at_once() {
    const TOTAL: u64 = 6 << 20;
    for (name, client, server) in every_transport(LONG) {
        thread::scope(|scope| {
            let mut threads = Vec::new();
            for (stream, link) in [(1, client), (2, server)] {
                let Link { mut sender, mut receiver, .. } = link;
                threads.push(scope.spawn(move || {
                    send_stream(&mut sender, stream, TOTAL);
                    sender
                }));
                scope.spawn(move || {
                    check_stream(&mut receiver, 3 - stream, TOTAL);
                    let end = receiver.receive(&mut [0; 10], LONG).unwrap();
                    assert_eq!(end, Some(0));
                });
            }
            // Dropping the senders ends the streams.
            for thread in threads {
                thread.join().unwrap_or_else(|_| panic!("{name}"));
            }
        });
    }
}

#[test]
fn more_parts_than_the_system_takes_at_once() {
    for (name, mut client, mut server) in every_transport(LONG) {
        let bytes: Vec<u8> = (0..5000).map(|at| byte(7, at)).collect();
        let mut parts: Vec<_> = bytes.chunks(1).map(IoSlice::new).collect();
        client.sender.send(&mut parts).unwrap();
        client.sender.send(&mut []).unwrap();
        client.sender.send(&mut [IoSlice::new(&[])]).unwrap();
        check_stream(&mut server.receiver, 7, 5000);
        assert_eq!(server.receiver.receive(&mut [0], Duration::ZERO).unwrap(), None, "{name}");
    }
}

#[test]
fn waits_are_kept() {
    for (name, mut client, mut server) in every_transport(LONG) {
        let receiver = &mut server.receiver;
        let mut buf = [0; 8];
        assert_eq!(receiver.receive(&mut [], LONG).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(receiver.receive(&mut buf, Duration::ZERO).unwrap(), None);
        for wait in [1, 7, 30, 120, 30].map(Duration::from_millis) {
            let start = Instant::now();
            assert_eq!(receiver.receive(&mut buf, wait).unwrap(), None, "{name}");
            assert!(start.elapsed() >= wait, "{name} gave up {wait:?} after {:?}", start.elapsed());
        }
        client.sender.send(&mut [IoSlice::new(b"123456789")]).unwrap();
        for wait in [LONG, Duration::from_millis(5), Duration::MAX, Duration::ZERO] {
            assert_eq!(receiver.receive(&mut buf[..2], wait).unwrap(), Some(2), "{name}");
        }
        assert_eq!(receiver.receive(&mut buf, LONG).unwrap(), Some(1));
        // Bytes that arrive during a wait end it.
        for wait in [LONG, Duration::from_millis(19)] {
            thread::scope(|scope| {
                scope.spawn(|| client.sender.send(&mut [IoSlice::new(b"x")]).unwrap());
                let mut got = receiver.receive(&mut buf, wait).unwrap();
                if wait != LONG {
                    got = got.or_else(|| receiver.receive(&mut buf, LONG).unwrap());
                }
                assert_eq!(got, Some(1), "{name}");
            });
        }
    }
}

#[test]
fn the_peer_closes() {
    for (name, client, mut server) in every_transport(LONG) {
        let closer = client.closer();
        thread::scope(|scope| {
            let Link { sender, mut receiver, .. } = client;
            scope.spawn(move || {
                // Woken by the closer.
                let end = receiver.receive(&mut [0; 4], LONG);
                assert!(!matches!(end, Ok(None | Some(1..))), "{end:?}");
            });
            let mut buf = [0; 4];
            assert_eq!(server.receiver.receive(&mut buf, Duration::ZERO).unwrap(), None);
            closer.close();
            let end = server.receiver.receive(&mut buf, LONG);
            match end {
                Ok(end) => assert_eq!(end, Some(0), "{name}"),
                // TLS detects that the peer sent no close message.
                Err(error) => {
                    assert_eq!((name.as_str(), error.kind()), ("TLS", ErrorKind::UnexpectedEof))
                }
            }
            drop(sender);
        });
        let page = [1; 4096];
        let failed = (0..10_000).find_map(|_| server.sender.send(&mut [IoSlice::new(&page)]).err());
        let kind = failed.expect("the peer is gone").kind();
        assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{kind}");
        // Later sends fail as well.
        assert!(server.sender.send(&mut [IoSlice::new(&page)]).is_err());
    }
}

#[test]
fn sending_to_a_peer_that_does_not_read_times_out() {
    for (name, mut client, server) in every_transport(Duration::from_millis(100)) {
        let page = [1; 4096];
        let start = Instant::now();
        let error = loop {
            if let Err(error) = client.sender.send(&mut [IoSlice::new(&page), IoSlice::new(&page)])
            {
                break error;
            }
            assert!(start.elapsed() < LONG, "{name}");
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{name}: {error}");
        let again = client.sender.send(&mut [IoSlice::new(&page)]).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::BrokenPipe);
        drop(server);
    }
}

#[test]
fn one_listener_has_many_peers() {
    let folder = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", folder.path().display());
    for address in [unix.as_str(), "tcp:localhost:0"] {
        let listener = Listener::bind(&address.parse().unwrap(), ListenOptions::default()).unwrap();
        let at = listener.local_address();
        assert!(listener.accept(Duration::from_millis(3)).unwrap().is_none());
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut link = connect(&at, &ConnectOptions::default()).unwrap();
                    link.sender.send(&mut [IoSlice::new(b"?")]).unwrap();
                    assert_eq!(link.receiver.receive(&mut [0], LONG).unwrap(), Some(1));
                });
            }
            for _ in 0..8 {
                let mut link = listener.accept(LONG).unwrap().unwrap();
                assert_eq!(link.receiver.receive(&mut [0], LONG).unwrap(), Some(1));
                link.sender.send(&mut [IoSlice::new(b"!")]).unwrap();
            }
        });
    }
}

#[test]
fn peers_of_unix_sockets_are_known() {
    let (a, b) = Link::pair().unwrap();
    let own = Peer::Unix {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: i32::try_from(std::process::id()).unwrap(),
    };
    assert_eq!((&a.peer, &b.peer), (&own, &own));
    let user = |uid| Peer::Unix { uid, gid: 0, pid: 1 };
    let options = ListenOptions { users: vec![0, 1000], ..ListenOptions::default() };
    assert!(options.allows(&user(0)) && options.allows(&user(1000)));
    assert!(!options.allows(&user(1001)) && !options.allows(&user(u32::MAX)));
    assert!(ListenOptions::default().allows(&own));
}

#[test]
fn other_users_are_cut_off_before_a_byte_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let address = ServerAddress::Unix(folder.path().join("s"));
    let refused = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&refused);
    let listen = ListenOptions {
        users: vec![],
        on_refusal: Some(Arc::new(move |refusal| log.lock().push(refusal.to_string()))),
        ..ListenOptions::default()
    };
    let listener = Listener::bind(&address, listen).unwrap();
    let mut link = connect(&address, &ConnectOptions::default()).unwrap();
    assert!(listener.accept(Duration::from_millis(30)).unwrap().is_none());
    assert_eq!(link.receiver.receive(&mut [0], LONG).unwrap(), Some(0));
    let own = format!("user {} may not connect", rustix::process::geteuid().as_raw());
    assert!(refused.lock().concat().ends_with(&own), "{refused:?}");
}

#[test]
fn a_socket_file_is_ours_while_we_listen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let address = ServerAddress::Unix(path.clone());
    let bind = || Listener::bind(&address, ListenOptions::default());
    let listener = bind().unwrap();
    assert_eq!(listener.local_address(), address);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Another server listens: its file stays and keeps working.
    assert!(matches!(bind(), Err(ListenError::InUse { .. })));
    connect(&address, &ConnectOptions::default()).unwrap();
    drop(listener);
    assert!(!path.exists());
    // A server that was killed leaves its file.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = connect(&address, &ConnectOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let listener = bind().unwrap();
    connect(&address, &ConnectOptions::default()).unwrap();
    // A file that replaced the socket is not removed.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    drop(listener);
    assert!(matches!(bind(), Err(ListenError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let nowhere = ServerAddress::Unix(folder.path().join("no/s"));
    assert!(Listener::bind(&nowhere, ListenOptions::default()).is_err());
    let long = ServerAddress::Unix(folder.path().join("x".repeat(200)));
    assert!(Listener::bind(&long, ListenOptions::default()).is_err());
}

#[test]
fn only_one_of_several_starting_servers_listens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let address = ServerAddress::Unix(path);
    let bound: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| Listener::bind(&address, ListenOptions::default()).ok()))
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(bound.len(), 1);
    connect(&address, &ConnectOptions::default()).unwrap();
}

#[test]
fn other_hosts_are_kept_out_without_tls() {
    for text in ["tcp:0.0.0.0:0", "tcp:[::]:0", "tcp:192.0.2.1:7411", "tcp:[::ffff:10.0.0.1]:1"] {
        let address: ServerAddress = text.parse().unwrap();
        let error = Listener::bind(&address, ListenOptions::default()).unwrap_err();
        assert!(matches!(error, ListenError::NotLoopback { .. }), "{text}: {error}");
        assert!(error.to_string().contains("give a certificate"));
        let error = connect(&address, &ConnectOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{text}: {error}");
    }
    let loopback = |text: &str| tcp::is_loopback(&text.parse().unwrap());
    assert!(loopback("127.9.9.9:1") && loopback("[::1]:1") && loopback("[::ffff:127.0.0.1]:1"));
    assert!(!loopback("128.0.0.1:1") && !loopback("[fe80::1]:1") && !loopback("[::]:1"));
    // With the explicit option the connection is tried; it fails at a port that was just closed.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = ConnectOptions { insecure: true, ..ConnectOptions::default() };
    let error = connect(&ServerAddress::Tcp(closed.to_string()), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains(&closed.to_string()), "{error}");
    let nobody = ServerAddress::Tcp("no-such-host.invalid:1".to_owned());
    let error = Listener::bind(&nobody, ListenOptions::default()).unwrap_err();
    assert!(matches!(error, ListenError::Unresolved { .. }));
}

#[test]
fn connecting_to_a_full_queue_times_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let options =
        ConnectOptions { timeout: Duration::from_millis(50), ..ConnectOptions::default() };
    let address = ServerAddress::Unix(path);
    // The queue has room for one.
    let _first = connect(&address, &options).unwrap();
    let error = connect(&address, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}
