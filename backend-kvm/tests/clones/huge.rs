//! Machines on 2 MiB pages.

use crate::common::{Outcome, can_watch, host, let_run, verify_image, verify_machine};
use kaleidoscope_core::clone::{Background, Descriptor, FreeFrames, LocalSource, Options};
use kaleidoscope_core::color::{Color, ColorMap, Frame, KernelIdentity};
use kaleidoscope_core::memory::{GuestMemory, is_zero};
use kaleidoscope_core::prefetch::{Atlas, Blind, Demand, PrefetchPolicy};
use kaleidoscope_kvm::guest::{Plan, Witness, boot_on};
use kaleidoscope_kvm::lazy::{Lazy, Stage};
use kaleidoscope_kvm::machine::{Frozen, Host, Machine};
use kaleidoscope_kvm::memory::PageSize;
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
fn atlas(frozen: &Frozen) -> Outcome<Arc<Atlas>> {
    let layout = frozen.image.layout().clone();
    let color = |page: &[u8]| match page.first_chunk() {
        Some(page) if is_zero(page) => Color::Free,
        _ => Color::Anonymous,
    };
    let pages = frozen.image.bytes().ok_or("shared")?.chunks(4096);
    let frames = pages.map(|page| Frame { color: color(page), ..Frame::default() });
    let map = ColorMap::new(layout, KernelIdentity::default(), frames, Vec::new())?;
    let descriptor = Descriptor::of(&*frozen.image, Some(map))?;
    Ok(descriptor.atlas()?)
}

fn lazy(frozen: &Frozen, atlas: &Arc<Atlas>, policy: Box<dyn PrefetchPolicy>) -> Lazy {
    Lazy {
        atlas: Arc::clone(atlas),
        policy,
        source: Arc::new(LocalSource::new(Arc::clone(&frozen.image) as _)),
        options: Options { free_frames: FreeFrames::Zero, ..Options::default() },
        grant: None,
        nearby: None,
        stage: None,
        pages: PageSize::Huge,
    }
}

/// Freezes a machine again and again; every other time goes on with a clone. Its images and clones are right throughout.
fn local(host: &Arc<Host>, plan: &Plan) -> Outcome<Frozen> {
    let (mut machine, mut witness) = boot_on(host, plan, PageSize::Huge)?;
    machine.resume()?;
    let mut kept: Vec<Frozen> = Vec::new();
    for generation in 0..5 {
        let_run(plan, &machine, &witness, 100);
        let frozen = machine.freeze()?;
        println!(
            "generation {generation}: stood still for {:?}, {} layers, {} KiB",
            frozen.pause,
            frozen.image.layers(),
            frozen.image.taken()? >> 10
        );
        let hears = Arc::new(Witness::default());
        let mut clone = Machine::clone_of(host, &frozen, Arc::clone(&hears) as _)?;
        assert_eq!(clone.memory_taken()?, 0, "before it runs");
        clone.resume()?;
        let_run(plan, &clone, &hears, 50);
        assert!(clone.memory_taken()? > 0);
        let_run(plan, &machine, &witness, 50);
        verify_machine(plan, &clone);
        verify_image(plan, &frozen);
        kept.push(frozen);
        if generation % 2 == 0 {
            clone.resume()?;
            (machine, witness) = (clone, hears);
        }
    }
    for frozen in &kept {
        verify_image(plan, frozen);
    }
    Ok(kept.swap_remove(0))
}

/// A clone whose pages come as it touches them, by a policy.
fn lazily(host: &Arc<Host>, plan: &Plan, frozen: &Frozen, parts: Lazy) -> Outcome<Machine> {
    let name = parts.policy.name().to_owned();
    let hears = Arc::new(Witness::default());
    let mut clone = Machine::lazy_clone(host, &frozen.state, parts, Arc::clone(&hears) as _)?;
    clone.resume()?;
    let_run(plan, &clone, &hears, 100);
    verify_machine(plan, &clone);
    let total = clone.engine().ok_or("no engine")?.statistics().total();
    println!(
        "{name}: {} faults, {} fetched, {} ahead",
        total.faults, total.fetched, total.prefetched
    );
    // A page that is not free came, and none that is.
    let frames = frozen.image.bytes().ok_or("shared")?.chunks(4096);
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
    let frozen = local(&host, &plan)?;
    let atlas = atlas(&frozen)?;
    drop(lazily(&host, &plan, &frozen, lazy(&frozen, &atlas, Box::new(Demand)))?);
    drop(lazily(&host, &plan, &frozen, lazy(&frozen, &atlas, Box::new(Blind::aligned(1024))))?);

    // One that has everything becomes a parent, also where what is free of a page was never touched.
    let mut parts = lazy(&frozen, &atlas, Box::new(Demand));
    parts.options.background = Background::Full;
    let clone = {
        let hears = Arc::new(Witness::default());
        let mut clone = Machine::lazy_clone(&host, &frozen.state, parts, Arc::clone(&hears) as _)?;
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
    let hears = Arc::new(Witness::default());
    let mut grandchild = Machine::clone_of(&host, &again, Arc::clone(&hears) as _)?;
    grandchild.resume()?;
    let_run(&plan, &grandchild, &hears, 50);
    verify_machine(&plan, &grandchild);

    // Nobody is promised what cannot be had.
    let mut parts = lazy(&frozen, &atlas, Box::new(Demand));
    parts.stage = Some(Stage::new(frozen.image.layout().clone())?);
    let error = Machine::lazy_clone(&host, &frozen.state, parts, Arc::new(Witness::default()));
    assert!(error.unwrap_err().to_string().contains("4 KiB pages"));
    drop((clone, grandchild, again, frozen));
    let small = Plan::new(4096, 1, 1, 16, 16, 2)?;
    let error = boot_on(&host, &small, PageSize::Huge).unwrap_err().to_string();
    assert!(error.contains("vm.nr_hugepages"), "{error}");
    Ok(())
}
