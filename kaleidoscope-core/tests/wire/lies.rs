//! A server that sends wrong data, and a client that detects it.

use crate::hostile_server::*;
use crate::image::*;
use kaleidoscope_core::clone::ports::{PageSource, Priority};
use kaleidoscope_core::wire::client::{Client, ClientStatistics};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests frames 20 to 29 from a first server, which misbehaves as scripted, and from an honest
/// second one. Checks that all frames arrive with the right content.
fn despite(
    lie: impl Fn(&mut Wire, &[u32]) -> Option<()> + Send + Sync + 'static,
) -> ClientStatistics {
    let dial = Scripted::one(move |wire| {
        wire.welcome(&Welcome::default())?;
        let (_, frames) = wire.request()?;
        lie(wire, &frames)
    })
    .and_honest();
    let client = client(dial, short_timeouts());
    client.request(&indices(20..30), Priority::Urgent).unwrap();
    let mut arrived = Arrived::new();
    receive(&client, 10, &mut arrived).unwrap();
    check(&arrived);
    assert_eq!(arrived.keys().copied().collect::<Vec<_>>(), (20..30).collect::<Vec<_>>());
    let statistics = client.statistics();
    assert!(statistics.disconnects >= 1, "{statistics:?}");
    statistics
}

/// Misbehaves by changing the honest reply.
fn changed(change: impl Fn(&mut Vec<Item>) + Send + Sync + 'static) -> ClientStatistics {
    despite(move |wire, frames| {
        let mut items: Vec<_> = frames.iter().map(|frame| honest(*frame)).collect();
        change(&mut items);
        wire.write(&pages(&items))?;
        wire.linger()
    })
}

#[test]
fn a_damaged_page_is_noticed() {
    for byte in [0, 1000, 4095] {
        let statistics = changed(move |items| items[3].payload[byte] ^= 0x10);
        assert_eq!((statistics.checksum_failures, statistics.violations), (1, 0));
    }
    // A page under another frame number, zeros instead of bytes, nothing instead of bytes.
    let swapped = changed(|items| {
        let (a, b) = (items[1].frame, items[2].frame);
        (items[1].frame, items[2].frame) = (b, a);
    });
    let zero = changed(|items| {
        items[4].codec = 1;
        items[4].payload.clear();
    });
    let missing = changed(|items| {
        items[4].codec = 4;
        items[4].payload.clear();
    });
    for statistics in [swapped, zero, missing] {
        assert_eq!(statistics.checksum_failures, 1);
    }
}

#[test]
fn a_reply_that_breaks_the_protocol_is_noticed() {
    let lies: [fn(&mut Vec<Item>); 8] = [
        |items| items[2].frame = 100,
        |items| items[2].frame = u32::MAX,
        |items| items[2].codec = 9,
        |items| items[2].codec = 2,
        |items| items[2].reserved = 1,
        |items| items[2].stored = Some(4095),
        |items| items[2] = honest(77),
        |items| items[2] = items[1].clone(),
    ];
    for lie in lies {
        let statistics = changed(lie);
        assert_eq!((statistics.violations, statistics.checksum_failures), (1, 0), "{statistics:?}");
    }
    let heads: [&[u8]; 9] = [
        &[0, 0, 1, 0, 0, 0, 0, 0],
        &[4, 0, 1, 0, 0, 0, 0, 0],
        &[1, 1, 1, 0, 16, 0, 0, 0],
        &[1, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 65, 0, 0, 4, 0, 0],
        &[1, 0, 255, 255, 255, 255, 255, 255],
        // Chunks of a descriptor that does not exist.
        &[2, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0, 255, 255, 255, 255],
        // A last message that is too long.
        &[3, 0, 1, 0, 1, 2, 0, 0],
    ];
    for head in heads {
        let statistics = despite(move |wire, _| {
            wire.write(head)?;
            wire.linger()
        });
        assert_eq!(statistics.violations, 1, "{head:?}");
    }
}

#[test]
fn a_reply_that_ends_early_is_asked_for_again() {
    for cut in [0, 1, 7, 8, 100, 168, 169, 5000, 20_000] {
        let statistics = despite(move |wire, frames| {
            let items: Vec<_> = frames.iter().map(|frame| honest(*frame)).collect();
            wire.write(&pages(&items)[..cut])
        });
        assert_eq!(statistics.violations, 0, "{cut}");
    }
    // The same, but the server keeps the connection open and stays silent.
    for cut in [0, 8, 5000] {
        let statistics = despite(move |wire, frames| {
            let items: Vec<_> = frames.iter().map(|frame| honest(*frame)).collect();
            wire.write(&pages(&items)[..cut])?;
            wire.linger()
        });
        assert_eq!(statistics.silences, 1, "{cut}");
    }
}

#[test]
fn a_slow_trickle_of_bytes_times_out() {
    let statistics = despite(|wire, frames| {
        let items: Vec<_> = frames.iter().map(|frame| honest(*frame)).collect();
        for byte in pages(&items) {
            wire.write(&[byte])?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(())
    });
    assert_eq!(statistics.silences, 1);
}

#[test]
fn the_reason_of_a_server_is_reported() {
    let statistics = despite(|wire, _| {
        wire.write(b"\x03\0\x04\0\x05\0\0\0bye\x1b!")?;
        wire.linger()
    });
    assert_eq!((statistics.disconnects, statistics.violations), (1, 0));
}

#[test]
fn any_order_and_second_copies_are_right() {
    let dial = Scripted::one(|wire| {
        wire.welcome(&Welcome::default())?;
        let (_, mut frames) = wire.request()?;
        frames.reverse();
        let (urgent, again) = wire.request()?;
        assert!(urgent);
        frames.extend(again);
        for frame in frames {
            wire.write(&pages(&[honest(frame)]))?;
        }
        wire.linger()
    });
    let client = client(dial, short_timeouts());
    client.request(&indices(0..50), Priority::Prefetch).unwrap();
    client.request(&indices([9, 30]), Priority::Urgent).unwrap();
    let mut arrived = Arrived::new();
    receive(&client, 50, &mut arrived).unwrap();
    check(&arrived);
    let start = Instant::now();
    while client.statistics().second_copies < 2 && start.elapsed() < WATCHDOG {
        client.receive(Duration::from_millis(20), &mut |_| panic!("a second copy")).unwrap();
    }
    assert_eq!((client.statistics().second_copies, client.statistics().disconnects), (2, 0));
}

#[test]
fn a_wrong_welcome_is_refused() {
    let wrong = [
        Welcome { magic: *b"HTTP/1.1", ..Welcome::default() },
        Welcome { version: 2, ..Welcome::default() },
        // The server enables a feature that was not requested.
        Welcome { features: 3, ..Welcome::default() },
        Welcome { frames: 0, ..Welcome::default() },
        Welcome { image: [1; 32], ..Welcome::default() },
        Welcome { pending: 0, ..Welcome::default() },
        Welcome { pending: u32::MAX, ..Welcome::default() },
        Welcome { batch: 0, ..Welcome::default() },
        Welcome { batch: 65, ..Welcome::default() },
        Welcome { status: 3, ..Welcome::default() },
        Welcome { status: 3, text: 513, ..Welcome::default() },
        Welcome { status: 77, text: u32::MAX, ..Welcome::default() },
    ];
    for welcome in wrong {
        let bytes = welcome.bytes();
        let dial = Scripted::one(move |wire| {
            wire.read(72)?;
            wire.write(&bytes)?;
            wire.linger()
        });
        let options = || short_timeouts().image(Some(DIGEST));
        Client::connect(Arc::new(dial.clone()), options()).unwrap_err();
        let client = client(dial.and_honest(), options());
        assert_eq!(client.frames(), 100);
    }
    // No bytes, half a welcome, and a welcome that arrives too slowly.
    for cut in [0, 30, 71] {
        let dial = Scripted::one(move |wire| {
            wire.read(72)?;
            wire.write(&Welcome::default().bytes()[..cut])?;
            wire.linger()
        });
        let error = Client::connect(Arc::new(dial), short_timeouts()).unwrap_err();
        assert!(error.to_string().contains("does not respond"), "{error}");
    }
    let slow = Scripted::one(|wire| {
        wire.read(72)?;
        for byte in Welcome::default().bytes() {
            wire.write(&[byte])?;
            std::thread::sleep(Duration::from_millis(20));
        }
        wire.linger()
    });
    Client::connect(Arc::new(slow), short_timeouts()).unwrap_err();
}

#[test]
fn a_descriptor_that_is_damaged_or_misplaced_is_refused() {
    let descriptor: Vec<u8> = (0..200u8).collect();
    let part = |offset: u32, bytes: &[u8], checksum: Option<u64>| {
        let checksum = checksum
            .unwrap_or_else(|| twox_hash::XxHash3_64::oneshot_with_seed(offset.into(), bytes));
        let mut reply = vec![2, 0, 0, 0];
        reply.extend((16 + bytes.len() as u32).to_le_bytes());
        reply.extend(offset.to_le_bytes());
        reply.extend([0; 4]);
        reply.extend(checksum.to_le_bytes());
        reply.extend(bytes);
        reply
    };
    let replies = [
        (true, part(0, &descriptor, None)),
        (false, part(0, &descriptor, Some(1))),
        (false, part(0, &descriptor[..199], None)),
        (false, part(1, &descriptor[1..], None)),
        (false, part(0, &[&descriptor[..], &[0]].concat(), None)),
        (false, pages(&[honest(1)])),
        (false, b"\x03\0\x01\0\0\0\0\0".to_vec()),
    ];
    for (is_right, reply) in replies {
        let dial = Scripted::one(move |wire| {
            wire.welcome(&Welcome { descriptor: 200, ..Welcome::default() })?;
            assert_eq!(wire.read(16)?, [2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0]);
            wire.write(&reply)?;
            wire.linger()
        });
        let fetched = client(dial, short_timeouts()).fetch_descriptor();
        assert_eq!(fetched.ok(), is_right.then(|| descriptor.clone()));
    }
}
