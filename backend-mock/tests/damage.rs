//! Coloring of damaged guests ends in bounded time, and remains right for undamaged parts.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not see as tests")]

use kaleidoscope_core::color::FrameKind;
use kaleidoscope_core::coloring::{Coloring, ColoringOptions, color};
use kaleidoscope_mock::linux::{Area, Damage, GuestBuilder, KernelStyle, MockGuest};
use std::time::{Duration, Instant};

/// Much more time than an undamaged guest of this size needs, even unoptimized on a busy host.
const LIMIT: Duration = Duration::from_secs(120);

fn guest(style: KernelStyle, seed: u64) -> MockGuest {
    GuestBuilder::new(style).ram_bytes(16 << 20).processes(2).seed(seed).build().unwrap()
}

/// Colors a guest with and without registers; returns the first successful result.
fn color_both_ways(name: &str, guest: &MockGuest) -> Option<Coloring> {
    let mut out = None;
    for registers in [guest.registers.clone(), Vec::new()] {
        let start = Instant::now();
        let coloring = color(&guest.memory, &ColoringOptions::default().registers(registers)).ok();
        assert!(start.elapsed() < LIMIT, "{name} took {:?}", start.elapsed());
        out = out.or(coloring);
    }
    out
}

/// Percentage of frames whose kind was found.
fn right(guest: &MockGuest, coloring: &Coloring) -> usize {
    let kinds = coloring.map.iter();
    let right = kinds.filter(|(i, _, f)| f.kind == guest.truth.kind(*i)).count();
    right * 100 / coloring.map.len()
}

#[test]
fn every_kind_of_damage_stays_local() {
    for style in KernelStyle::ALL {
        let undamaged = guest(style, 5);
        for damage in Damage::ALL {
            let mut guest = undamaged.clone();
            guest.damage(damage).unwrap_or_else(|e| panic!("{style:?} {damage:?}: {e}"));
            let name = format!("{style:?} {damage:?}");
            let coloring =
                color_both_ways(&name, &guest).unwrap_or_else(|| panic!("{name}: nothing found"));
            let right = right(&guest, &coloring);
            assert!(right >= 90, "{name}: {right} % right");
        }
    }
}

#[test]
fn flipped_bits_are_survived() {
    for style in KernelStyle::ALL {
        let undamaged = guest(style, 6);
        for area in Area::ALL {
            for seed in 0..2 {
                let mut guest = undamaged.clone();
                guest.flip_bits_in(area, seed, 2000).unwrap();
                if let Some(coloring) =
                    color_both_ways(&format!("{style:?} {area:?} {seed}"), &guest)
                {
                    assert_eq!(coloring.map.len(), guest.truth.roles().len());
                }
            }
        }
    }
}

/// A few flipped bits rarely affect more than their own frame.
#[test]
fn rare_errors_do_little_harm() {
    for style in KernelStyle::ALL {
        let mut guest = guest(style, 9);
        guest.flip_bits(1, 50).unwrap();
        let coloring = color_both_ways("rare", &guest).unwrap();
        let right = right(&guest, &coloring);
        assert!(right >= 98, "{style:?}: {right} % right");
    }
}

/// A frame in use is never called free, whichever bits of the frame table are flipped: filling it
/// with zeros would destroy its contents. Flips that produce a valid free page cannot be detected,
/// so a few are allowed.
#[test]
fn damage_seldom_frees_what_is_in_use() {
    for style in KernelStyle::ALL {
        let mut guest = guest(style, 3);
        guest.flip_bits_in(Area::FrameTable, 3, 3000).unwrap();
        let coloring = color_both_ways("free", &guest).unwrap();
        let wrongly_free = coloring
            .map
            .iter()
            .filter(|(i, _, f)| {
                f.kind == FrameKind::Free && guest.truth.kind(*i) != FrameKind::Free
            })
            .count();
        assert!(wrongly_free < 20, "{style:?}: {wrongly_free} frames in use were called free");
    }
}
