//! What finding equal pages costs: fingerprints beside a bare loop of hashes, and choosing and
//! glancing at a few lines beside hashing.
//!
//! `cargo bench -p kaleidoscope-core --bench dedup` measures a synthetic guest; with
//! `KALEIDOSCOPE_GUESTS` naming a folder of guest folders (`ram.bin`, `layout.txt`, `regs.txt`),
//! each of those too. It first prints these ratios beside what they should be; then criterion
//! compares means with those of the last run.

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

/// RAM of the synthetic guest.
const RAM: u64 = 64 << 20;

/// Frames chosen at once.
const ROUND: usize = 1024;

/// Runs of which the fastest counts, and of what takes little time.
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
    let options =
        ColoringOptions { registers: guest.registers.clone(), ..ColoringOptions::default() };
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
        let image = MemoryImage::open(&folder.join("ram.bin"), &format)?;
        let registers = parse_qemu_text(&std::fs::read_to_string(folder.join("regs.txt"))?)?;
        let map = color(&image, &ColoringOptions { registers, ..ColoringOptions::default() })?.map;
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

/// BLAKE3 of the frames one after the other and nothing else: on one thread, no zeros, no table.
fn bare(guest: &Guest, frames: &[FrameIndex]) {
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

/// Chooses everything that is worth a hash, in rounds, as if each third frame had an equal one.
/// Returns how many frames that is.
fn choose(guest: &Guest) -> usize {
    let mut catalog = Catalog::new();
    let Ok(ids) = BuildIds::read(guest.memory.as_ref(), &guest.locality) else { return 0 };
    // Two guests with the same names, which is the most work.
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
    let (loops, one, many) =
        (fastest(RUNS, || bare(guest, &frames)), hash(NonZeroUsize::MIN), hash(all));
    let glancing = fastest(MORE_RUNS, || {
        let one = NonZeroUsize::MIN;
        drop(black_box(partial_contents(guest.memory.as_ref(), &frames, &domain, one)));
    });
    let chosen = choose(guest);
    let choosing = fastest(MORE_RUNS, || {
        black_box(choose(guest));
    });
    let share = |part: Duration, of: Duration| 100.0 * part.as_secs_f64() / of.as_secs_f64();
    println!(
        "{}: {} frames hashed in {one:.1?} on one thread, {many:.1?} on {all}; a bare loop: {loops:.1?}: \
         {:.0} % of its throughput on one thread (70 % or more is wanted), {:.0} % on {all}",
        guest.name,
        frames.len(),
        share(loops, one),
        share(loops, many),
    );
    println!(
        "{}: {chosen} frames chosen in {choosing:.2?}: {:.1} % of hashing all on one thread (less than 5 % is wanted)",
        guest.name,
        share(choosing, one),
    );
    println!(
        "{}: {} frames glanced at in {glancing:.2?}: {:.1} % of hashing all on one thread",
        guest.name,
        frames.len(),
        share(glancing, one),
    );
    Ok(())
}

fn compare(guest: &Guest) {
    let frames = candidates(guest);
    let domain = Domain::new([1; 32]);
    let mut criterion = Criterion::default().configure_from_args();
    criterion.bench_function("dedup/bare", |b| b.iter(|| bare(guest, &frames)));
    criterion.bench_function("dedup/contents", |b| {
        b.iter(|| contents(guest.memory.as_ref(), &frames, &domain, NonZeroUsize::MIN));
    });
    criterion.bench_function("dedup/partial", |b| {
        b.iter(|| partial_contents(guest.memory.as_ref(), &frames, &domain, NonZeroUsize::MIN));
    });
    criterion.bench_function("dedup/choose", |b| b.iter(|| choose(guest)));
    criterion.final_summary();
}
