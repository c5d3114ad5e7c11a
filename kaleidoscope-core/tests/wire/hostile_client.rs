//! Clients that flood, starve, lie or stay silent, and a server that keeps serving the others.

use crate::image::*;
use kaleidoscope_core::clone::ServerAddress;
use kaleidoscope_core::clone::ports::{PageSource, Priority};
use kaleidoscope_core::wire::client::{Addresses, Client};
use kaleidoscope_core::wire::server::{Server, ServerOptions, ServerStatistics};
use kaleidoscope_core::wire::transport::{ConnectOptions, ListenOptions, Listener};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A server at a Unix socket.
struct TestServer {
    server: Server,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

fn at(options: ServerOptions, timeout: Duration) -> TestServer {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pages");
    let listen = ListenOptions::default().send_timeout(timeout);
    let listener = Listener::bind(&ServerAddress::Unix(path.clone()), listen).unwrap();
    let server = Server::start(vec![served(1000)], vec![listener], options).unwrap();
    TestServer { server, path, _folder: folder }
}

fn small() -> TestServer {
    let options = ServerOptions::default().pending(100);
    at(options, Duration::from_secs(10))
}

impl TestServer {
    fn socket(&self) -> UnixStream {
        let socket = UnixStream::connect(&self.path).unwrap();
        socket.set_read_timeout(Some(WATCHDOG)).unwrap();
        socket.set_write_timeout(Some(WATCHDOG)).unwrap();
        socket
    }

    /// A connection after the welcome.
    fn welcomed(&self) -> UnixStream {
        let mut socket = self.socket();
        socket.write_all(&hello()).unwrap();
        let mut welcome = [0; 72];
        socket.read_exact(&mut welcome).unwrap();
        assert_eq!(welcome[..16], *b"KSWIRE\r\n\x01\0\0\0\0\0\0\0");
        socket
    }

    fn client(&self) -> Client {
        let servers = vec![ServerAddress::Unix(self.path.clone())];
        client(Addresses { servers, options: ConnectOptions::default() }, short_timeouts())
    }

    /// Checks that an honest client is served.
    fn serves(&self) {
        let client = self.client();
        client.request(&indices(0..50), Priority::Urgent).unwrap();
        let mut arrived = Arrived::new();
        receive(&client, 50, &mut arrived).unwrap();
        check(&arrived);
    }

    fn wait_for(&self, what: impl Fn(&ServerStatistics) -> bool) {
        let start = Instant::now();
        while !what(&self.server.statistics()) {
            assert!(start.elapsed() < WATCHDOG, "{:?}", self.server.statistics());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn hello() -> Vec<u8> {
    let mut hello = b"KSWIRE\r\n\x01\0\0\0\x01\0\0\0".to_vec();
    hello.extend([0; 32]);
    hello.extend([3; 16]);
    hello.extend([64, 0, 0, 0, 0, 0, 0, 0]);
    hello
}

fn fetch(priority: u8, runs: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = vec![1, priority];
    bytes.extend((runs.len() as u16).to_le_bytes());
    bytes.extend([0; 4]);
    for (first, frames) in runs {
        bytes.extend(first.to_le_bytes());
        bytes.extend(frames.to_le_bytes());
    }
    bytes
}

/// All bytes until the server closes the connection.
fn rest(socket: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Ok(_) => {}
        // The server closed without reading everything.
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    bytes
}

#[test]
fn requests_that_break_the_protocol_are_answered_with_an_error() {
    let at = small();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("unknown type 9", vec![9, 0, 1, 0, 0, 0, 0, 0]),
        ("priority", vec![1, 2, 1, 0, 0, 0, 0, 0]),
        ("count", fetch(0, &[])),
        ("count is 1025", fetch(0, &[(0, 1); 1025])),
        ("reserved", vec![1, 0, 1, 0, 1, 0, 0, 0]),
        ("image of 1000 frames", fetch(0, &[(0, 1), (1000, 1)])),
        ("image of 1000 frames", fetch(1, &[(u32::MAX, u32::MAX)])),
        ("image of 1000 frames", fetch(1, &[(5, 0)])),
        ("frames is 101", fetch(0, &[(0, 100), (500, 1)])),
        ("offset", vec![2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]),
        ("bytes is 65537", vec![2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0]),
        ("count is 2", vec![2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]),
    ];
    for (number, (expected, request)) in (1..).zip(bad) {
        let mut socket = at.welcomed();
        socket.write_all(&request).unwrap();
        let answer = rest(&mut socket);
        assert_eq!(answer[..4], [3, 0, 1, 0], "{expected}: {answer:?}");
        let text = String::from_utf8_lossy(&answer[8..]).into_owned();
        assert!(text.contains(expected), "{text}");
        at.wait_for(|statistics| statistics.violations == number);
    }
    at.serves();
}

#[test]
fn hellos_that_are_wrong_are_refused() {
    let at = small();
    let change = |place: usize, byte: u8| {
        let mut hello = hello();
        hello[place] = byte;
        hello
    };
    for (reason, hello) in
        [(1, change(0, b'X')), (2, change(8, 2)), (3, change(20, 1)), (1, change(64, 0))]
    {
        let mut socket = at.socket();
        socket.write_all(&hello).unwrap();
        let answer = rest(&mut socket);
        assert_eq!(answer[12..16], [reason, 0, 0, 0]);
        assert_eq!(answer.len(), 72 + usize::from(answer[68]) + 256 * usize::from(answer[69]));
    }
    at.wait_for(|statistics| statistics.refused == 4);
    at.serves();
}

#[test]
fn silent_clients_are_dropped() {
    // Enough time for a client on a busy host, but not for one that sends single bytes.
    let handshake = Duration::from_millis(500);
    let at = at(ServerOptions::default().handshake(handshake), WATCHDOG);
    let mut silent = at.socket();
    let mut slow = at.socket();
    let mut half = at.socket();
    half.write_all(&hello()[..30]).unwrap();
    for byte in hello() {
        if slow.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    for socket in [&mut silent, &mut slow, &mut half] {
        assert_eq!(rest(socket), []);
    }
    at.serves();
}

#[test]
fn a_flood_is_cut_off() {
    let at = small();
    let mut socket = at.welcomed();
    // Ever more frames without reading a reply: the server ends the connection or stops reading.
    let request = fetch(0, &[(0, 100)]);
    let start = Instant::now();
    let mut first = 0;
    socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while socket.write_all(&fetch(0, &[(first % 990, 10)])).is_ok() {
        first += 10;
        assert!(start.elapsed() < WATCHDOG);
    }
    at.serves();
    // Requesting the same frames again and reading every reply costs the server only time.
    let mut socket = at.welcomed();
    let mut reader = socket.try_clone().unwrap();
    let reading = std::thread::spawn(move || reader.read_exact(&mut vec![0; 80 * 4096]));
    for _ in 0..500 {
        socket.write_all(&request).unwrap();
    }
    at.serves();
    reading.join().unwrap().unwrap();
}

#[test]
fn more_frames_than_allowed_end_the_connection() {
    let at = small();
    let mut socket = at.welcomed();
    // Sent in a single message, so that the server reads all requests before it replies.
    let runs: Vec<_> = (0..10).map(|n| fetch(0, &[(n * 100, 100)])).collect();
    socket.write_all(&runs.concat()).unwrap();
    let answer = rest(&mut socket);
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("more than 100 frames unanswered"));
    at.serves();
}

#[test]
fn a_client_that_never_reads_is_dropped_and_delays_no_other() {
    let at = at(ServerOptions::default(), Duration::from_millis(200));
    let mut sockets: Vec<_> = (0..8).map(|_| at.welcomed()).collect();
    for socket in &mut sockets {
        socket.write_all(&fetch(0, &[(0, 1000)])).unwrap();
    }
    at.serves();
    at.wait_for(|statistics| statistics.broken == 8);
    at.serves();
}

#[test]
fn connections_are_bounded() {
    let options = ServerOptions::default().connections(10).connections_per_peer(6);
    let at = at(options, WATCHDOG);
    let clients: Vec<_> = (0..6).map(|_| at.client()).collect();
    let servers = vec![ServerAddress::Unix(at.path.clone())];
    let dial = Arc::new(Addresses { servers, options: ConnectOptions::default() });
    let error = Client::connect(dial, short_timeouts()).unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
    // A few more get a refusal; others are closed at once.
    let sockets: Vec<_> = (0..50).map(|_| at.socket()).collect();
    at.wait_for(|statistics| statistics.refused >= 40);
    assert!(at.server.statistics().open <= 15);
    drop(sockets);
    drop(clients);
    at.wait_for(|statistics| statistics.open == 0);
    at.serves();
}

#[test]
fn stopping_does_not_wait_for_clients() {
    let at = at(ServerOptions::default(), WATCHDOG);
    let idle = at.client();
    let mut stuck = at.welcomed();
    stuck.write_all(&fetch(0, &[(0, 1000)])).unwrap();
    let half = at.socket();
    at.wait_for(|statistics| statistics.open == 3 && statistics.pages > 0);
    at.server.stop();
    // It stops waiting after a while; the connections that it would wait for are still open then.
    assert_eq!(at.server.statistics().open, 0);
    drop((idle, half));
}
