//! Machines on 2 MiB pages.

use crate::common::{
    TestResult, has_userfaultfd, host, verify_image, verify_machine, wait_for_rounds,
};
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

/// The system's pool of huge pages, enlarged for a test.
struct Pool {
    before: String,
}

impl Pool {
    /// Ensures that this many pages are free; prints that the test is skipped if that fails.
    fn with(pages: usize) -> Option<Self> {
        let before = std::fs::read_to_string(COUNT).unwrap_or_default();
        let pool = Self { before };
        let had: usize = pool.before.trim().parse().unwrap_or(0);
        let free = free_pages();
        let missing = pages.saturating_sub(free);
        // Fails without root privileges; the number of free pages is checked below.
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

/// A locality order in which all-zero frames are free.
fn locality(snapshot: &Snapshot) -> TestResult<Arc<LocalityOrder>> {
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
        options: EngineOptions::default().free_frames(FreeFrames::Zero),
        reservation: None,
        local_cache: None,
        cache: None,
        pages: PageSize::Huge,
    }
}

/// Freezes a machine repeatedly, every other time continuing with a clone, and verifies all images
/// and clones.
fn local(host: &Arc<Host>, plan: &Plan) -> TestResult<Snapshot> {
    let (mut machine, mut check_port) = boot_on(host, plan, PageSize::Huge)?;
    machine.resume()?;
    let mut kept: Vec<Snapshot> = Vec::new();
    for generation in 0..5 {
        wait_for_rounds(plan, &machine, &check_port, 100);
        let snapshot = machine.freeze()?;
        println!(
            "generation {generation}: paused for {:?}, {} layers, {} KiB",
            snapshot.pause,
            snapshot.image.layers(),
            snapshot.image.taken()? >> 10
        );
        let checks = Arc::new(CheckPort::default());
        let mut clone = Machine::clone_of(host, &snapshot, Arc::clone(&checks) as _)?;
        assert_eq!(clone.memory_taken()?, 0, "before the clone runs");
        clone.resume()?;
        wait_for_rounds(plan, &clone, &checks, 50);
        assert!(clone.memory_taken()? > 0);
        wait_for_rounds(plan, &machine, &check_port, 50);
        verify_machine(plan, &clone);
        verify_image(plan, &snapshot);
        kept.push(snapshot);
        if generation % 2 == 0 {
            clone.resume()?;
            (machine, check_port) = (clone, checks);
        }
    }
    for snapshot in &kept {
        verify_image(plan, snapshot);
    }
    Ok(kept.swap_remove(0))
}

/// An on-demand clone with the policy of `parts`.
fn on_demand_machine(
    host: &Arc<Host>,
    plan: &Plan,
    snapshot: &Snapshot,
    parts: OnDemand,
) -> TestResult<Machine> {
    let name = parts.policy.name().to_owned();
    let checks = Arc::new(CheckPort::default());
    let mut clone =
        Machine::on_demand_clone(host, &snapshot.state, parts, Arc::clone(&checks) as _)?;
    clone.resume()?;
    wait_for_rounds(plan, &clone, &checks, 100);
    verify_machine(plan, &clone);
    let total = clone.engine().ok_or("no engine")?.statistics().total();
    println!(
        "{name}: {} faults, {} fetched, {} ahead",
        total.faults, total.fetched, total.prefetched
    );
    // Used pages were fetched, and free ones were not.
    let frames = snapshot.image.bytes().ok_or("shared")?.chunks(4096);
    let used = frames.filter(|page| page.first_chunk().is_none_or(|page| !is_zero(page))).count();
    assert!(total.faults > 0 && total.faults <= 16, "{total:?}");
    if name == "demand" {
        assert!(total.fetched <= used as u64, "{total:?}, {used} used");
    }
    Ok(clone)
}

#[test]
fn machines_on_huge_pages() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    // One test, so that no other test takes huge pages that it needs.
    let Some(_pool) = Pool::with(120) else { return Ok(()) };
    // Most of its memory is in use, and it ends in the middle of a page.
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

    // A clone that is whole becomes a parent, also where free frames of a page were never touched.
    let mut parts = on_demand(&snapshot, &locality, Box::new(Demand));
    parts.options.background = Background::Full;
    let clone = {
        let checks = Arc::new(CheckPort::default());
        let mut clone =
            Machine::on_demand_clone(&host, &snapshot.state, parts, Arc::clone(&checks) as _)?;
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
    let checks = Arc::new(CheckPort::default());
    let mut grandchild = Machine::clone_of(&host, &again, Arc::clone(&checks) as _)?;
    grandchild.resume()?;
    wait_for_rounds(&plan, &grandchild, &checks, 50);
    verify_machine(&plan, &grandchild);

    // Unsupported or unsatisfiable configurations are rejected.
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
