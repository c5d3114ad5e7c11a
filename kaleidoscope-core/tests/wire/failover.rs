//! Servers that fail, and the failover of their clients.

use crate::hostile_server::*;
use crate::image::*;
use kaleidoscope_core::clone::ports::{PageSource, Priority};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[test]
fn another_replica_takes_over_again_and_again() {
    const FRAMES: u32 = 2000;
    let servers: Vec<_> = (0..5).map(|_| Arc::new(server(FRAMES))).collect();
    let client = client(Local(servers.clone()), short_timeouts());
    let mut arrived = Arrived::new();
    client.request(&indices(0..FRAMES), Priority::Prefetch).unwrap();
    for (number, server) in servers.iter().enumerate().take(4) {
        receive(&client, 100 + number * 300, &mut arrived).unwrap();
        server.stop();
    }
    client.request(&indices([FRAMES - 1]), Priority::Urgent).unwrap();
    receive(&client, FRAMES as usize, &mut arrived).unwrap();
    check(&arrived);
    assert!(client.statistics().reconnects >= 1);
}

#[test]
fn without_a_server_the_client_fails_at_the_deadline() {
    let server = Arc::new(server(2000));
    let deadline = Duration::from_secs(3);
    let options = short_timeouts().deadline(deadline);
    let client = client(Local(vec![server.clone()]), options);
    client.request(&indices(0..2000), Priority::Prefetch).unwrap();
    let mut arrived = Arrived::new();
    receive(&client, 10, &mut arrived).unwrap();
    server.stop();
    let start = Instant::now();
    let error = receive(&client, 2000, &mut arrived).unwrap_err();
    assert!(start.elapsed() < WATCHDOG / 2);
    check(&arrived);
    assert!(error.to_string().contains("server 0"), "{error}");
    // For good.
    assert!(client.request(&indices([1]), Priority::Urgent).is_err());
    assert!(client.receive(Duration::ZERO, &mut |_| {}).is_err());
}

#[test]
fn servers_that_send_no_page_are_dropped() {
    let mute = |wire: &mut Wire| {
        wire.welcome(&Welcome::default())?;
        wire.linger()
    };
    let timeout = Duration::from_millis(50);
    let options = short_timeouts().timeout(timeout).deadline(60 * timeout);
    let client = client(Scripted::one(mute).and(mute), options);
    client.request(&indices(0..10), Priority::Urgent).unwrap();
    let error = receive(&client, 10, &mut Arrived::new()).unwrap_err();
    assert!(error.to_string().contains("did not arrive"), "{error}");
    assert!(client.statistics().silences >= 2);
}

#[test]
fn a_server_that_skips_a_frame_is_dropped() {
    // The first server never answers frame 5, and keeps sending other frames.
    let unfair = |wire: &mut Wire| {
        wire.welcome(&Welcome::default())?;
        loop {
            let (_, frames) = wire.request()?;
            for frame in frames.into_iter().filter(|frame| *frame != 5) {
                wire.write(&pages(&[honest(frame)]))?;
            }
        }
    };
    let timeout = Duration::from_millis(50);
    let options = short_timeouts().timeout(timeout).deadline(Duration::from_secs(6));
    let client = client(Scripted::one(unfair).and_honest(), options);
    client.request(&indices([5]), Priority::Urgent).unwrap();
    let start = Instant::now();
    let mut has_arrived = false;
    let mut next = 6;
    while !has_arrived && start.elapsed() < WATCHDOG {
        client.request(&indices([next % 94 + 6]), Priority::Prefetch).unwrap();
        next += 1;
        client
            .receive(Duration::from_millis(10), &mut |delivery| {
                has_arrived |= delivery.frame().0 == 5;
            })
            .unwrap();
    }
    assert!(has_arrived);
    // More reconnects happen if the honest server does not get CPU time soon enough.
    assert!(client.statistics().silences >= 1);
}

#[test]
fn a_connection_cut_anywhere_loses_nothing() {
    // Each connection is cut some bytes later than the one before, at any point of a message.
    let cuts = Arc::new(AtomicUsize::new(0));
    let dial = Scripted::one(move |wire| {
        wire.welcome(&Welcome { frames: 300, ..Welcome::default() })?;
        let mut left = 4500 + cuts.fetch_add(1, Ordering::Relaxed) * 977;
        loop {
            let (_, frames) = wire.request()?;
            for batch in frames.chunks(7) {
                let bytes = pages(&batch.iter().map(|frame| honest(*frame)).collect::<Vec<_>>());
                wire.write(&bytes[..bytes.len().min(left)])?;
                left = left.checked_sub(bytes.len())?;
            }
        }
    });
    let client = client(dial, short_timeouts());
    client.request(&indices(0..300), Priority::Prefetch).unwrap();
    let mut arrived = Arrived::new();
    receive(&client, 300, &mut arrived).unwrap();
    check(&arrived);
    assert!(client.statistics().reconnects > 5, "{:?}", client.statistics());
}

#[test]
fn a_replica_with_another_image_is_skipped() {
    let dial = Scripted::one(|wire| {
        wire.welcome(&Welcome::default())?;
        wire.request()?;
        None
    })
    .and(|wire| wire.welcome(&Welcome { image: [9; 32], ..Welcome::default() }))
    .and(|wire| wire.welcome(&Welcome { frames: 99, ..Welcome::default() }))
    .and_honest();
    let client = client(dial, short_timeouts());
    client.request(&indices(40..50), Priority::Urgent).unwrap();
    let mut arrived = Arrived::new();
    receive(&client, 10, &mut arrived).unwrap();
    check(&arrived);
}

#[test]
fn only_replicas_with_another_image_are_an_error_at_once() {
    let welcomed = AtomicUsize::new(0);
    let dial = Scripted::one(move |wire| {
        let image = if welcomed.fetch_add(1, Ordering::Relaxed) == 0 { DIGEST } else { [9; 32] };
        wire.welcome(&Welcome { image, ..Welcome::default() })?;
        wire.request()?;
        None
    });
    let options = short_timeouts().deadline(WATCHDOG);
    let client = client(dial, options);
    client.request(&indices([1]), Priority::Urgent).unwrap();
    let start = Instant::now();
    let error = receive(&client, 1, &mut Arrived::new()).unwrap_err();
    assert!(error.to_string().contains("another image"), "{error}");
    assert!(start.elapsed() < WATCHDOG / 2);
}
