//! Clones whose pages are fetched on demand.

use crate::common::{
    TestResult, has_userfaultfd, host, verify_image, verify_machine, wait_for_rounds,
};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Delivery, PageSource, Priority, SourceError};
use kaleidoscope_core::clone::{Background, Descriptor, EngineOptions, LocalSource};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::prefetch::{Blind, Demand, LocalityOrder, PrefetchPolicy};
use kaleidoscope_kvm::guest::{CheckPort, Plan, boot, progress};
use kaleidoscope_kvm::machine::{Machine, Snapshot};
use kaleidoscope_kvm::memory::PageSize;
use kaleidoscope_kvm::uffd::{OnDemand, SharedPageCache};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// On-demand memory for a clone of `snapshot`.
fn on_demand(
    snapshot: &Snapshot,
    locality: &Arc<LocalityOrder>,
    policy: Box<dyn PrefetchPolicy>,
    cache: Option<&Arc<SharedPageCache>>,
) -> OnDemand {
    OnDemand {
        locality: Arc::clone(locality),
        policy,
        source: Arc::new(LocalSource::new(Arc::clone(&snapshot.image) as _)),
        options: EngineOptions::default(),
        reservation: None,
        local_cache: None,
        cache: cache.cloned(),
        pages: PageSize::Small,
    }
}

/// A running machine, its check port, its snapshot, and the snapshot's locality order.
type Parent = (Machine, Arc<CheckPort>, Snapshot, Arc<LocalityOrder>);

fn frozen_parent(plan: &Plan) -> TestResult<Option<Parent>> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(None) };
    let (mut parent, check_port) = boot(&host, plan)?;
    parent.resume()?;
    wait_for_rounds(plan, &parent, &check_port, 200);
    let snapshot = parent.freeze()?;
    let locality = Descriptor::of(&*snapshot.image, None)?.locality()?;
    Ok(Some((parent, check_port, snapshot, locality)))
}

#[test]
fn pages_come_as_they_are_touched() -> TestResult<()> {
    for vcpus in [1, 2] {
        let plan = Plan::new(32, vcpus, 4, 256, 256, 2)?;
        let Some((parent, check_port, snapshot, locality)) = frozen_parent(&plan)? else {
            return Ok(());
        };
        let host = host().unwrap();
        let cache = SharedPageCache::new(parent.layout())?;
        for cache in [None, Some(&cache), Some(&cache)] {
            let policies: [Box<dyn PrefetchPolicy>; 2] =
                [Box::new(Demand), Box::new(Blind::aligned(16))];
            for policy in policies {
                let checks = Arc::new(CheckPort::default());
                let on_demand = on_demand(&snapshot, &locality, policy, cache);
                let mut clone = Machine::on_demand_clone(
                    &host,
                    &snapshot.state,
                    on_demand,
                    Arc::clone(&checks) as _,
                )?;
                clone.resume()?;
                wait_for_rounds(&plan, &clone, &checks, 100);
                let total = clone.engine().unwrap().statistics().total();
                println!(
                    "{vcpus} vCPUs, staged {}: {} faults, {} prefetched",
                    cache.is_some(),
                    total.faults,
                    total.prefetched
                );
                verify_machine(&plan, &clone);
            }
        }
        assert!(cache.taken()? > 0);
        wait_for_rounds(&plan, &parent, &check_port, 100);
        verify_image(&plan, &snapshot);
    }
    Ok(())
}

#[test]
fn a_filled_clone_needs_no_source() -> TestResult<()> {
    let plan = Plan::new(32, 1, 2, 256, 256, 2)?;
    let Some((parent, _check_port, snapshot, locality)) = frozen_parent(&plan)? else {
        return Ok(());
    };
    drop(parent);
    let host = host().unwrap();
    let checks = Arc::new(CheckPort::default());
    let mut on_demand = on_demand(&snapshot, &locality, Box::new(Demand), None);
    on_demand.options.background = Background::Full;
    let mut clone =
        Machine::on_demand_clone(&host, &snapshot.state, on_demand, Arc::clone(&checks) as _)?;
    clone.resume()?;
    let start = Instant::now();
    while !clone.engine().unwrap().is_filled() {
        assert_eq!(clone.ended(), None);
        assert!(start.elapsed() < Duration::from_secs(180));
        std::thread::sleep(Duration::from_millis(1));
    }
    wait_for_rounds(&plan, &clone, &checks, 100);
    verify_machine(&plan, &clone);
    Ok(())
}

#[test]
fn a_clone_that_was_filled_becomes_a_parent() -> TestResult<()> {
    let plan = Plan::new(32, 2, 4, 256, 256, 2)?;
    let Some((parent, _check_port, snapshot, locality)) = frozen_parent(&plan)? else {
        return Ok(());
    };
    let host = host().unwrap();
    let checks = Arc::new(CheckPort::default());
    let mut parts = on_demand(&snapshot, &locality, Box::new(Demand), None);
    parts.options.background = Background::Full;
    let mut clone =
        Machine::on_demand_clone(&host, &snapshot.state, parts, Arc::clone(&checks) as _)?;
    let why = clone.freeze().unwrap_err().to_string();
    assert!(why.contains("Background::Full"), "{why}");
    clone.resume()?;
    let start = Instant::now();
    while !clone.engine().unwrap().is_whole() {
        assert!(start.elapsed() < Duration::from_secs(180));
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(parent);
    for generation in 0..5 {
        let again = clone.freeze()?;
        assert!(again.image.taken()? < plan.layout()?.bytes(), "zeros take no memory");
        verify_image(&plan, &again);
        let grandchild_checks = Arc::new(CheckPort::default());
        let mut grandchild = Machine::clone_of(&host, &again, Arc::clone(&grandchild_checks) as _)?;
        grandchild.resume()?;
        wait_for_rounds(&plan, &clone, &checks, 20);
        wait_for_rounds(&plan, &grandchild, &grandchild_checks, 20);
        verify_machine(&plan, &grandchild);
        verify_image(&plan, &again);
        println!("generation {generation}: paused for {:?}", again.pause);
    }
    assert_eq!(clone.ended(), None);
    Ok(())
}

/// A source that delivers a number of pages, then fails or falls silent.
struct FailingSource {
    source: LocalSource,
    remaining: AtomicUsize,
    silent: bool,
}

impl PageSource for FailingSource {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        self.source.request(frames, priority)
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        if self.remaining.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(wait);
            return if self.silent { Ok(()) } else { Err(SourceError::new("no connection")) };
        }
        self.source.receive(wait, &mut |delivery| {
            let before = self.remaining.load(Ordering::Relaxed);
            if before > 0 {
                self.remaining.store(before - 1, Ordering::Relaxed);
                deliver(delivery);
            }
        })
    }
}

#[test]
fn without_pages_only_the_clone_itself_ends() -> TestResult<()> {
    let plan = Plan::new(32, 2, 4, 256, 256, 2)?;
    let Some((parent, check_port, snapshot, locality)) = frozen_parent(&plan)? else {
        return Ok(());
    };
    let host = host().unwrap();
    for (pages, silent) in [(0, false), (1, true), (40, false), (150, true), (300, false)] {
        let sibling_checks = Arc::new(CheckPort::default());
        let parts = on_demand(&snapshot, &locality, Box::new(Demand), None);
        let mut sibling = Machine::on_demand_clone(
            &host,
            &snapshot.state,
            parts,
            Arc::clone(&sibling_checks) as _,
        )?;
        sibling.resume()?;
        let checks = Arc::new(CheckPort::default());
        let mut parts = on_demand(&snapshot, &locality, Box::new(Blind::aligned(4)), None);
        let source = LocalSource::new(Arc::clone(&snapshot.image) as _);
        parts.source =
            Arc::new(FailingSource { source, remaining: AtomicUsize::new(pages), silent });
        parts.options.timeout = Duration::from_millis(300);
        let mut clone =
            Machine::on_demand_clone(&host, &snapshot.state, parts, Arc::clone(&checks) as _)?;
        clone.resume()?;
        let start = Instant::now();
        let how = loop {
            assert_eq!(checks.failure(), None, "a check failed before the clone ended");
            if let Some(how) = clone.ended() {
                break how;
            }
            assert!(start.elapsed() < Duration::from_secs(180), "it hangs");
            std::thread::sleep(Duration::from_millis(1));
        };
        println!("{pages} pages: {:?}: {how}", start.elapsed());
        assert!(how.starts_with("its pages can no longer be fetched: "), "{how}");
        // Accesses to its memory now fail; they neither read zeros nor kill this process.
        let mut byte = [0];
        assert!(clone.read(plan.processes()[0].status, &mut byte).is_err());
        assert!(clone.pause().is_err());
        drop(clone);
        assert_eq!(checks.failure(), None);
        wait_for_rounds(&plan, &sibling, &sibling_checks, 30);
        wait_for_rounds(&plan, &parent, &check_port, 30);
    }
    verify_image(&plan, &snapshot);
    Ok(())
}

#[test]
fn a_clone_can_be_dropped_while_it_waits() -> TestResult<()> {
    let plan = Plan::new(32, 2, 4, 256, 256, 2)?;
    let Some((_parent, _check_port, snapshot, locality)) = frozen_parent(&plan)? else {
        return Ok(());
    };
    let host = host().unwrap();
    for round in 0..20 {
        let mut parts = on_demand(&snapshot, &locality, Box::new(Demand), None);
        let source = LocalSource::new(Arc::clone(&snapshot.image) as _);
        let remaining = AtomicUsize::new(round * 3);
        parts.source = Arc::new(FailingSource { source, remaining, silent: true });
        parts.options.timeout = Duration::from_secs(3600);
        let checks = Arc::new(CheckPort::default());
        let mut clone =
            Machine::on_demand_clone(&host, &snapshot.state, parts, Arc::clone(&checks) as _)?;
        clone.resume()?;
        std::thread::sleep(Duration::from_millis(round as u64));
        let start = Instant::now();
        drop(clone);
        assert!(start.elapsed() < Duration::from_secs(180));
        assert_eq!(checks.failure(), None);
    }
    let before = progress(&plan, &mut |gpa, buf| snapshot.image.read(gpa, buf))?;
    assert!(before.iter().all(|rounds| *rounds >= 200));
    Ok(())
}
