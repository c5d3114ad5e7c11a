//! What every transport must do.

use super::*;
use crate::clone::ServerAddress;
use std::io::IoSlice;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

/// Both ends of a link through a listener.
fn through(address: &str) -> (Link, Link, Listener) {
    let address: ServerAddress = address.parse().unwrap();
    let listener = Listener::bind(&address, ListenOptions::default()).unwrap();
    let client = connect(&listener.local_address(), &ConnectOptions::default()).unwrap();
    let server = listener.accept(LONG).unwrap().unwrap();
    (client, server, listener)
}

fn speak(mut a: Link, mut b: Link) {
    let mut buf = [0; 16];
    assert_eq!(b.receiver.receive(&mut buf, Duration::ZERO).unwrap(), None);
    a.sender
        .send(&mut [IoSlice::new(b""), IoSlice::new(b"ab"), IoSlice::new(b"c"), IoSlice::new(b"")])
        .unwrap();
    assert_eq!(b.receiver.receive(&mut buf, LONG).unwrap(), Some(3));
    assert_eq!(&buf[..3], b"abc");
    drop(a);
    assert_eq!(b.receiver.receive(&mut buf, LONG).unwrap(), Some(0));
}

#[test]
fn smoke() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("unix:{}/s", folder.path().display());
    for address in [path.as_str(), "tcp:127.0.0.1:0", "tcp:localhost:0"] {
        let (client, server, _listener) = through(address);
        speak(client, server);
    }
    let (a, b) = Link::pair().unwrap();
    speak(a, b);
}
