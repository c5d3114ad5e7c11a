//! `kaleidoscope bench kvm`: the cost of freezing and cloning real machines, compared with bare KVM
//! calls.

use super::cores::{Cores, Pinned};
use super::measure::{Pair, median};
use super::{Report, Row, us};
use crate::args::{MemorySize, memory_size};
use crate::failure::Failure;
use crate::vm::{MOST_AHEAD, Outcome, World, rounds as rounds_of, run_until};
use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE, FrameIndex, Gpa};
use kaleidoscope_core::clone::EngineOptions;
use kaleidoscope_core::fingerprint::{Domain, Fingerprints, contents};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::prefetch::{Blind, Demand, WriteForecast};
use kaleidoscope_core::store::PageStore;
use kaleidoscope_kvm::guest::{CheckPort, Plan, baseline, boot};
use kaleidoscope_kvm::machine::{Host, Machine, Snapshot};
use kaleidoscope_kvm::memory::ContentStore;
use kaleidoscope_kvm::uffd::SharedPageCache;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Clones that exist at the same time in the memory measurement.
const CLONES: usize = 100;

/// How long a clone may take to start running, and the polling interval.
const TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_micros(10);

/// Clones that train the write forecast.
const SIBLINGS: usize = 3;

/// Rounds of each process in measurements of a running clone.
const ROUNDS: u64 = 300;

/// Measure what freezing and cloning machines on KVM costs here.
///
/// A small guest checks all of its memory while it runs. What we take stands beside KVM's own calls
/// in a row, a loop that copies the touched page and does nothing else, or a private mapping
/// without a handler, in alternating rounds of the same run.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope bench kvm
      all measurements, with guests of up to 8 GiB
  kaleidoscope bench kvm --rounds 3 --max-memory 1G
      a short run on a small host")]
pub(super) struct Args {
    /// Rounds of each measurement.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Largest guest, such as 512M or 2G; a bare number is in MiB. The guest fills its memory, so
    /// the host needs twice as much
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = memory_size(64..=1 << 20))]
    max_memory: MemorySize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// A guest of `mib` MiB that uses little of its memory.
fn small(mib: u32) -> Outcome<Plan> {
    Ok(Plan::new(mib, 1, 2, 256, 256, 1)?)
}

impl Args {
    /// Measures and prints.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let rows = self.measure().map_err(|error| {
            Failure::new(error).hint("`kaleidoscope bench` without `kvm` needs no KVM")
        })?;
        Report { rows }.print(self.json)
    }

    fn measure(&self) -> Outcome<Vec<Row>> {
        let rounds = usize::from(self.rounds);
        let mut rows = Vec::new();
        for mib in [64, 1024, 8192].into_iter().filter(|mib| *mib <= self.max_memory.mib()) {
            let (first, again) = freezing(mib, rounds.min(3))?;
            let most = 2000.0 + f64::from(mib) * 256.0 * 0.01;
            let aim = format!("<= {most:.0}");
            for (name, freeze) in [("first freeze", first), ("second freeze", again)] {
                let name = format!("pause of a warm guest of {mib} MiB, {name}");
                rows.push(Row::alone(name, "us", us(freeze.pause), aim.clone()));
                let name = "  the whole freeze, mostly while the guest runs";
                rows.push(Row::alone(name, "us", us(freeze.whole), ""));
            }
        }
        for mib in [64, 1024, 8192].into_iter().filter(|mib| *mib <= self.max_memory.mib()) {
            let pair = starting(mib, 3 * rounds)?;
            rows.push(Row::slower(
                format!("start of a clone until its guest runs, {mib} MiB"),
                pair,
                "<= 2",
            ));
        }
        rows.push(faulting(3 * rounds)?);
        rows.extend(running(rounds)?);
        for mib in [64, 512] {
            rows.extend(footprint(mib)?);
        }
        Ok(rows)
    }
}

/// The times of a freeze.
struct Freeze {
    /// How long the guest is paused.
    pause: Duration,
    /// The whole freeze, during most of which the guest runs.
    whole: Duration,
}

impl Freeze {
    fn of(machine: &Machine) -> Outcome<Self> {
        let start = Instant::now();
        let pause = machine.freeze()?.pause;
        Ok(Self { pause, whole: start.elapsed() })
    }

    fn median(freezes: Vec<Self>) -> Self {
        let (pauses, wholes) = freezes.into_iter().map(|each| (each.pause, each.whole)).unzip();
        Self { pause: median(pauses), whole: median(wholes) }
    }
}

/// A guest whose processes use most of its memory, at most 768 MiB, and the number of rounds until
/// they have touched nearly all of it. One in eight rounds touches a random page of the heap.
fn busy(mib: u32) -> Outcome<(Plan, u64)> {
    let pages = 1 << (mib.min(1024).ilog2() + 6);
    Ok((Plan::new(mib, 1, 2, pages, pages, 1)?, u64::from(pages) * 8))
}

/// Times of the first and the second freeze of a warm guest. The memory that its processes do not
/// use is filled before.
fn freezing(mib: u32, rounds: usize) -> Outcome<(Freeze, Freeze)> {
    let (plan, warm) = busy(mib)?;
    let host = Host::open()?;
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (mut machine, check_port) = boot(&host, &plan)?;
        let page = [0x5a; 1 << 20];
        let end = u64::from(mib) << 20;
        for at in (plan.end().0..end).step_by(page.len()) {
            let len = usize::try_from(end - at).map_or(page.len(), |left| left.min(page.len()));
            machine.write(Gpa(at), page.get(..len).unwrap_or_default())?;
        }
        machine.resume()?;
        run_until(&plan, &machine, &check_port, &[warm; 2])?;
        first.push(Freeze::of(&machine)?);
        run_until(&plan, &machine, &check_port, &[2 * warm; 2])?;
        again.push(Freeze::of(&machine)?);
        run_until(&plan, &machine, &check_port, &[2 * warm + 200; 2])?;
    }
    Ok((Freeze::median(first), Freeze::median(again)))
}

/// Time from a snapshot until the clone's guest has finished a round, which it does within
/// microseconds of its first instruction. The baseline is KVM's calls alone, without running the
/// guest.
fn starting(mib: u32, rounds: usize) -> Outcome<Pair> {
    let world = World::new(small(mib)?, 100)?;
    world.parent.pause()?;
    let at_freeze = world.goals(0)?;
    // Pinned for the same reason as in `running`.
    let cores = Pinned::new(Cores::Two)?;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare.push(baseline::start(&world.host, &world.snapshot)?);
        let start = Instant::now();
        let (mut clone, _check_port) = world.local()?;
        cores.server(|| clone.resume())??;
        while rounds_of(&world.plan, &clone)? == at_freeze {
            if start.elapsed() > TIMEOUT {
                return Err("timeout: the clone does not start".into());
            }
            // Spinning here could keep the vCPU's thread off its core.
            std::thread::sleep(POLL);
        }
        ours.push(start.elapsed());
        drop(clone);
    }
    Ok(Pair { bare: median(bare), ours: median(ours) })
}

/// Makes a clone.
type Make<'w> = dyn Fn() -> Outcome<(Machine, Arc<CheckPort>)> + 'w;

/// A paused parent, and the round up to which each process of a clone runs.
fn runner() -> Outcome<(World, Vec<u64>)> {
    let world = World::new(Plan::new(64, 1, 4, 512, 512, 1)?, 1000)?;
    world.parent.pause()?;
    let goals = world.goals(ROUNDS)?;
    Ok((world, goals))
}

/// Runs a clone until every process has reached its goal. Returns the time since `start`, when the
/// making of the clone began.
fn time(
    world: &World,
    goals: &[u64],
    cores: &Pinned,
    start: Instant,
    (clone, check_port): &mut (Machine, Arc<CheckPort>),
) -> Outcome<Duration> {
    cores.server(|| clone.resume())??;
    run_until(&world.plan, clone, check_port, goals)?;
    Ok(start.elapsed())
}

/// Extra time of a fault over an access to a resident page, compared with a loop that only copies
/// the page. All threads run on one core, so that this is the processor's work without the time to
/// wake another core.
fn faulting(rounds: usize) -> Outcome<Row> {
    let (world, goals) = runner()?;
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    let cores = Pinned::new(Cores::One)?;
    for _ in 0..rounds {
        let each = cores.server(|| -> Outcome<_> {
            let start = Instant::now();
            let there = time(&world, &goals, &cores, start, &mut world.local()?)?;
            let each = |time: Duration, faults: u64| {
                let faults = u32::try_from(faults.max(1)).unwrap_or(u32::MAX);
                time.saturating_sub(there) / faults
            };
            let check_port = Arc::new(CheckPort::default());
            let start = Instant::now();
            let (clone, served) =
                baseline::served(&world.host, &world.snapshot, Arc::clone(&check_port) as _)?;
            let took = time(&world, &goals, &cores, start, &mut (clone, check_port))?;
            let bare = each(took, served.faults());
            let start = Instant::now();
            let mut made = world.on_demand(Box::new(Demand), EngineOptions::default(), None)?;
            let took = time(&world, &goals, &cores, start, &mut made)?;
            let faults = made.0.engine().map_or(0, |engine| engine.statistics().total().faults);
            Ok((bare, each(took, faults)))
        })??;
        bare.push(each.0);
        ours.push(each.1);
    }
    let pair = Pair { bare: median(bare), ours: median(ours) };
    Ok(Row::slower("a fault (bare: a loop that only copies)".into(), pair, "<= 1.15"))
}

/// Time from the start of making a clone until every process has finished its rounds, for several
/// kinds of clones. The vCPU's thread has its own core. If it shared one with the helper threads,
/// either would wait for a scheduler time slice of some milliseconds.
fn running(rounds: usize) -> Outcome<Vec<Row>> {
    let (world, goals) = runner()?;
    let cores = Pinned::new(Cores::Two)?;
    let cache = SharedPageCache::new(world.parent.layout())?;
    let mut forecast = WriteForecast::new();
    for _ in 0..SIBLINGS {
        let mut sibling = world.local()?;
        time(&world, &goals, &cores, Instant::now(), &mut sibling)?;
        sibling.0.pause()?;
        forecast.learn(&sibling.0.written()?);
    }
    let written = forecast.frames(MOST_AHEAD);
    let shared = sharing(&world)?;
    let ways: [(&str, Box<Make<'_>>); 6] = [
        (
            "served, on demand",
            Box::new(|| world.on_demand(Box::new(Demand), EngineOptions::default(), None)),
        ),
        (
            "served, 16 at a time",
            Box::new(|| {
                world.on_demand(Box::new(Blind::aligned(16)), EngineOptions::default(), None)
            }),
        ),
        (
            "staged, 16 at a time, after a sibling",
            Box::new(|| {
                let cache = Some(Arc::clone(&cache));
                world.on_demand(Box::new(Blind::aligned(16)), EngineOptions::default(), cache)
            }),
        ),
        (
            "private mapping, copied ahead as siblings wrote",
            Box::new(|| {
                let (mut clone, check_port) = world.local()?;
                clone.copy_ahead(written.clone(), None)?;
                Ok((clone, check_port))
            }),
        ),
        (
            "private mapping, with 128 runs of the content store",
            Box::new(|| {
                let check_port = Arc::new(CheckPort::default());
                let clone = Machine::clone_of(&world.host, &shared, Arc::clone(&check_port) as _)?;
                Ok((clone, check_port))
            }),
        ),
        ("private mapping", Box::new(|| world.local())),
    ];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        for ((_, make), times) in ways.iter().zip(&mut times) {
            let start = Instant::now();
            times.push(time(&world, &goals, &cores, start, &mut make()?)?);
        }
    }
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    let private = medians.last().copied().unwrap_or_default();
    let rows = ways.iter().zip(medians).map(|((name, _), time)| {
        let pair = Pair { bare: private, ours: time };
        Row::slower(format!("{ROUNDS} rounds of a clone, {name}"), pair, "")
    });
    Ok(rows.collect())
}

/// The parent's snapshot, backed by a content store in as many runs as an image may have: every
/// eighth page is stored first, so that neighboring pages are apart in the store.
fn sharing(world: &World) -> Outcome<Snapshot> {
    let image = &world.snapshot.image;
    let domain = Domain::random()?;
    let frames: Vec<_> = (0..image.layout().frames()).map(FrameIndex).collect();
    let found = contents(&**image, &frames, &domain, NonZeroUsize::MIN)?;
    let fingerprints =
        Fingerprints::new(domain.id(), image.layout().frames(), frames.into_iter().zip(found));
    let store = ContentStore::new(image.layout().frames())?;
    let bytes = image.bytes().ok_or("the image shares pages already")?;
    let (pages, _) = bytes.as_chunks::<FRAME_BYTES>();
    for (frame, page) in (0..).map(FrameIndex).zip(pages).step_by(8) {
        if let Some(key) = fingerprints.get(frame) {
            store.put(key, page)?;
        }
    }
    let (image, _) = image.sharing(&store, &fingerprints)?;
    Ok(Snapshot { image: Arc::new(image), ..world.snapshot.clone() })
}

/// A field in bytes of a `/proc` file with lines of the form `NAME: NUMBER kB`.
fn proc_bytes(file: &str, field: &str) -> Outcome<u64> {
    let text = std::fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(number.ok_or_else(|| format!("no {field} in {file}"))? * 1024)
}

/// Memory of a clone by the kernel's count, averaged over many clones.
fn footprint(mib: u32) -> Outcome<Vec<Row>> {
    let world = World::new(small(mib)?, 300)?;
    world.parent.pause()?;
    let private = || -> Outcome<u64> {
        let file = "/proc/self/smaps_rollup";
        Ok(proc_bytes(file, "Private_Dirty")? + proc_bytes(file, "Private_Clean")?)
    };
    let free = || proc_bytes("/proc/meminfo", "MemFree");
    let (private_before, free_before) = (private()?, free()?);
    let clones: Result<Vec<_>, _> = (0..CLONES).map(|_| world.local()).collect();
    let clones = clones?;
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory are below 2^53")]
    let each = |bytes: u64| bytes as f64 / (CLONES as f64 * f64::from(1 << 20));
    let private_after = private()?.saturating_sub(private_before);
    let free_after = free_before.saturating_sub(free()?);
    drop(clones);
    let frames = world.snapshot.image.taken()? / FRAME_SIZE;
    #[expect(clippy::cast_precision_loss, reason = "frames are below 2^53")]
    let frames = frames as f64;
    Ok(vec![
        Row::alone(
            format!("a clone of {mib} MiB before it writes, in this process"),
            "MiB",
            each(private_after),
            "<= 0.3",
        ),
        Row::alone("  the same, including kernel memory", "MiB", each(free_after), ""),
        Row::alone("  frames of its image that take memory", "", frames, ""),
    ])
}
