//! Measures prefetch: decisions of every policy, a replay, and the construction of a locality
//! order.
//!
//! `cargo bench -p kaleidoscope-core --bench prefetch` first prints medians and 99th percentiles of
//! single decisions, which means would hide, with their targets; then criterion compares means with
//! those of the last run. The guest is synthetic, with 1 GiB. If `KALEIDOSCOPE_GUESTS` names a
//! directory of guest directories, those with traces are measured too (`ram.bin`, `layout.txt`,
//! `regs.txt`, `traces/*.csv`).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark's figures are for people"
)]

#[path = "../tests/prefetch/policies.rs"]
mod policies;

use criterion::{BatchSize, Criterion};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::color::{
    Color, ColorMap, Frame, FrameKind, KernelIdentity, Order, Region, RegionId,
};
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::image::{Format, LayoutFile, MemoryImage, RawLayout};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout};
use kaleidoscope_core::prefetch::{Access, Fault, LocalityOrder, Plan, PrefetchPolicy, Presence};
use kaleidoscope_core::registers::parse_qemu_text;
use kaleidoscope_core::replay::{CostModel, Replay, Touch, Trace, replay};
use kaleidoscope_mock::Rng;
use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Number of decisions that are timed individually.
const DECISIONS: usize = 100_000;

/// Maximum frames of a plan, and of a batch of the background fill.
const BUDGET: usize = 256;
const BATCH: usize = 64;

/// Frames of the synthetic guest, and touches of its trace.
const FRAMES: u32 = 1 << 18;
const TOUCHES: usize = 16_000;

/// A guest to measure.
struct Guest {
    name: String,
    locality: Arc<LocalityOrder>,
    trace: Trace,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut guests = vec![synthetic()?];
    match std::env::var_os("KALEIDOSCOPE_GUESTS") {
        Some(folder) if !folder.is_empty() => guests.extend(real_guests(Path::new(&folder))?),
        _ => println!("SKIPPED real guests: KALEIDOSCOPE_GUESTS names no folder"),
    }
    for guest in &guests {
        report(guest);
    }
    if let Some(guest) = guests.first() {
        compare(guest);
    }
    Ok(())
}

/// The policies, without window sizes that only tests use.
fn measured(locality: &Arc<LocalityOrder>) -> Vec<Box<dyn PrefetchPolicy>> {
    let mut all = policies::policies(locality);
    let size = |name: &str| name.rsplit('-').next().and_then(|size| size.parse::<u32>().ok());
    all.retain(|policy| size(policy.name()).is_none_or(|size| (2..=1024).contains(&size)));
    all
}

/// The frames present in the clone.
struct Present(Vec<bool>);

impl Presence for Present {
    fn is_absent(&self, frame: FrameIndex) -> bool {
        self.0.get(frame.as_usize()) == Some(&false)
    }
}

impl Present {
    fn nothing(locality: &LocalityOrder) -> Self {
        Self(vec![false; locality.map().len()])
    }

    fn add(&mut self, frames: &[FrameIndex]) {
        for frame in frames {
            if let Some(there) = self.0.get_mut(frame.as_usize()) {
                *there = true;
            }
        }
    }
}

/// Prints the durations of single decisions and of a replay.
fn report(guest: &Guest) {
    let Guest { name, locality, trace } = guest;
    let frames = locality.frames();
    println!("\n{name}: {frames} frames, {} regions", locality.stretches() - 1);
    let map = locality.map().clone();
    println!("locality: {:.2} ms", millis(&timed(|| LocalityOrder::new(map)).1));
    println!(
        "decisions in ns; the goal is a median of 1000, 99th percentiles of 10000, and a replay \
         of 100 ms\n{:<20} {:>8} \
         {:>8} {:>8} {:>8} {:>10} {:>10} {:>10}",
        "policy", "median", "p99", "p99.9", "frames", "batch", "batch p99", "replay ms"
    );
    for number in 0..measured(locality).len() {
        let fresh = || measured(locality).swap_remove(number);
        let (faults, planned) = faults(guest, fresh);
        let batches = batches(locality, &mut *fresh());
        let options = Replay::new(CostModel::GBE);
        let mut policy = fresh();
        let replayed = timed(|| replay(trace, locality, &mut *policy, &options)).1;
        let [median, p99, p999] = [500, 990, 999].map(|share| nanos(&faults, share));
        // A policy without background fill has a single, empty batch.
        let [batch, batch_p99] = [500, 990].map(|share| match batches.len() {
            ..2 => "-".to_owned(),
            _ => nanos(&batches, share).to_string(),
        });
        println!(
            "{:<20} {median:>8} {p99:>8} {p999:>8} {planned:>8.1} {batch:>10} \
             {batch_p99:>10} {:>10.2}",
            policy.name(),
            millis(&replayed),
        );
    }
}

/// Times each fault decision alone, from an empty clone to the end of the trace, repeated until
/// there are enough. Also returns the mean number of frames planned per decision.
fn faults(guest: &Guest, fresh: impl Fn() -> Box<dyn PrefetchPolicy>) -> (Vec<Duration>, f64) {
    let Guest { locality, trace, .. } = guest;
    let (mut took, mut planned) = (Vec::with_capacity(DECISIONS), 0_u32);
    let mut plan = Plan::new(Arc::clone(locality), BUDGET);
    while took.len() < DECISIONS {
        let (mut policy, mut present) = (fresh(), Present::nothing(locality));
        for touch in trace.touches() {
            if !present.is_absent(touch.frame) {
                continue;
            }
            let fault = Fault { frame: touch.frame, access: touch.access, in_flight: false };
            let start = Instant::now();
            policy.fault(&fault, &mut plan.begin(&present, Some(touch.frame)));
            took.push(start.elapsed());
            present.add(&[touch.frame]);
            present.add(plan.fetch());
            present.add(plan.zero());
            planned += u32::try_from(plan.fetch().len() + plan.zero().len()).unwrap_or(u32::MAX);
        }
    }
    let decisions = u32::try_from(took.len()).unwrap_or(u32::MAX);
    took.sort_unstable();
    (took, f64::from(planned) / f64::from(decisions))
}

/// Times batches of the background fill, until a batch is empty.
fn batches(locality: &Arc<LocalityOrder>, policy: &mut dyn PrefetchPolicy) -> Vec<Duration> {
    let (mut took, mut present) = (Vec::new(), Present::nothing(locality));
    let mut plan = Plan::new(Arc::clone(locality), BATCH);
    loop {
        let start = Instant::now();
        policy.background(&mut plan.begin(&present, None));
        took.push(start.elapsed());
        if plan.fetch().is_empty() && plan.zero().is_empty() {
            took.sort_unstable();
            return took;
        }
        present.add(plan.fetch());
        present.add(plan.zero());
    }
}

/// Lets criterion compare with the last run.
fn compare(guest: &Guest) {
    let Guest { locality, trace, .. } = guest;
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    criterion.bench_function("locality", |bencher| {
        bencher.iter_batched(|| locality.map().clone(), LocalityOrder::new, BatchSize::LargeInput);
    });
    let mut group = criterion.benchmark_group("decision");
    for mut policy in measured(locality) {
        // A clone with some frames present, so that plans differ in length.
        let mut rng = Rng::new(1);
        let present = Present((0..FRAMES).map(|_| rng.one_in(3)).collect());
        let mut plan = Plan::new(Arc::clone(locality), BUDGET);
        let mut touches = trace.touches().iter().cycle();
        group.bench_function(policy.name().to_owned(), |bencher| {
            bencher.iter(|| {
                let Some(touch) = touches.next() else { return 0 };
                let fault = Fault { frame: touch.frame, access: touch.access, in_flight: false };
                policy.fault(&fault, &mut plan.begin(&present, Some(touch.frame)));
                black_box(plan.fetch().len())
            });
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("replay");
    for number in 0..measured(locality).len() {
        let fresh = || measured(locality).swap_remove(number);
        let options = Replay::new(CostModel::GBE);
        group.bench_function(fresh().name().to_owned(), |bencher| {
            let run = |mut policy: Box<dyn PrefetchPolicy>| {
                replay(trace, locality, &mut *policy, &options)
            };
            bencher.iter_batched(fresh, run, BatchSize::LargeInput);
        });
    }
    group.finish();
    criterion.final_summary();
}

fn timed<T>(f: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let out = black_box(f());
    (out, start.elapsed())
}

fn millis(duration: &Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The quantile at `share` thousandths of sorted durations, in nanoseconds.
fn nanos(sorted: &[Duration], share: usize) -> u128 {
    let at = (sorted.len() * share / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default().as_nanos()
}

/// A guest of 1 GiB like a warm server: thousands of files, some processes, slab caches, and 40 %
/// of RAM free, in short runs of neighbors all over RAM.
fn synthetic() -> Result<Guest, Box<dyn Error>> {
    // Kind, color, order, share of RAM in percent, and the base-2 logarithm of the largest region.
    let parts = [
        (FrameKind::File, Color::FileCache, Order::FileOffset, 20, 11),
        (FrameKind::File, Color::FileCode, Order::FileOffset, 10, 9),
        (FrameKind::Anonymous, Color::Anonymous, Order::UserAddress, 18, 13),
        (FrameKind::Slab, Color::Slab, Order::KernelAddress, 7, 11),
        (FrameKind::Kernel, Color::KernelData, Order::KernelAddress, 4, 12),
        (FrameKind::PageTable, Color::PageTable, Order::FrameNumber, 1, 9),
    ];
    let (mut rng, mut regions, mut runs) = (Rng::new(1), Vec::new(), Vec::new());
    for (kind, color, order, percent, most) in parts {
        let mut left = u64::from(FRAMES) * percent / 100;
        while left > 0 {
            // Most regions are small, but most frames are in large regions.
            let (one, other) = (rng.below(most + 1), rng.below(most + 1));
            let pages = (1 + rng.below(1 << one.min(other))).min(left);
            left -= pages;
            let region = Some(RegionId(u32::try_from(regions.len())?));
            regions.push(Region::new(kind, order, ""));
            let mut position = 0;
            while position < pages {
                let run = (1 + rng.below(32)).min(pages - position);
                let frame = |position| Frame { kind, color, region, position, ..Frame::default() };
                runs.push((position..position + run).map(frame).collect::<Vec<_>>());
                position += run;
            }
        }
    }
    let mut left = usize::try_from(FRAMES)? - runs.iter().map(Vec::len).sum::<usize>();
    while left > 0 {
        let run = (1 + rng.index(512)).min(left);
        left -= run;
        let free = Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() };
        runs.push(vec![free; run]);
    }
    rng.shuffle(&mut runs);
    let layout = MemoryLayout::contiguous(u64::from(FRAMES) << 12)?;
    let frames = runs.into_iter().flatten();
    let map = ColorMap::new(layout, KernelIdentity::default(), frames, regions)?;
    let locality = Arc::new(LocalityOrder::new(map));
    let trace = walk(&locality, &mut rng);
    Ok(Guest { name: "synthetic".to_owned(), locality, trace })
}

/// Touches like those of programs: chunks of regions in order, and occasionally fresh memory.
fn walk(locality: &LocalityOrder, rng: &mut Rng) -> Trace {
    let (mut touches, mut trace) = (Vec::new(), Trace::default());
    let mut at_us = 0;
    while trace.touches().len() < TOUCHES {
        for _ in 0..TOUCHES / 16 {
            let place = u32::try_from(rng.below(u64::from(FRAMES))).unwrap_or(0);
            let piece = 1 + u32::try_from(rng.below(40)).unwrap_or(0);
            let vcpu = u16::from(rng.one_in(2));
            for &frame in locality.run(place..place.saturating_add(piece)) {
                at_us += 20;
                touches.push(Touch { at_us, frame, access: Access::Read, vcpu });
            }
        }
        trace = Trace::new(touches.iter().copied(), locality.layout());
    }
    Trace::new(trace.touches().iter().copied().take(TOUCHES), locality.layout())
}

/// The guests with traces, each with its longest trace.
fn real_guests(folder: &Path) -> Result<Vec<Guest>, Box<dyn Error>> {
    let mut guests = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let folder = entry?.path();
        if !folder.join("ram.bin").exists() || !folder.join("traces").exists() {
            continue;
        }
        let layout = LayoutFile::open(&folder.join("layout.txt"))?;
        let memory =
            MemoryImage::open(folder.join("ram.bin"), &Format::Raw(RawLayout::File(layout)))?;
        let registers = parse_qemu_text(&std::fs::read_to_string(folder.join("regs.txt"))?)?;
        let map = color(&memory, &ColoringOptions::default().registers(registers))?.map;
        let mut longest = (Trace::default(), String::new());
        for entry in std::fs::read_dir(folder.join("traces"))? {
            let path = entry?.path();
            let trace = Trace::from_csv(File::open(&path)?, memory.layout())?;
            if trace.touches().len() > longest.0.touches().len() {
                longest =
                    (trace, path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let (trace, workload) = longest;
        guests.push(Guest {
            name: format!("{name}, {workload}, {} touches", trace.touches().len()),
            locality: Arc::new(LocalityOrder::new(map)),
            trace,
        });
    }
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(guests)
}
