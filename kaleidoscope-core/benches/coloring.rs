//! Measures coloring relative to one xxh3 pass over the same image in the same run.
//!
//! `cargo bench -p kaleidoscope-core --bench coloring` measures a synthetic guest at several sizes.
//! If `KALEIDOSCOPE_GUESTS` names a directory of guest directories (each with `ram.bin`,
//! `layout.txt`, `regs.txt`), it measures those too. One thread; the image is in the page cache and
//! mapped. The two measurements alternate, so that other load slows both.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark's figures are for people"
)]

use kaleidoscope_core::coloring::{ColoringOptions, color_with_progress};
use kaleidoscope_core::guest_os::Phase;
use kaleidoscope_core::image::{Format, LayoutFile, MemoryImage, RawLayout};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::registers::{VcpuRegisters, parse_qemu_text};
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use std::error::Error;
use std::hash::Hasher;
use std::path::Path;
use std::time::{Duration, Instant};

/// Measured rounds, after one warm-up round.
const ROUNDS: usize = 15;

/// A guest to measure.
struct Guest {
    name: String,
    memory: Box<dyn GuestMemory>,
    registers: Vec<VcpuRegisters>,
}

/// Durations of one guest, one per round.
#[derive(Default)]
struct Durations {
    hash: Vec<Duration>,
    with_registers: Vec<Duration>,
    without_registers: Vec<Duration>,
    phases: Vec<(Phase, Vec<Duration>)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut guests = Vec::new();
    for mib in [128, 512, 2048] {
        guests.push(synthetic(mib)?);
    }
    match std::env::var_os("KALEIDOSCOPE_GUESTS") {
        Some(folder) if !folder.is_empty() => guests.extend(real_guests(Path::new(&folder))?),
        _ => println!("SKIPPED real guests: KALEIDOSCOPE_GUESTS names no folder"),
    }
    println!(
        "median of {ROUNDS} rounds, one thread, in ms; ratios to one xxh3 pass over the image"
    );
    println!(
        "{:<24} {:>6} {:>8} {:>10} {:>6} {:>13} {:>6}",
        "guest", "MiB", "xxh3", "coloring", "ratio", "no registers", "ratio"
    );
    for guest in &guests {
        let durations = measure(guest)?;
        let [hash, with, without] =
            [&durations.hash, &durations.with_registers, &durations.without_registers]
                .map(|all| median(all));
        println!(
            "{:<24} {:>6} {:>8.2} {:>10.2} {:>6.2} {:>13.2} {:>6.2}",
            guest.name,
            guest.memory.layout().bytes() >> 20,
            millis(hash),
            millis(with),
            millis(with) / millis(hash),
            millis(without),
            millis(without) / millis(hash),
        );
        let phases = durations.phases.iter();
        let phases: Vec<_> =
            phases.map(|(phase, all)| format!("{phase} {:.2}", millis(median(all)))).collect();
        println!("    {}", phases.join(", "));
    }
    Ok(())
}

fn measure(guest: &Guest) -> Result<Durations, Box<dyn Error>> {
    let memory = &*guest.memory;
    let with = ColoringOptions::default().registers(guest.registers.clone());
    let without = ColoringOptions::default();
    let mut out = Durations::default();
    for round in 0..=ROUNDS {
        let hash = timed(|| hash(memory));
        let mut phases = Vec::new();
        let colored = timed(|| {
            color_with_progress(memory, &with, &mut |phase| phases.push((phase, Instant::now())))
        });
        let end = Instant::now();
        let without_registers = timed(|| color_with_progress(memory, &without, &mut |_| {}));
        colored.0?;
        without_registers.0?;
        if round == 0 {
            out.phases = phases.iter().map(|(phase, _)| (*phase, Vec::new())).collect();
            continue;
        }
        out.hash.push(hash.1);
        out.with_registers.push(colored.1);
        out.without_registers.push(without_registers.1);
        let ends = phases.iter().skip(1).map(|s| s.1).chain([end]);
        for ((all, (_, begin)), end) in out.phases.iter_mut().zip(&phases).zip(ends) {
            all.1.push(end - *begin);
        }
    }
    Ok(out)
}

/// Hashes all of RAM, region by region.
fn hash(memory: &dyn GuestMemory) -> u64 {
    let mut hasher = twox_hash::XxHash3_64::default();
    for region in memory.layout().regions() {
        let bytes = usize::try_from(region.frames).unwrap_or(0) << 12;
        if let Some(slice) = memory.slice(region.start.gpa(), bytes) {
            hasher.write(slice);
        }
    }
    hasher.finish()
}

fn timed<T>(f: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let out = std::hint::black_box(f());
    (out, start.elapsed())
}

fn median(all: &[Duration]) -> Duration {
    let mut sorted = all.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A synthetic guest with the same workload at every size, so that only the frame table grows.
fn synthetic(mib: u64) -> Result<Guest, Box<dyn Error>> {
    let guest = GuestBuilder::new(KernelStyle::V6_12).ram_bytes(mib << 20).build()?;
    let (name, registers) = (format!("synthetic-{mib}"), guest.registers);
    Ok(Guest { name, memory: Box::new(guest.memory), registers })
}

fn real_guests(folder: &Path) -> Result<Vec<Guest>, Box<dyn Error>> {
    let mut guests = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let folder = entry?.path();
        if !folder.join("ram.bin").exists() {
            continue;
        }
        let layout = LayoutFile::open(&folder.join("layout.txt"))?;
        let format = Format::Raw(RawLayout::File(layout));
        let memory = MemoryImage::open(folder.join("ram.bin"), &format)?;
        let registers = parse_qemu_text(&std::fs::read_to_string(folder.join("regs.txt"))?)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        guests.push(Guest { name, memory: Box::new(memory), registers });
    }
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(guests)
}
