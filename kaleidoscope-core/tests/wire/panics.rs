//! Embedder code that panics on a thread of this crate: the service or the connection concerned
//! ends with an error; none continues without one of its threads.

use crate::image::{
    Arrived, Local, WATCHDOG, check, client, indices, receive, served, short_timeouts,
};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::clone::ServerAddress;
use kaleidoscope_core::clone::ports::{PageSource, Priority};
use kaleidoscope_core::memory::{GuestMemory, MemoryError, MemoryLayout, VecMemory};
use kaleidoscope_core::wire::client::Connector;
use kaleidoscope_core::wire::server::{ServedImage, Server, ServerOptions};
use kaleidoscope_core::wire::transport::{Link, ListenOptions, Listener, OnRefusal};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

#[test]
fn a_panic_in_the_refusal_callback_ends_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let bind = |name: &str, users: Vec<u32>| {
        let on_refusal: OnRefusal = Arc::new(|_| panic!("standard error is gone"));
        let options = ListenOptions::default().users(users).on_refusal(Some(on_refusal));
        let path = folder.path().join(name);
        (Listener::bind(&ServerAddress::Unix(path.clone()), options).unwrap(), path)
    };
    // No user may connect to the first listener; this user may connect to the second.
    let ((closed, door), (open, other)) =
        (bind("closed", Vec::new()), bind("open", ListenOptions::default().users));
    let server = Server::start(vec![served(100)], vec![closed, open], ServerOptions::default());
    let server = Arc::new(server.unwrap());
    let client = client(Local(vec![Arc::clone(&server)]), short_timeouts());
    client.request(&indices(0..10), Priority::Urgent).unwrap();
    receive(&client, 10, &mut Arrived::new()).unwrap();
    assert_eq!(server.wait_for_failure(std::time::Duration::ZERO), None);
    UnixStream::connect(&door).unwrap();
    let why = server
        .wait_for_failure(WATCHDOG)
        .expect("the server continues without its accepting thread");
    assert_eq!(why.message(), "standard error is gone");
    assert_eq!(server.failure(), Some(why));
    // The whole service ends: connections are refused, so that clients try other servers.
    let start = Instant::now();
    while UnixStream::connect(&other).is_ok() || server.statistics().open > 0 {
        assert!(start.elapsed() < WATCHDOG, "{:?}", server.statistics());
        std::thread::yield_now();
    }
    assert!(!door.exists());
    server.stop();
}

/// Memory with one frame whose access panics.
struct PanickingMemory(VecMemory);

impl GuestMemory for PanickingMemory {
    fn layout(&self) -> &MemoryLayout {
        self.0.layout()
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        assert!(gpa != Gpa(0x1000 + 7 * 4096), "stepped on frame 7");
        self.0.read(gpa, buf)
    }
}

#[test]
fn a_panic_about_one_client_ends_its_connection() {
    let image = ServedImage::new(
        Arc::new(PanickingMemory(crate::image::memory(100))),
        crate::image::DIGEST,
    );
    let server = Server::start(vec![image], Vec::new(), ServerOptions::default()).unwrap();
    let server = Arc::new(server);
    let mut options = short_timeouts();
    options.deadline = std::time::Duration::from_secs(2);
    let unlucky = client(Local(vec![Arc::clone(&server)]), options);
    let lucky = client(Local(vec![Arc::clone(&server)]), short_timeouts());
    unlucky.request(&indices([7]), Priority::Urgent).unwrap();
    let error = receive(&unlucky, 1, &mut Arrived::new()).unwrap_err();
    assert!(error.to_string().contains("did not arrive"), "{error}");
    // A panic is counted when its message has been written, which takes seconds on a busy host.
    let start = Instant::now();
    while server.statistics().panics == 0 {
        assert!(start.elapsed() < WATCHDOG, "{:?}", server.statistics());
        std::thread::yield_now();
    }
    let mut arrived = Arrived::new();
    lucky.request(&indices(8..50), Priority::Urgent).unwrap();
    receive(&lucky, 42, &mut arrived).unwrap();
    check(&arrived);
    assert_eq!(lucky.statistics().reconnects, 0);
    assert_eq!(server.failure(), None);
    drop((unlucky, lucky));
}

/// A connector that works once.
struct Once(Local, AtomicUsize);

impl Connector for Once {
    fn replicas(&self) -> usize {
        self.0.replicas()
    }

    fn dial(&self, replica: usize) -> io::Result<Link> {
        assert_eq!(self.1.fetch_add(1, Ordering::Relaxed), 0, "dialed twice");
        self.0.dial(replica)
    }

    fn name(&self, replica: usize) -> String {
        self.0.name(replica)
    }
}

#[test]
fn a_panic_while_looking_for_a_server_is_the_client_s_error() {
    let server = Arc::new(crate::image::server(100));
    let dial = Once(Local(vec![Arc::clone(&server)]), AtomicUsize::new(0));
    let client = client(dial, short_timeouts());
    server.stop();
    client.request(&indices(0..10), Priority::Urgent).unwrap();
    let error = receive(&client, 10, &mut Arrived::new()).unwrap_err();
    assert!(error.to_string().contains("`page-search` panicked"), "{error}");
    assert!(error.to_string().contains("dialed twice"), "{error}");
}
