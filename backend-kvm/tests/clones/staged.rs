//! Clones on a stage that become parents.

use crate::common::{Outcome, can_watch, host, let_run, verify_image, verify_machine};
use crate::store::{count, domain, fingerprints, frozen};
use crate::store_stage::filled;
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::clone::{Background, FreeFrames, LocalSource, Options};
use kaleidoscope_core::color::{Color, ColorMap, Frame, FrameKind, KernelIdentity};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::prefetch::{Atlas, Blind, Demand, PrefetchPolicy};
use kaleidoscope_core::store::PageStore;
use kaleidoscope_kvm::guest::{Plan, Witness, boot};
use kaleidoscope_kvm::lazy::{Lazy, Stage};
use kaleidoscope_kvm::machine::{Frozen, Host, Machine};
use kaleidoscope_kvm::memory::{ContentStore, PageSize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a clone of `frozen` is made of: everything comes, but for what is free.
fn lazy(
    frozen: &Frozen,
    atlas: &Arc<Atlas>,
    policy: Box<dyn PrefetchPolicy>,
    stage: &Arc<Stage>,
    background: Background,
) -> Lazy {
    Lazy {
        atlas: Arc::clone(atlas),
        policy,
        source: Arc::new(LocalSource::new(Arc::clone(&frozen.image) as _)),
        options: Options { background, free_frames: FreeFrames::Zero, ..Options::default() },
        grant: None,
        nearby: None,
        stage: Some(Arc::clone(stage)),
        pages: PageSize::Small,
    }
}

fn until_whole(clone: &Machine) {
    let start = Instant::now();
    while !clone.engine().expect("its pages come").is_whole() {
        assert_eq!(clone.ended(), None);
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Five generations of a clone, each with a clone of its own, whose memory is right while the clone goes on.
fn generations(
    host: &Arc<Host>,
    plan: &Plan,
    clone: &Machine,
    hears: &Witness,
) -> Outcome<Vec<Frozen>> {
    let mut all = Vec::new();
    for generation in 0..5 {
        let again = clone.freeze()?;
        verify_image(plan, &again);
        let grandchild_hears = Arc::new(Witness::default());
        let mut grandchild = Machine::clone_of(host, &again, Arc::clone(&grandchild_hears) as _)?;
        grandchild.resume()?;
        let_run(plan, clone, hears, 20);
        let_run(plan, &grandchild, &grandchild_hears, 20);
        verify_machine(plan, &grandchild);
        println!("generation {generation}: stood still for {:?}", again.pause);
        all.push(again);
    }
    all.iter().for_each(|frozen| verify_image(plan, frozen));
    Ok(all)
}

#[test]
fn a_staged_clone_becomes_a_parent_among_its_siblings() -> Outcome<()> {
    let Some(host) = host().filter(|_| can_watch()) else { return Ok(()) };
    let plan = Plan::new(32, 2, 4, 256, 256, 2)?;
    let (mut parent, witness) = boot(&host, &plan)?;
    // What is free is full of what was there before.
    let end = plan.layout()?.bytes();
    for at in (plan.end().0..end).step_by(4096) {
        parent.write(Gpa(at), &[0xee; 4096])?;
    }
    parent.resume()?;
    let_run(&plan, &parent, &witness, 200);
    let frozen = parent.freeze()?;
    drop(parent);
    let used = u32::try_from(plan.end().0 >> 12)?;
    let frames = (0..plan.layout()?.frames()).map(|n| match n < used {
        true => Frame::default(),
        false => Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() },
    });
    let map = ColorMap::new(plan.layout()?, KernelIdentity::default(), frames, Vec::new())?;
    let atlas = Arc::new(Atlas::new(map));

    let stage = Stage::new(plan.layout()?)?;
    let make = |policy: Box<dyn PrefetchPolicy>, background| -> Outcome<_> {
        let hears = Arc::new(Witness::default());
        let lazy = lazy(&frozen, &atlas, policy, &stage, background);
        let mut clone = Machine::lazy_clone(&host, &frozen.state, lazy, Arc::clone(&hears) as _)?;
        clone.resume()?;
        Ok((clone, hears))
    };
    let (sibling, sibling_hears) = make(Box::new(Blind::aligned(16)), Background::Off)?;
    let why = sibling.freeze().unwrap_err().to_string();
    assert!(why.contains("Background::Full"), "{why}");
    let (clone, hears) = make(Box::new(Demand), Background::Full)?;
    until_whole(&clone);
    let lives = generations(&host, &plan, &clone, &hears)?;
    // What was staged was not copied, and what was free takes no memory.
    let written: usize = clone.written()?.iter().map(|run| run.len()).sum();
    let taken = lives.last().ok_or("no generation")?.image.taken()?;
    println!("{written} frames written, image {} KiB of {} KiB used", taken >> 10, used << 2);
    assert!(taken < u64::from(used) * 4096 + 5 * (written as u64 + 64) * 4096);
    // Those that began before the stage became an image and those that begin later are none the wiser.
    let (late, late_hears) = make(Box::new(Blind::aligned(64)), Background::Full)?;
    let_run(&plan, &sibling, &sibling_hears, 100);
    let_run(&plan, &late, &late_hears, 100);
    until_whole(&late);
    generations(&host, &plan, &late, &late_hears)?;
    drop((clone, stage));
    generations(&host, &plan, &late, &late_hears)?;
    let_run(&plan, &sibling, &sibling_hears, 50);
    verify_machine(&plan, &sibling);
    verify_machine(&plan, &late);
    Ok(())
}

#[test]
fn pages_of_the_store_stay_pinned_for_the_image_of_a_staged_clone() -> Outcome<()> {
    let Some(host) = host().filter(|_| can_watch()) else { return Ok(()) };
    let plan = Plan::new(32, 1, 4, 256, 1024, 2)?;
    let store = ContentStore::new(6000)?;
    let other = frozen(&host, &plan, 50)?;
    drop(other.image.sharing(&store, &*fingerprints(&other)?)?);
    let parent = frozen(&host, &plan, 200)?;
    let (layout, known) = (parent.image.layout().clone(), fingerprints(&parent)?);
    let stage = Stage::sharing(layout, &store, &known, Some(&domain()))?;
    let shown = count(&stage.shared());
    assert!(shown > 1000);
    let (_, _, mut clone, hears) = filled(&host, &parent, &stage)?;
    clone.resume()?;
    drop(stage);
    let lives = generations(&host, &plan, &clone, &hears)?;
    drop(clone);
    assert!(store.statistics().pins > 0, "the images show them");
    let image = &lives.first().ok_or("no generation")?.image;
    assert!(count(&image.shared()) > 500, "{:?}", image.shared());
    lives.iter().for_each(|frozen| verify_image(&plan, frozen));
    drop(lives);
    assert_eq!(store.statistics().pins, 0);
    Ok(())
}
