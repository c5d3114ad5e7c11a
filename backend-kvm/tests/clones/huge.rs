//! Machines on 2 MiB pages.

use crate::common::{Outcome, can_watch, host, let_run, verify_image, verify_machine};
use kaleidoscope_core::clone::{Background, Descriptor, EngineOptions, FreeFrames, LocalSource};
use kaleidoscope_core::color::{Color, ColorMap, Frame, KernelIdentity};
use kaleidoscope_core::memory::{GuestMemory, is_zero};
use kaleidoscope_core::prefetch::{Blind, Demand, LocalityOrder, PrefetchPolicy};
use kaleidoscope_kvm::guest::{CheckPort, Plan, boot_on};
use kaleidoscope_kvm::machine::{Host, Machine, Snapshot};
use kaleidoscope_kvm::memory::PageSize;
use kaleidoscope_kvm::uffd::{OnDemand, SharedPageCache};
use std::sync::Arc;
use std::time::{Duration, Instant};

const COUNT: &str = "/proc/sys/vm/nr_hugepages";

/// The system's pool of huge pages, made larger for a test.
struct Pool {
    before: String,
}

impl Pool {
    /// A pool with so many that are free; a loud word where the system has none to give.
    fn with(pages: usize) -> Option<Self> {
        let before = std::fs::read_to_string(COUNT).unwrap_or_default();
        let pool = Self { before };
        let had: usize = pool.before.trim().parse().unwrap_or(0);
        let free = free_pages();
        let missing = pages.saturating_sub(free);
        // It fails without root's rights; what counts is what there is then.
        let _ = std::fs::write(COUNT, format!("{}", had + missing));
        if free_pages() < pages {
            println!("******** SKIPPED: {} of {pages} free 2 MiB pages ********", free_pages());
            return None;
        }
        Some(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = std::fs::write(COUNT, &self.before);
    }
}

fn free_pages() -> usize {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// A map in which the frames that hold zeros are free.
fn locality(snapshot: &Snapshot) -> Outcome<Arc<LocalityOrder>> {
    let layout = snapshot.image.layout().clone();
    let color = |page: &[u8]| match page.first_chunk() {
        Some(page) if is_zero(page) => Color::Free,
        _ => Color::Anonymous,
    };
    let pages = snapshot.image.bytes().ok_or("shared")?.chunks(4096);
    let frames = pages.map(|page| Frame { color: color(page), ..Frame::default() });
    let map = ColorMap::new(layout, KernelIdentity::default(), frames, Vec::new())?;
    let descriptor = Descriptor::of(&*snapshot.image, Some(map))?;
    Ok(descriptor.locality()?)
}

fn on_demand(
    snapshot: &Snapshot,
    locality: &Arc<LocalityOrder>,
    policy: Box<dyn PrefetchPolicy>,
) -> OnDemand {
    OnDemand {
        locality: Arc::clone(locality),
        policy,
        source: Arc::new(LocalSource::new(Arc::clone(&snapshot.image) as _)),
        options: EngineOptions { free_frames: FreeFrames::Zero, ..EngineOptions::default() },
        reservation: None,
        local_cache: None,
        cache: None,
        pages: PageSize::Huge,
    }
}

/// Freezes a machine again and again; every other time goes on with a clone. Its images and clones
/// are right throughout.
fn local(host: &Arc<Host>, plan: &Plan) -> Outcome<Snapshot> {
    let (mut machine, mut check_port) = boot_on(host, plan, PageSize::Huge)?;
    machine.resume()?;
    let mut kept: Vec<Snapshot> = Vec::new();
    for generation in 0..5 {
        let_run(plan, &machine, &check_port, 100);
        let snapshot = machine.freeze()?;
        println!(
            "generation {generation}: stood still for {:?}, {} layers, {} KiB",
            snapshot.pause,
            snapshot.image.layers(),
            snapshot.image.taken()? >> 10
        );
        let hears = Arc::new(CheckPort::default());
        let mut clone = Machine::clone_of(host, &snapshot, Arc::clone(&hears) as _)?;
        assert_eq!(clone.memory_taken()?, 0, "before it runs");
        clone.resume()?;
        let_run(plan, &clone, &hears, 50);
        assert!(clone.memory_taken()? > 0);
        let_run(plan, &machine, &check_port, 50);
        verify_machine(plan, &clone);
        verify_image(plan, &snapshot);
        kept.push(snapshot);
        if generation % 2 == 0 {
            clone.resume()?;
            (machine, check_port) = (clone, hears);
        }
    }
    for snapshot in &kept {
        verify_image(plan, snapshot);
    }
    Ok(kept.swap_remove(0))
}

/// A clone whose pages come as it touches them, by a policy.
fn on_demand_machine(
    host: &Arc<Host>,
    plan: &Plan,
    snapshot: &Snapshot,
    parts: OnDemand,
) -> Outcome<Machine> {
    let name = parts.policy.name().to_owned();
    let hears = Arc::new(CheckPort::default());
    let mut clone =
        Machine::on_demand_clone(host, &snapshot.state, parts, Arc::clone(&hears) as _)?;
    clone.resume()?;
    let_run(plan, &clone, &hears, 100);
    verify_machine(plan, &clone);
    let total = clone.engine().ok_or("no engine")?.statistics().total();
    println!(
        "{name}: {} faults, {} fetched, {} ahead",
        total.faults, total.fetched, total.prefetched
    );
    // A page that is not free came, and none that is.
    let frames = snapshot.image.bytes().ok_or("shared")?.chunks(4096);
    let used = frames.filter(|page| page.first_chunk().is_none_or(|page| !is_zero(page))).count();
    assert!(total.faults > 0 && total.faults <= 16, "{total:?}");
    if name == "demand" {
        assert!(total.fetched <= used as u64, "{total:?}, {used} used");
    }
    Ok(clone)
}

#[test]
fn machines_on_huge_pages() -> Outcome<()> {
    let Some(host) = host().filter(|_| can_watch()) else { return Ok(()) };
    // One test, so that nobody else takes what one of its parts needs.
    let Some(_pool) = Pool::with(120) else { return Ok(()) };
    // Most of its memory is in use; its end is in the middle of a page.
    let plan = Plan::new(31, 2, 4, 256, 256, 2)?;
    let snapshot = local(&host, &plan)?;
    let locality = locality(&snapshot)?;
    drop(on_demand_machine(
        &host,
        &plan,
        &snapshot,
        on_demand(&snapshot, &locality, Box::new(Demand)),
    )?);
    drop(on_demand_machine(
        &host,
        &plan,
        &snapshot,
        on_demand(&snapshot, &locality, Box::new(Blind::aligned(1024))),
    )?);

    // One that has everything becomes a parent, also where what is free of a page was never
    // touched.
    let mut parts = on_demand(&snapshot, &locality, Box::new(Demand));
    parts.options.background = Background::Full;
    let clone = {
        let hears = Arc::new(CheckPort::default());
        let mut clone =
            Machine::on_demand_clone(&host, &snapshot.state, parts, Arc::clone(&hears) as _)?;
        let start = Instant::now();
        while !clone.engine().ok_or("no engine")?.is_whole() {
            assert!(start.elapsed() < Duration::from_secs(180));
            std::thread::sleep(Duration::from_millis(1));
        }
        clone.resume()?;
        clone
    };
    let again = clone.freeze()?;
    verify_image(&plan, &again);
    verify_machine(&plan, &clone);
    let hears = Arc::new(CheckPort::default());
    let mut grandchild = Machine::clone_of(&host, &again, Arc::clone(&hears) as _)?;
    grandchild.resume()?;
    let_run(&plan, &grandchild, &hears, 50);
    verify_machine(&plan, &grandchild);

    // Nobody is promised what cannot be had.
    let mut parts = on_demand(&snapshot, &locality, Box::new(Demand));
    parts.cache = Some(SharedPageCache::new(snapshot.image.layout().clone())?);
    let error =
        Machine::on_demand_clone(&host, &snapshot.state, parts, Arc::new(CheckPort::default()));
    assert!(error.unwrap_err().to_string().contains("4 KiB pages"));
    drop((clone, grandchild, again, snapshot));
    let small = Plan::new(4096, 1, 1, 16, 16, 2)?;
    let error = boot_on(&host, &small, PageSize::Huge).unwrap_err().to_string();
    assert!(error.contains("vm.nr_hugepages"), "{error}");
    Ok(())
}
