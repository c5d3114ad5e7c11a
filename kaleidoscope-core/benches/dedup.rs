//! Measures the cost of finding equal pages: fingerprinting relative to a bare hash loop, and
//! selection and partial hashing relative to full hashing.
//!
//! `cargo bench -p kaleidoscope-core --bench dedup` measures a synthetic guest. If
//! `KALEIDOSCOPE_GUESTS` names a directory of guest directories (`ram.bin`, `layout.txt`,
//! `regs.txt`), it measures those too. It first prints these ratios with their targets; then
//! criterion compares means with those of the last run.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark's figures are for people"
)]

use criterion::Criterion;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::dedup::{
    Adaptive, BuildIds, Catalog, DedupSelector, GuestNumber, HitRates, SelectionOutcome,
};
use kaleidoscope_core::fingerprint::{Domain, contents, partial_contents};
use kaleidoscope_core::image::{Format, LayoutFile, MemoryImage, RawLayout};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_core::registers::parse_qemu_text;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use std::error::Error;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// RAM of the synthetic guest in bytes.
const RAM: u64 = 64 << 20;

/// Frames selected at once.
const ROUND: usize = 1024;

/// Number of runs, the fastest of which counts; the second constant is for short measurements.
const RUNS: usize = 5;
const MORE_RUNS: usize = 40;

/// A guest to measure.
struct Guest {
    name: String,
    memory: Box<dyn GuestMemory>,
    locality: Arc<LocalityOrder>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut guests = vec![synthetic()?];
    match std::env::var_os("KALEIDOSCOPE_GUESTS") {
        Some(folder) if !folder.is_empty() => guests.extend(real_guests(Path::new(&folder))?),
        _ => println!("SKIPPED real guests: KALEIDOSCOPE_GUESTS names no folder"),
    }
    for guest in &guests {
        report(guest)?;
    }
    if let Some(guest) = guests.first() {
        compare(guest);
    }
    Ok(())
}

fn synthetic() -> Result<Guest, Box<dyn Error>> {
    let guest = GuestBuilder::new(KernelStyle::V6_1).seed(3).ram_bytes(RAM).build()?;
    let options = ColoringOptions::default().registers(guest.registers.clone());
    let map = color(&guest.memory, &options)?.map;
    let locality = Arc::new(LocalityOrder::new(map));
    Ok(Guest { name: "synthetic".into(), memory: Box::new(guest.memory), locality })
}

fn real_guests(folder: &Path) -> Result<Vec<Guest>, Box<dyn Error>> {
    let mut guests = Vec::new();
    for entry in folder.read_dir()? {
        let folder = entry?.path();
        if !folder.join("ram.bin").is_file() {
            continue;
        }
        let layout = LayoutFile::open(&folder.join("layout.txt"))?;
        let format = Format::Raw(RawLayout::File(layout));
        let image = MemoryImage::open(folder.join("ram.bin"), &format)?;
        let registers = parse_qemu_text(&std::fs::read_to_string(folder.join("regs.txt"))?)?;
        let map = color(&image, &ColoringOptions::default().registers(registers))?.map;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        guests.push(Guest {
            name,
            memory: Box::new(image),
            locality: Arc::new(LocalityOrder::new(map)),
        });
    }
    Ok(guests)
}

/// The frames that are not free.
fn candidates(guest: &Guest) -> Vec<FrameIndex> {
    (0..guest.locality.frames()).map(FrameIndex).filter(|f| !guest.locality.is_free(*f)).collect()
}

/// Hashes the frames with BLAKE3 in a bare loop: one thread, no zero check, no table.
fn hash_loop(guest: &Guest, frames: &[FrameIndex]) {
    let mut buffer = [0; FRAME_BYTES];
    for frame in frames {
        let Some(gfn) = guest.locality.layout().gfn_of(*frame) else { continue };
        let page = match guest.memory.slice(gfn.gpa(), FRAME_BYTES) {
            Some(page) => page,
            None if guest.memory.read(gfn.gpa(), &mut buffer).is_ok() => &buffer,
            None => continue,
        };
        black_box(blake3::keyed_hash(&[1; 32], page));
    }
}

/// Selects frames in rounds until none is worth hashing, as if two of three frames had an equal
/// page. Returns the number of frames selected.
fn select_all(guest: &Guest) -> usize {
    let mut catalog = Catalog::new();
    let Ok(ids) = BuildIds::read(guest.memory.as_ref(), &guest.locality) else { return 0 };
    // Two guests with equal names, which is the worst case.
    let number: GuestNumber = catalog.add_with(&guest.locality, &ids);
    catalog.add_with(&guest.locality, &ids);
    let mut selector =
        Adaptive::new(Arc::clone(&guest.locality), &catalog, number, &HitRates::shipped());
    let (mut frames, mut outcomes) = (Vec::new(), Vec::new());
    let mut count = 0;
    loop {
        frames.clear();
        selector.select(ROUND, &mut frames);
        if frames.is_empty() {
            return count;
        }
        count += frames.len();
        outcomes.clear();
        outcomes.extend(frames.iter().map(|frame| match frame.0 % 3 {
            0 => (*frame, SelectionOutcome::Alone),
            _ => (*frame, SelectionOutcome::Shared { copies: 2 }),
        }));
        selector.learn(&outcomes);
    }
}

fn fastest(runs: usize, mut work: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..runs).map(time).min().unwrap_or_default()
}

fn report(guest: &Guest) -> Result<(), Box<dyn Error>> {
    let frames = candidates(guest);
    let domain = Domain::new([1; 32]);
    let all = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    contents(guest.memory.as_ref(), &frames, &domain, all)?;
    let hash = |threads| {
        fastest(RUNS, || {
            drop(black_box(contents(guest.memory.as_ref(), &frames, &domain, threads)));
        })
    };
    let (bare_loop, one, many) =
        (fastest(RUNS, || hash_loop(guest, &frames)), hash(NonZeroUsize::MIN), hash(all));
    let partial_hashing = fastest(MORE_RUNS, || {
        let one = NonZeroUsize::MIN;
        drop(black_box(partial_contents(guest.memory.as_ref(), &frames, &domain, one)));
    });
    let selected = select_all(guest);
    let selecting = fastest(MORE_RUNS, || {
        black_box(select_all(guest));
    });
    let share = |part: Duration, of: Duration| 100.0 * part.as_secs_f64() / of.as_secs_f64();
    println!(
        "{}: {} frames hashed in {one:.1?} on one thread, {many:.1?} on {all}; a bare loop: \
         {bare_loop:.1?}: {:.0} % of its throughput on one thread (70 % or more expected), \
         {:.0} % on {all}",
        guest.name,
        frames.len(),
        share(bare_loop, one),
        share(bare_loop, many),
    );
    println!(
        "{}: {selected} frames selected in {selecting:.2?}: {:.1} % of hashing all on one \
         thread (less than 5 % expected)",
        guest.name,
        share(selecting, one),
    );
    println!(
        "{}: {} frames hashed partially in {partial_hashing:.2?}: {:.1} % of hashing all on one \
         thread",
        guest.name,
        frames.len(),
        share(partial_hashing, one),
    );
    Ok(())
}

fn compare(guest: &Guest) {
    let frames = candidates(guest);
    let domain = Domain::new([1; 32]);
    let mut criterion = Criterion::default().configure_from_args();
    criterion.bench_function("dedup/bare", |b| b.iter(|| hash_loop(guest, &frames)));
    criterion.bench_function("dedup/contents", |b| {
        b.iter(|| contents(guest.memory.as_ref(), &frames, &domain, NonZeroUsize::MIN));
    });
    criterion.bench_function("dedup/partial", |b| {
        b.iter(|| partial_contents(guest.memory.as_ref(), &frames, &domain, NonZeroUsize::MIN));
    });
    criterion.bench_function("dedup/choose", |b| b.iter(|| select_all(guest)));
    criterion.final_summary();
}
