//! The demonstration on KVM.

use super::results::{Contest, Results, Sample, Way, number, us};
use crate::progress::Status;
use crate::vm::{MOST_AHEAD, Outcome, World, rounds};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::clone::EngineOptions;
use kaleidoscope_core::coloring::color_by_page_tables;
use kaleidoscope_core::prefetch::{
    Blind, ColorGuide, Colored, Demand, LocalityOrder, Paper, PrefetchPolicy, Settings,
    WriteForecast,
};
use kaleidoscope_kvm::guest::{CheckPort, Mismatch, Plan, verify};
use kaleidoscope_kvm::machine::{Host, Machine};
use kaleidoscope_kvm::uffd::SharedPageCache;
use std::cell::RefCell;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often each process goes around before the freeze, and each of a clone's.
const WARM: u64 = 3000;
const WORK: u64 = 400;

/// Looks at the vCPUs while the parent warms up: each sees the page tables of one process.
const LOOKS: usize = 80;

/// How often running clones are looked at.
const SAMPLE: Duration = Duration::from_millis(2);

/// How long clones may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Makes a policy.
type Policy = dyn Fn(&Arc<ColorGuide>) -> Box<dyn PrefetchPolicy>;

/// A clone, and the port at which its guest reports a failed check.
type Made = (Machine, Arc<CheckPort>);

pub(super) fn contest(host: Arc<Host>, clones: usize, status: &Status) -> Outcome<Contest> {
    status.set("booting and warming a guest");
    drop(host);
    let plan = Plan::new(64, 2, 6, 1024, 2048, 1)?;
    let mut registers = Vec::new();
    let mut world = World::warmed(plan, WARM, &mut |machine: &Machine| {
        for _ in 0..LOOKS {
            registers.extend(machine.look()?);
            std::thread::sleep(Duration::from_micros(1300));
        }
        Ok(())
    })?;
    status.set("coloring it");
    registers.extend(world.snapshot.state.registers());
    let options = kaleidoscope_core::coloring::ColoringOptions::default().registers(registers);
    let coloring = color_by_page_tables(&*world.snapshot.image, &options)?;
    let locality = Arc::new(LocalityOrder::new(coloring.map.clone()));
    world.locality = Arc::clone(&locality);
    // The parent has shown that it goes on; the clones' figures are to be theirs alone.
    world.parent.pause()?;

    let guide = Arc::new(ColorGuide::new(
        Arc::clone(&locality),
        Settings::shipped_for(locality.map().kernel()),
    ));
    let cache = SharedPageCache::new(world.parent.layout())?;
    let served = |name, policy: &'static Policy| {
        let (world, guide) = (&world, &guide);
        let make = move || world.on_demand(policy(guide), EngineOptions::default(), None);
        Entry { name, make: Box::new(make), cache: None }
    };
    // Learned from clones that shared their memory.
    let written = RefCell::new(WriteForecast::new());
    let ways = [
        served("on demand", &|_| Box::new(Demand)),
        served("blind, 16 at a time", &|_| Box::new(Blind::aligned(16))),
        served("by color (the paper's)", &|guide| {
            Box::new(Paper::new(Arc::clone(guide.locality())))
        }),
        served("by color and use", &|guide| Box::new(Colored::new(Arc::clone(guide)))),
        Entry {
            name: "the same, shared by siblings",
            make: Box::new(|| {
                let policy = Box::new(Colored::new(Arc::clone(&guide)));
                world.on_demand(policy, EngineOptions::default(), Some(Arc::clone(&cache)))
            }),
            cache: Some(&cache),
        },
        Entry { name: "local, copy on write", make: Box::new(|| world.local()), cache: None },
        Entry {
            name: "local, copied ahead",
            make: Box::new(|| {
                let (mut clone, check_port) = world.local()?;
                clone.copy_ahead(written.borrow().frames(MOST_AHEAD), None)?;
                Ok((clone, check_port))
            }),
            cache: None,
        },
    ];
    let mut results = Vec::new();
    for way in &ways {
        status.set(way.name);
        results.push(run(&world, clones, way, &written)?);
    }
    let guest = format!(
        "a guest of 64 MiB with 6 processes on 2 vCPUs, each of which checks {} MiB of its own",
        1024 * 4 / 1024
    );
    Ok(Contest {
        map: Some(coloring.map),
        results: Results { guest, pause_us: Some(us(world.snapshot.pause)), clones, ways: results },
    })
}

/// A way to clone that takes part.
struct Entry<'w> {
    name: &'static str,
    make: Box<dyn Fn() -> Outcome<Made> + 'w>,
    /// What its clones share.
    cache: Option<&'w SharedPageCache>,
}

fn run(
    world: &World,
    clones: usize,
    way: &Entry<'_>,
    written: &RefCell<WriteForecast>,
) -> Outcome<Way> {
    let (name, make, cache) = (way.name, &way.make, way.cache);
    let taken = || cache.map_or(Ok(0), SharedPageCache::taken);
    let shared = taken()?;
    let mut made = Vec::new();
    let mut starts = Duration::ZERO;
    for _ in 0..clones {
        let start = Instant::now();
        made.push(make()?);
        starts += start.elapsed();
    }
    let begin = Instant::now();
    for (machine, _) in &mut made {
        let start = Instant::now();
        machine.resume()?;
        starts += start.elapsed();
    }
    let goals = world.goals(WORK)?;
    let base: u64 = goals.iter().map(|goal| goal - WORK).sum::<u64>() * clones as u64;
    let mut samples = Vec::new();
    loop {
        let (mut done, mut sample, mut is_done) = (0, Sample::default(), true);
        for (machine, check_port) in &made {
            if let Some(failure) = check_port.failure() {
                return Err(format!("{name}: a guest found a wrong byte: {failure:?}").into());
            }
            if let Some(how) = machine.ended() {
                return Err(format!("{name}: {how}").into());
            }
            let now = rounds(&world.plan, machine)?;
            is_done &= now.iter().zip(&goals).all(|(now, goal)| now >= goal);
            done += now.iter().sum::<u64>();
            if let Some(engine) = machine.engine() {
                sample.count(&engine.statistics());
            }
        }
        sample.at_us = us(begin.elapsed());
        sample.rounds = done.saturating_sub(base);
        samples.push(sample);
        if is_done {
            break;
        }
        if begin.elapsed() > TIMEOUT {
            return Err(format!("{name}: the clones do not get on").into());
        }
        std::thread::sleep(SAMPLE);
    }
    let took = begin.elapsed();
    for (machine, _) in &made {
        machine.pause()?;
    }
    for (machine, _) in made.iter().filter(|(machine, _)| machine.engine().is_none()) {
        written.borrow_mut().learn(&machine.written()?);
    }
    let engines: Vec<_> = made.iter().filter_map(|(m, _)| Some(m.engine()?.statistics())).collect();
    let mut memory = taken()?.saturating_sub(shared);
    for (machine, _) in &made {
        memory += machine.memory_taken()?;
    }
    for (machine, _) in &made {
        check(&world.plan, machine).map_err(|error| format!("{name}: {error}"))?;
    }
    let mut way = Way {
        name: name.to_owned(),
        start_us: us(starts) / number(clones as u64),
        took_us: us(took),
        memory_bytes: number(memory),
        is_verified: true,
        samples,
        ..Way::default()
    };
    way.count(&engines);
    Ok(way)
}

/// Checks every byte that a clone's processes own.
fn check(plan: &Plan, machine: &Machine) -> Result<(), Box<dyn Error>> {
    enum Wrong {
        Page(Mismatch),
        Read(kaleidoscope_kvm::Error),
    }
    impl From<Mismatch> for Wrong {
        fn from(mismatch: Mismatch) -> Self {
            Self::Page(mismatch)
        }
    }
    let checked =
        verify::<Wrong>(plan, &mut |gpa: Gpa, buf| machine.read(gpa, buf).map_err(Wrong::Read));
    checked.map_err(|wrong| match wrong {
        Wrong::Page(mismatch) => mismatch.into(),
        Wrong::Read(error) => error.into(),
    })
}
