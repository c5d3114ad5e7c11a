//! Which peers TLS accepts, and which it refuses.

use super::super::{ConnectOptions, Link, ListenOptions, Listener, Peer, Refusal, connect};
use super::*;
use crate::clone::ServerAddress;
use crate::service::Panicked;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use std::io::{ErrorKind, IoSlice, Read};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// An authority that signs certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The years of a certificate's validity.
type Years = std::ops::Range<i32>;

const VALID: Years = 2000..2200;
const EXPIRED: Years = 2000..2001;

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key for these names.
    fn sign(&self, names: &[&str], years: Years) -> (String, String) {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// The credentials of a peer that trusts this authority.
    fn trusted_by(&self, (certificate, key): (String, String)) -> Credentials {
        let pem = self.pem.as_bytes();
        Credentials::from_pem(certificate.as_bytes(), key.as_bytes(), pem).unwrap()
    }
}

/// A listener on any loopback port, and the messages of its refusals.
fn listen(tls: ServerTls, mut options: ListenOptions) -> (Listener, Arc<Mutex<Vec<String>>>) {
    let refused = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&refused);
    options.tls = Some(tls);
    options.on_refusal =
        Some(Arc::new(move |refusal: &Refusal| log.lock().push(refusal.to_string())));
    let at = ServerAddress::Tcp("127.0.0.1:0".to_owned());
    (Listener::bind(&at, options).unwrap(), refused)
}

/// The server's and the client's end of a TLS connection.
fn try_link(
    server: Credentials,
    client: ClientTls,
    clients: &[&str],
) -> Result<(Link, Link), (Vec<String>, std::io::Error)> {
    let clients: Vec<_> = clients.iter().map(|&name| name.to_owned()).collect();
    let (listener, refused) =
        listen(ServerTls::new(server, &clients).unwrap(), ListenOptions::default());
    let at = listener.local_address();
    thread::scope(|scope| {
        let connecting = scope.spawn(move || {
            let options = ConnectOptions { tls: Some(client), ..ConnectOptions::default() };
            let mut link = connect(&at, &options)?;
            // The server verifies the client's certificate after the client's part of the
            // handshake, so the client sees the result as a message or an error.
            let answer = link.receiver.receive(&mut [0], LONG)?;
            assert_eq!(answer, Some(1));
            Ok(link)
        });
        let start = Instant::now();
        let accepted = loop {
            if let Some(mut link) = listener.accept(Duration::from_millis(20)).unwrap() {
                link.sender.send(&mut [IoSlice::new(b"!")]).unwrap();
                break Some(link);
            }
            if !refused.lock().is_empty() {
                break None;
            }
            assert!(start.elapsed() < LONG);
        };
        match (connecting.join().unwrap(), accepted) {
            (Ok(client), Some(server)) => Ok((client, server)),
            (Err(error), None) => Err((refused.lock().clone(), error)),
            (client, server) => panic!("they do not agree: {client:?}, {server:?}"),
        }
    })
}

/// Both ends of a valid connection.
pub(in super::super) fn linked(send_timeout: Duration) -> (Link, Link) {
    let authority = Authority::new();
    let server = authority.trusted_by(authority.sign(&["localhost"], VALID));
    let client = authority.trusted_by(authority.sign(&["client"], VALID));
    let options = ListenOptions { send_timeout, ..ListenOptions::default() };
    let (listener, _) = listen(ServerTls::new(server, &[]).unwrap(), options);
    let tls = Some(ClientTls::new(client, Some("localhost")).unwrap());
    let options = ConnectOptions { tls, send_timeout, ..ConnectOptions::default() };
    let at = listener.local_address();
    thread::scope(|scope| {
        let client = scope.spawn(move || connect(&at, &options).unwrap());
        let server = listener.accept(LONG).unwrap().unwrap();
        (client.join().unwrap(), server)
    })
}

#[test]
fn both_sides_know_each_other() {
    let authority = Authority::new();
    let server = authority.trusted_by(authority.sign(&["pages.example", "127.0.0.1"], VALID));
    // The name is the address that was connected to.
    let client = authority.trusted_by(authority.sign(&["host-7.example", "Host-8.example"], VALID));
    let client = ClientTls::new(client, None).unwrap();
    let (client, server) = try_link(server, client, &["other.example", "host-8.example"]).unwrap();
    let Peer::Tcp { address, subject: Some(subject) } = server.peer else { panic!() };
    assert!(address.ip().is_loopback());
    assert_eq!(subject.names, ["host-7.example", "Host-8.example"]);
    let Peer::Tcp { subject: Some(subject), .. } = client.peer else { panic!() };
    assert_eq!(subject.names, ["pages.example"]);
}

#[test]
fn untrusted_peers_are_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = || ours.trusted_by(ours.sign(&["pages"], VALID));
    let client = |credentials| ClientTls::new(credentials, Some("pages")).unwrap();
    let refused = |what: &str,
                   result: Result<(Link, Link), (Vec<String>, std::io::Error)>,
                   at_client: &str| {
        let (server, error) = result.err().unwrap_or_else(|| panic!("{what}: accepted"));
        assert_eq!(server.len(), 1, "{what}: {server:?}");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
        assert!(error.to_string().contains(at_client), "{what}: {error}");
    };
    let accepts_not_ours = "the peer does not accept our certificate";
    let not_accepted = "the peer's certificate is not accepted";

    let other = ours.trusted_by(theirs.sign(&["client"], VALID));
    refused("client of another CA", try_link(server(), client(other), &[]), accepts_not_ours);
    let expired = ours.trusted_by(ours.sign(&["client"], EXPIRED));
    refused("expired client", try_link(server(), client(expired), &[]), accepts_not_ours);
    let unlisted = ours.trusted_by(ours.sign(&["client", "*.example"], VALID));
    let lists = ["a.example", "friend"];
    refused("unlisted client", try_link(server(), client(unlisted), &lists), accepts_not_ours);

    let good = || ours.trusted_by(ours.sign(&["client"], VALID));
    let other = ours.trusted_by(theirs.sign(&["pages"], VALID));
    refused("server of another CA", try_link(other, client(good()), &[]), not_accepted);
    let expired = ours.trusted_by(ours.sign(&["pages"], EXPIRED));
    refused("expired server", try_link(expired, client(good()), &[]), not_accepted);
    let misnamed = ours.trusted_by(ours.sign(&["books"], VALID));
    refused("wrong name", try_link(misnamed, client(good()), &[]), not_accepted);
    let by_address = ClientTls::new(good(), None).unwrap();
    refused("wrong address", try_link(server(), by_address, &[]), not_accepted);
    try_link(server(), client(good()), &[]).unwrap();
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let authority = Authority::new();
    let server = authority.trusted_by(authority.sign(&["pages"], VALID));
    let mut client =
        ClientTls::new(authority.trusted_by(authority.sign(&["client"], VALID)), Some("pages"))
            .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = authority.trusted_by(authority.sign(&["any"], VALID)).authorities;
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.set_config(config);
    let (refused, error) = try_link(server, client, &[]).unwrap_err();
    assert!(refused[0].contains("no certificate"), "{refused:?}");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
}

#[test]
fn slow_and_plaintext_peers_delay_no_other() {
    let authority = Authority::new();
    let server = authority.trusted_by(authority.sign(&["pages"], VALID));
    let client = authority.trusted_by(authority.sign(&["client"], VALID));
    let options = ListenOptions { handshake: LONG, ..ListenOptions::default() };
    let (listener, refused) = listen(ServerTls::new(server, &[]).unwrap(), options);
    let at = listener.local_address();
    // More silent peers than the limit of handshakes, and one that does not speak TLS.
    let mut silent: Vec<_> =
        (0..80).map(|_| connect(&at, &ConnectOptions::default()).unwrap()).collect();
    let mut plain = connect(&at, &ConnectOptions::default()).unwrap();
    plain.sender.send(&mut [IoSlice::new(&[b'G'; 100])]).unwrap();
    let tls = Some(ClientTls::new(client, Some("pages")).unwrap());
    let options = ConnectOptions { tls, timeout: LONG, ..ConnectOptions::default() };
    thread::scope(|scope| {
        let connecting = scope.spawn(|| connect(&at, &options).unwrap());
        let _server = listener.accept(LONG).unwrap().unwrap();
        connecting.join().unwrap();
    });
    // The oldest silent peer was disconnected.
    assert_eq!(silent[0].receiver.receive(&mut [0], LONG).unwrap(), Some(0));
    let mut answer = [0; 64];
    while plain.receiver.receive(&mut answer, LONG).unwrap_or(Some(0)) != Some(0) {}
    assert!(refused.lock().len() >= 2);
    // The others are disconnected with the listener.
    drop(listener);
    assert_eq!(silent[79].receiver.receive(&mut [0], LONG).unwrap(), Some(0));
}

#[test]
fn a_handshake_has_a_deadline() {
    let authority = Authority::new();
    let server = authority.trusted_by(authority.sign(&["pages"], VALID));
    let options =
        ListenOptions { handshake: Duration::from_millis(30), ..ListenOptions::default() };
    let (listener, refused) = listen(ServerTls::new(server, &[]).unwrap(), options);
    let mut silent = connect(&listener.local_address(), &ConnectOptions::default()).unwrap();
    assert!(listener.accept(Duration::from_millis(50)).unwrap().is_none());
    assert_eq!(silent.receiver.receive(&mut [0], LONG).unwrap(), Some(0));
    let start = Instant::now();
    while refused.lock().is_empty() && start.elapsed() < LONG {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(refused.lock()[0].contains("took too long"), "{refused:?}");

    // The client has a deadline of its own.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = ServerAddress::Tcp(deaf.local_addr().unwrap().to_string());
    let client = authority.trusted_by(authority.sign(&["client"], VALID));
    let tls = Some(ClientTls::new(client, Some("pages")).unwrap());
    let timeout = Duration::from_millis(50);
    let options = ConnectOptions { tls, timeout, ..ConnectOptions::default() };
    assert_eq!(connect(&at, &options).unwrap_err().kind(), ErrorKind::TimedOut);
}

#[test]
fn a_handshake_s_panic_is_the_listener_s_error() {
    let authority = Authority::new();
    let server = authority.trusted_by(authority.sign(&["pages"], VALID));
    let options = ListenOptions {
        tls: Some(ServerTls::new(server, &[]).unwrap()),
        on_refusal: Some(Arc::new(|_: &Refusal| panic!("nobody listens"))),
        ..ListenOptions::default()
    };
    let at = ServerAddress::Tcp("127.0.0.1:0".to_owned());
    let listener = Listener::bind(&at, options).unwrap();
    // The peer does not speak TLS, and is refused.
    let mut plain = connect(&listener.local_address(), &ConnectOptions::default()).unwrap();
    plain.sender.send(&mut [IoSlice::new(b"GET / HTTP/1.0\r\n\r\n")]).unwrap();
    for _ in 0..2 {
        let error = listener.accept(LONG).unwrap_err();
        let panicked = error.get_ref().and_then(|cause| cause.downcast_ref::<Panicked>());
        assert_eq!(panicked.map(Panicked::message), Some("nobody listens"), "{error}");
    }
}

#[test]
fn with_tls_a_server_listens_anywhere() {
    let authority = Authority::new();
    let server = authority.trusted_by(authority.sign(&["pages"], VALID));
    let tls = Some(ServerTls::new(server, &[]).unwrap());
    let options = ListenOptions { tls, ..ListenOptions::default() };
    Listener::bind(&ServerAddress::Tcp("0.0.0.0:0".to_owned()), options).unwrap();
}

#[test]
fn traffic_is_encrypted_and_authenticated() {
    // A relay that flips a bit of the server's data after the handshake.
    let authority = Authority::new();
    let server = authority.trusted_by(authority.sign(&["pages"], VALID));
    let client = authority.trusted_by(authority.sign(&["client"], VALID));
    let (listener, _) = listen(ServerTls::new(server, &[]).unwrap(), ListenOptions::default());
    let ServerAddress::Tcp(behind) = listener.local_address() else { panic!() };
    let relay = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = ServerAddress::Tcp(relay.local_addr().unwrap().to_string());
    let flip = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut near, _) = relay.accept().unwrap();
            let mut far = std::net::TcpStream::connect(behind).unwrap();
            let (mut near_in, mut far_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            scope.spawn(move || std::io::copy(&mut near_in, &mut far_out));
            let mut buf = [0; 4096];
            while let Ok(got @ 1..) = far.read(&mut buf) {
                if flip.load(std::sync::atomic::Ordering::SeqCst) {
                    assert!(!buf[..got].windows(6).any(|window| window == b"secret"));
                    buf[got - 1] ^= 1;
                }
                if std::io::Write::write_all(&mut near, &buf[..got]).is_err() {
                    break;
                }
            }
        });
        let tls = Some(ClientTls::new(client, Some("pages")).unwrap());
        let options = ConnectOptions { tls, ..ConnectOptions::default() };
        let connecting = scope.spawn(move || connect(&at, &options).unwrap());
        let mut server = listener.accept(LONG).unwrap().unwrap();
        let mut client = connecting.join().unwrap();
        flip.store(true, std::sync::atomic::Ordering::SeqCst);
        server.sender.send(&mut [IoSlice::new(b"secret")]).unwrap();
        let error = client.receiver.receive(&mut [0; 10], LONG).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    });
}

#[test]
fn bad_files_are_named() {
    let authority = Authority::new();
    let (certificate, key) = authority.sign(&["a"], VALID);
    let (other, _) = authority.sign(&["a"], VALID);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (cert, key, ca) = (file("c", &certificate), file("k", &key), file("ca", &authority.pem));
    let good = Credentials::from_files(&cert, &key, &ca).unwrap();
    assert!(ClientTls::new(good, Some("no name at all")).is_err());
    for (c, k, a, says) in [
        (&folder.path().join("absent"), &key, &ca, "absent"),
        (&key, &key, &ca, "no certificate"),
        (&cert, &ca, &ca, "no private key"),
        (&cert, &key, &key, "no certificate"),
        (&file("long", &"x".repeat(1 << 21)), &key, &ca, "longer"),
        (&file("cut", &certificate[..100]), &key, &ca, "cut"),
    ] {
        let error = Credentials::from_files(c, k, a).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let mixed = Credentials::from_files(&file("other", &other), &key, &ca).unwrap();
    assert!(matches!(ServerTls::new(mixed, &[]), Err(CredentialsError::Unusable(_))));
}
