//! An honest server and honest clients.

use crate::image::*;
use kaleidoscope_core::clone::ServerAddress;
use kaleidoscope_core::clone::ports::{PageSource, Priority};
use kaleidoscope_core::wire::client::{Addresses, Client, ClientOptions};
use kaleidoscope_core::wire::server::{ServedImage, Server, ServerOptions};
use kaleidoscope_core::wire::transport::{ConnectOptions, ListenOptions, Listener};
use kaleidoscope_core::wire::{Codecs, Features};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn every_page_arrives_with_every_combination_of_features() {
    const FRAMES: u32 = 600;
    let server = Arc::new(server(FRAMES));
    for bits in 0..8 {
        let features = Features::from_bits(bits);
        let options = ClientOptions::default().features(features);
        let client = client(Local(vec![server.clone()]), options);
        assert_eq!((client.image(), client.frames()), (DIGEST, FRAMES));
        let mut arrived = Arrived::new();
        // Urgent requests first, before the frames can arrive as prefetch.
        let urgent = [17, 300, 5];
        client.request(&indices(urgent), Priority::Urgent).unwrap();
        let rest = (0..FRAMES).rev().filter(|frame| !urgent.contains(frame));
        client.request(&indices(rest), Priority::Prefetch).unwrap();
        receive(&client, FRAMES as usize, &mut arrived).unwrap();
        check(&arrived);
        let statistics = client.statistics();
        assert_eq!(statistics.frames, u64::from(FRAMES));
        assert_eq!(statistics.zero_frames, u64::from(FRAMES.div_ceil(5)));
        let raw = u64::from(FRAMES - FRAMES.div_ceil(5)) * 4096;
        // A third of the nonzero pages compresses to almost nothing.
        let expected =
            if features.codecs.any() { raw * 5 / 8..raw * 3 / 4 } else { raw..raw * 101 / 100 };
        assert!(expected.contains(&statistics.bytes), "{features}: {} of {raw}", statistics.bytes);
    }
    // A page may arrive before its server has counted it.
    server.stop();
    let statistics = server.statistics();
    assert!(statistics.pages >= u64::from(8 * FRAMES) && statistics.urgent_pages >= 8 * 3);
    assert!(statistics.compressed_pages > 0 && statistics.violations == 0);
    assert_eq!(statistics.open, 0);
}

#[test]
fn frames_that_the_image_lacks_are_unavailable() {
    let image = ServedImage::new(Arc::new(Holes(memory(100))), DIGEST);
    let server = Server::start(vec![image], Vec::new(), ServerOptions::default()).unwrap();
    for checksums in [false, true] {
        let link = {
            let (ours, theirs) = kaleidoscope_core::wire::transport::Link::pair().unwrap();
            server.attach(theirs).unwrap();
            std::sync::Mutex::new(Some(ours))
        };
        let dial = OneLink(link);
        let features = Features { checksums, codecs: Codecs::ALL };
        let client = client(dial, ClientOptions::default().features(features));
        client.request(&indices(0..100), Priority::Urgent).unwrap();
        let mut arrived = Arrived::new();
        receive(&client, 100, &mut arrived).unwrap();
        for (frame, bytes) in &arrived {
            let expected = (!is_hole(*frame)).then(|| page(*frame));
            assert_eq!(bytes.as_deref(), expected.as_ref());
        }
        assert_eq!(client.statistics().unavailable_frames, 9);
    }
}

/// A connector with a single, established link.
struct OneLink(std::sync::Mutex<Option<kaleidoscope_core::wire::transport::Link>>);

impl kaleidoscope_core::wire::client::Connector for OneLink {
    fn replicas(&self) -> usize {
        1
    }
    fn dial(&self, _: usize) -> std::io::Result<kaleidoscope_core::wire::transport::Link> {
        Ok(self.0.lock().unwrap().take().ok_or(std::io::ErrorKind::NotConnected)?)
    }
    fn name(&self, _: usize) -> String {
        "the link".into()
    }
}

#[test]
fn many_clients_and_threads_share_a_server_at_two_addresses() {
    const FRAMES: u32 = 512;
    let folder = tempfile::tempdir().unwrap();
    let unix = ServerAddress::Unix(folder.path().join("pages"));
    let tcp: ServerAddress = "tcp:127.0.0.1:0".parse().unwrap();
    let listeners: Vec<_> =
        [&unix, &tcp].map(|at| Listener::bind(at, ListenOptions::default()).unwrap()).into();
    let addresses: Vec<_> = listeners.iter().map(Listener::local_address).collect();
    let server = Server::start(vec![served(FRAMES)], listeners, ServerOptions::default()).unwrap();
    thread::scope(|scope| {
        for number in 0..8usize {
            let servers = vec![addresses[number % 2].clone()];
            scope.spawn(move || {
                let dial = Addresses { servers, options: ConnectOptions::default() };
                let client = client(dial, ClientOptions::default());
                let mut arrived = Arrived::new();
                thread::scope(|scope| {
                    for part in 0..4 {
                        let client = &client;
                        scope.spawn(move || {
                            for frame in (0..FRAMES).filter(|frame| frame % 4 == part) {
                                let priority = if frame % 3 == 0 {
                                    Priority::Urgent
                                } else {
                                    Priority::Prefetch
                                };
                                client.request(&indices([frame]), priority).unwrap();
                            }
                        });
                    }
                    receive(&client, FRAMES as usize, &mut arrived).unwrap();
                });
                check(&arrived);
            });
        }
    });
    server.stop();
    assert_eq!(server.statistics().connections, 8);
    assert_eq!(server.statistics().pages, u64::from(8 * FRAMES));
    drop(server);
    assert!(
        Client::connect(
            Arc::new(Addresses { servers: addresses, options: ConnectOptions::default() }),
            ClientOptions::default()
        )
        .is_err()
    );
}

#[test]
fn the_descriptor_arrives_complete() {
    for length in [0usize, 1, 65_536, 65_537, 1_000_000] {
        let descriptor: Vec<u8> = (0..length).map(|i| (i / 3) as u8).collect();
        let image = ServedImage { descriptor: descriptor.clone().into(), ..served(10) };
        let server =
            Arc::new(Server::start(vec![image], Vec::new(), ServerOptions::default()).unwrap());
        let client = client(Local(vec![server.clone()]), short_timeouts());
        assert!(client.fetch_descriptor().unwrap() == descriptor, "{length}");
        let most = short_timeouts().descriptor(65_536);
        let client = Client::connect(Arc::new(Local(vec![server])), most).unwrap();
        assert_eq!(client.fetch_descriptor().is_ok(), length <= 65_536);
    }
}

#[test]
fn images_are_selected_by_digest() {
    let other = ServedImage { digest: [8; 32], ..served(20) };
    let both =
        Server::start(vec![served(10), other], Vec::new(), ServerOptions::default()).unwrap();
    let both = Arc::new(both);
    let frames = |image| {
        let options = short_timeouts().image(image);
        Client::connect(Arc::new(Local(vec![both.clone()])), options).map(|client| client.frames())
    };
    assert_eq!(frames(Some(DIGEST)).unwrap(), 10);
    assert_eq!(frames(Some([8; 32])).unwrap(), 20);
    assert!(frames(Some([9; 32])).unwrap_err().to_string().contains("no such image"));
    assert!(frames(None).unwrap_err().to_string().contains("several images"));
    let start = Instant::now();
    while both.statistics().refused < 2 {
        assert!(start.elapsed() < WATCHDOG);
        thread::sleep(Duration::from_millis(1));
    }
    let twice = Server::start(vec![served(2), served(2)], Vec::new(), ServerOptions::default());
    assert!(twice.is_err());
}

#[test]
fn a_client_asks_for_more_than_the_server_takes() {
    const FRAMES: u32 = 500;
    let options = ServerOptions::default().pending(8).batch(4);
    let server = Arc::new(Server::start(vec![served(FRAMES)], Vec::new(), options).unwrap());
    let client = client(Local(vec![server.clone()]), short_timeouts());
    assert_eq!(client.window(), 4);
    client.request(&indices(0..FRAMES), Priority::Prefetch).unwrap();
    client.request(&indices((0..FRAMES).rev().step_by(3)), Priority::Urgent).unwrap();
    let mut arrived = Arrived::new();
    receive(&client, FRAMES as usize, &mut arrived).unwrap();
    check(&arrived);
    assert_eq!((client.statistics().disconnects, server.statistics().violations), (0, 0));
}

#[test]
fn an_urgent_page_overtakes_a_long_prefetch() {
    const FRAMES: u32 = 3000;
    let server = Arc::new(server(FRAMES));
    let client = client(Local(vec![server]), short_timeouts());
    client.request(&indices(0..FRAMES), Priority::Prefetch).unwrap();
    client.request(&indices([FRAMES - 2]), Priority::Urgent).unwrap();
    let mut order = Vec::new();
    let start = Instant::now();
    while order.len() < FRAMES as usize && start.elapsed() < WATCHDOG {
        client
            .receive(Duration::from_millis(100), &mut |delivery| order.push(delivery.frame().0))
            .unwrap();
    }
    let place = order.iter().position(|frame| *frame == FRAMES - 2).unwrap();
    // The bytes in the socket buffers and one batch may precede it; nothing is read meanwhile.
    assert!(place < FRAMES as usize / 4, "place {place}");
}

#[test]
fn an_idle_connection_is_closed_and_opened_again() {
    let idle = Duration::from_millis(20);
    let options = ServerOptions::default().idle(idle);
    let server = Arc::new(Server::start(vec![served(10)], Vec::new(), options).unwrap());
    let client = client(Local(vec![server.clone()]), short_timeouts());
    let start = Instant::now();
    while server.statistics().idle == 0 && start.elapsed() < WATCHDOG {
        client.receive(Duration::from_millis(5), &mut |_| panic!("nothing was asked for")).unwrap();
    }
    let mut arrived = Arrived::new();
    client.request(&indices(0..10), Priority::Urgent).unwrap();
    receive(&client, 10, &mut arrived).unwrap();
    check(&arrived);
    assert!(client.statistics().reconnects >= 1);
}

#[test]
fn a_frame_outside_the_image_is_an_error() {
    let client = client(Local(vec![Arc::new(server(10))]), short_timeouts());
    let error = client.request(&indices([3, 10]), Priority::Urgent).unwrap_err();
    assert_eq!(error.to_string(), "frame 10 is not in the image of 10 frames");
}
