//! The tuner on a small guest whose clones read a large file sequentially, and anonymous memory at
//! random.

use super::*;
use crate::addr::FrameIndex;
use crate::color::{
    Color, ColorMap, Frame, FrameKind, KernelIdentity, Order, Region, RegionId, Temperature,
};
use crate::memory::MemoryLayout;
use crate::prefetch::{
    Access, Blind, Class, ColorGuide, Colored, LocalityOrder, RecencyHint, Settings, Window,
};
use crate::replay::{Counter, Touch, Trace};
use std::sync::Arc;

/// Numbers of frames of the guest's consecutive parts.
const FILE: u32 = 512;
const ANONYMOUS: u32 = 1024;
const SLAB: u32 = 256;
const SMALL: u32 = 64;
const FREE: u32 = 256;
const FRAMES: u32 = FILE + ANONYMOUS + SLAB + SMALL + FREE;

/// A pseudo-random number generator.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        u32::try_from((self.0 >> 33) % u64::from(limit)).unwrap()
    }
}

/// A large file, a process, a slab cache with the inodes whose every fourth frame was used
/// recently, 16 small files, and free memory. Frame numbers do not reflect the order in regions.
fn locality() -> Arc<LocalityOrder> {
    let layout = MemoryLayout::contiguous(u64::from(FRAMES) << 12).unwrap();
    let slab = FILE + ANONYMOUS;
    let mut regions = vec![
        Region::new(FrameKind::File, Order::FileOffset, "ext4:1:1:/big"),
        Region::new(FrameKind::Anonymous, Order::UserAddress, "worker[7]"),
        Region::new(FrameKind::Slab, Order::KernelAddress, "inode_cache"),
    ];
    regions.extend((0..16).map(|n| {
        let file = Region::new(FrameKind::File, Order::FileOffset, format!("ext4:1:{n}:/s"));
        Region { anchor: Some(FrameIndex(slab + n * 3)), ..file }
    }));
    let frame = |kind, color, region: Option<u32>, position: u32| Frame {
        kind,
        color,
        region: region.map(RegionId),
        position: u64::from(position),
        ..Frame::default()
    };
    // 37 is odd, so every position occurs once.
    let shuffled = |at: u32, of: u32| at * 37 % of;
    let frames = (0..FRAMES).map(|at| {
        let cuts = [FILE, slab, slab + SLAB, slab + SLAB + SMALL];
        match cuts.iter().position(|cut| at < *cut) {
            Some(0) => frame(FrameKind::File, Color::FileCache, Some(0), shuffled(at, FILE)),
            Some(1) => {
                let position = shuffled(at - FILE, ANONYMOUS);
                frame(FrameKind::Anonymous, Color::Anonymous, Some(1), position)
            }
            Some(2) => {
                let recent = (at % 4 == 0).then_some(Temperature::RECENT_TASK);
                let temperature = recent.unwrap_or(Temperature::NONE);
                Frame { temperature, ..frame(FrameKind::Slab, Color::Slab, Some(2), at) }
            }
            Some(_) => {
                let at = at - slab - SLAB;
                frame(FrameKind::File, Color::FileCache, Some(3 + at / 4), at % 4)
            }
            None => frame(FrameKind::Free, Color::Free, None, 0),
        }
    });
    let map = ColorMap::new(layout, KernelIdentity::default(), frames, regions).unwrap();
    Arc::new(LocalityOrder::new(map))
}

/// A clone that reads a quarter of the large file sequentially, few anonymous pages at random, the
/// recently used slab frames, some small files, and free memory.
fn trace(locality: &LocalityOrder, seed: u64) -> Trace {
    let mut numbers = Numbers(seed);
    let mut frames = Vec::new();
    let quarter = FILE / 4 * numbers.below(4);
    for place in locality.range(0).skip(quarter as usize).take(FILE as usize / 4) {
        frames.push(locality.at(place).unwrap());
        if place % 4 == 0 {
            frames.push(FrameIndex(FILE + numbers.below(ANONYMOUS)));
        }
        if place % 16 == 0 {
            let file = locality.range(3 + numbers.below(16));
            frames.extend_from_slice(locality.run(file));
            frames.push(FrameIndex(FRAMES - 1 - numbers.below(FREE)));
        }
    }
    frames.extend((FILE + ANONYMOUS..FILE + ANONYMOUS + SLAB).step_by(4).map(FrameIndex));
    let touches = (0..).zip(frames).map(|(at_us, frame)| Touch {
        at_us,
        frame,
        access: Access::Read,
        vcpu: 0,
    });
    Trace::new(touches, locality.layout())
}

fn subject() -> TracedGuest {
    let locality = locality();
    let traces = (1..4).map(|seed| trace(&locality, seed)).collect();
    TracedGuest { locality, traces }
}

fn start(window: Window) -> Settings {
    Settings { windows: [window; Class::COUNT], ..Settings::bare("test") }
}

fn tuned(subject: &TracedGuest, start: Settings, price: f64) -> Settings {
    tune([subject], start, &Tuner { price, rounds: 3 }, &mut |_, _, _| {})
}

fn score(subject: &TracedGuest, settings: &Settings) -> Score {
    Judge::new([subject]).score(settings)
}

fn class(name: &str) -> Class {
    name.parse().unwrap()
}

#[test]
fn windows_follow_what_clones_do() {
    let subject = subject();
    let settings = tuned(&subject, start(Window::fixed(8)), 1.0);
    let file = settings.window(class("file-cache"));
    assert!(file.cold.max(file.max) >= 64, "read page by page: {file:?}");
    let anonymous = settings.window(class("anonymous"));
    assert!(anonymous.cold.max(anonymous.max) <= 4, "touched at random: {anonymous:?}");
    // Every fourth slab frame is needed: the hint selects these, and the others are not fetched.
    let frames = |signs: &[RecencyHint]| {
        let predict = Settings { predict: signs.to_vec(), ..Settings::bare("") };
        ColorGuide::new(Arc::clone(&subject.locality), predict).predicted().len()
    };
    let slab = class("slab/inodes");
    let signs: Vec<_> =
        settings.predict.iter().filter(|sign| sign.class == slab).copied().collect();
    assert_eq!(frames(&signs), 64, "{signs:?}");
    assert!(signs.iter().all(|sign| sign.signs.contains(Temperature::RECENT_TASK)));
    let after = score(&subject, &settings);
    assert!(after.coverage > 0.8 && after.faults < 0.5, "{after:?}");
}

#[test]
fn a_higher_price_buys_less_waste() {
    let subject = subject();
    let scores = [0.01, 1.0, 30.0]
        .map(|price| score(&subject, &tuned(&subject, start(Window::fixed(8)), price)));
    let [cheap, fair, dear] = scores;
    assert!(cheap.waste > fair.waste && fair.waste > dear.waste, "{scores:?}");
    assert!(cheap.faults < fair.faults && fair.faults < dear.faults, "{scores:?}");
    assert!(dear.accuracy > cheap.accuracy, "{scores:?}");
}

#[test]
fn tuning_never_increases_the_cost_and_is_deterministic() {
    let subject = subject();
    let grown = Window { cold: 2, hot: 32, grow: 1, max: 256 };
    for price in [0.0, 0.3, 3.0] {
        for start in [Window::fixed(1), Window::fixed(512), grown].map(start) {
            let before = score(&subject, &start).cost(price);
            let settings = tuned(&subject, start.clone(), price);
            let after = score(&subject, &settings).cost(price);
            assert!(after <= before, "price {price}: {after} after {before}");
            assert_eq!(tuned(&subject, start, price), settings);
            assert_eq!(Settings::parse(&settings.to_text()), Ok(settings));
        }
    }
}

#[test]
fn progress_is_reported_for_each_class() {
    let subject = subject();
    let classes = touched([&subject]);
    let names = ["anonymous", "file-cache", "file-cache/small", "slab/inodes"];
    assert_eq!(classes.iter().map(|c| c.name()).collect::<Vec<_>>(), names);
    let mut reports = Vec::new();
    let tuner = Tuner { price: 1.0, rounds: 1 };
    let settings = tune([&subject], start(Window::fixed(8)), &tuner, &mut |round, class, score| {
        reports.push((round, class, score.cost(1.0)));
    });
    assert_eq!(reports.iter().map(|(_, class, _)| *class).collect::<Vec<_>>(), classes);
    assert!(reports.iter().all(|(round, _, _)| *round == 0));
    assert!(reports.is_sorted_by(|a, b| a.2 >= b.2), "{reports:?}");
    assert!(score(&subject, &settings).cost(1.0) <= reports.last().unwrap().2);
}

#[test]
fn tuning_without_traces_changes_nothing() {
    let settings =
        tune([], start(Window::fixed(8)), &Tuner { price: 1.0, rounds: 2 }, &mut |_, _, _| {});
    assert_eq!(settings, start(Window::fixed(8)));
    let idle = TracedGuest { locality: locality(), traces: vec![Trace::default()] };
    assert!(touched([&idle]).is_empty());
    let settings = tuned(&idle, start(Window::fixed(8)), 1.0);
    assert_eq!(score(&idle, &settings).waste, 0.0);
}

/// Settings that differ from the given ones in one number or list.
fn changed(settings: &Settings, numbers: &mut Numbers) -> Settings {
    let mut settings = settings.clone();
    let classes = touched([&subject()]);
    let class = classes[numbers.below(u32::try_from(classes.len()).unwrap()) as usize];
    match numbers.below(8) {
        0 => settings.inode_pages = numbers.below(4),
        1 => settings.predict.clear(),
        2 => settings.predict.push(RecencyHint { class, signs: Temperature::NONE }),
        3 => settings.predict.push(RecencyHint { class, signs: Temperature::RECENT_TASK }),
        4 => settings.predict_caches = vec!["inode_cache".to_owned()],
        5 => settings.predict_caches.clear(),
        _ => {
            let size = |numbers: &mut Numbers| 1 << numbers.below(9);
            let (cold, hot, max) = (size(numbers), size(numbers), size(numbers));
            let window = Window { cold, hot, grow: numbers.below(4), max };
            settings.windows[class.index()] = window;
        }
    }
    settings
}

#[test]
fn partial_replays_equal_full_replays() {
    let subject = subject();
    let mut numbers = Numbers(5);
    let mut judge = Judge::new([&subject]);
    let mut kept = start(Window::fixed(4));
    for _ in 0..300 {
        let settings = changed(&kept, &mut numbers);
        let score = judge.score(&settings);
        assert_eq!(score, self::score(&subject, &settings), "{kept:?}\n{settings:?}");
        if numbers.below(2) == 0 {
            judge.keep();
            kept = settings;
        }
    }
}

#[test]
fn scores_are_those_of_a_whole_replay() {
    let subject = subject();
    let mut numbers = Numbers(9);
    let mut settings = start(Window::fixed(4));
    let mut counter = Counter::new(Arc::clone(&subject.locality), 256);
    for _ in 0..30 {
        settings = changed(&settings, &mut numbers);
        let guide = Arc::new(ColorGuide::new(Arc::clone(&subject.locality), settings.clone()));
        let (mut faults, mut waste) = (0.0, 0.0);
        for trace in &subject.traces {
            let counts = counter.count(trace, &mut Colored::new(Arc::clone(&guide)));
            let blind = counter.count(trace, &mut Blind::aligned(16));
            faults += f64::from(counts.faults) / f64::from(blind.faults) / 3.0;
            waste += f64::from(counts.wasted()) / f64::from(blind.wasted()) / 3.0;
        }
        let score = score(&subject, &settings);
        assert!((score.faults - faults).abs() < 1e-9, "{settings:?}");
        assert!((score.waste - waste).abs() < 1e-9, "{settings:?}");
    }
}
