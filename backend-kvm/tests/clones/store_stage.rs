//! Clones on a shared page cache that maps pages of the content store.

use crate::common::{TestResult, has_userfaultfd, host, verify_machine, wait_for_rounds};
use crate::store::{count, domain, fingerprints, snapshot, turned_over, while_churning};
use kaleidoscope_core::clone::{Background, Descriptor, EngineOptions, LocalSource};
use kaleidoscope_core::fingerprint::Fingerprints;
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::prefetch::{Blind, Demand, PrefetchPolicy};
use kaleidoscope_core::store::PageStore;
use kaleidoscope_kvm::guest::{CheckPort, Plan};
use kaleidoscope_kvm::machine::{Host, Machine, Snapshot};
use kaleidoscope_kvm::memory::{ContentStore, PageSize};
use kaleidoscope_kvm::uffd::{OnDemand, SharedPageCache};
use std::sync::Arc;
use std::time::Duration;

/// A clone of `snapshot` on a shared page cache.
fn clone_on(
    host: &Arc<Host>,
    snapshot: &Snapshot,
    cache: &Arc<SharedPageCache>,
    policy: Box<dyn PrefetchPolicy>,
    background: Background,
) -> TestResult<(Machine, Arc<CheckPort>)> {
    let on_demand = OnDemand {
        locality: Descriptor::of(&*snapshot.image, None)?.locality()?,
        policy,
        source: Arc::new(LocalSource::new(Arc::clone(&snapshot.image) as _)),
        options: EngineOptions::default().background(background),
        reservation: None,
        local_cache: None,
        cache: Some(Arc::clone(cache)),
        pages: PageSize::Small,
    };
    let checks = Arc::new(CheckPort::default());
    let clone =
        Machine::on_demand_clone(host, &snapshot.state, on_demand, Arc::clone(&checks) as _)?;
    Ok((clone, checks))
}

/// A store that a machine with the same files has filled and left, and the snapshot and
/// fingerprints of another machine.
pub(crate) fn after_another(
    host: &Arc<Host>,
    plan: &Plan,
) -> TestResult<(Arc<ContentStore>, Snapshot, Arc<Fingerprints>)> {
    let store = ContentStore::new(6000)?;
    let other = snapshot(host, plan, 50)?;
    drop(other.image.sharing(&store, &*fingerprints(&other)?)?);
    drop(other);
    let parent = snapshot(host, plan, 200)?;
    let known = fingerprints(&parent)?;
    Ok((store, parent, known))
}

/// Fills a clone that does not run. Returns the number of frames that were fetched, and of those
/// that were in the cache already.
pub(crate) fn filled(
    host: &Arc<Host>,
    snapshot: &Snapshot,
    cache: &Arc<SharedPageCache>,
) -> TestResult<(u64, u64, Machine, Arc<CheckPort>)> {
    let (clone, checks) = clone_on(host, snapshot, cache, Box::new(Demand), Background::Full)?;
    let engine = clone.engine().ok_or("no engine")?;
    while !engine.is_whole() {
        assert!(clone.ended().is_none() && engine.stopped().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    let total = engine.statistics().total();
    Ok((total.fetched + total.prefetched + total.filled, total.local_cache, clone, checks))
}

#[test]
fn staged_clones_map_what_another_parent_had() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    let plan = Plan::new(32, 2, 4, 256, 1024, 2)?;
    let (store, parent, known) = after_another(&host, &plan)?;
    assert_eq!(store.statistics().pins, 0);
    let layout = parent.image.layout().clone();
    let cache = SharedPageCache::sharing(layout.clone(), &store, &known, Some(&domain()))?;
    let shown = count(&cache.shared());
    assert!(shown > 1000 && cache.shared().len() <= 128, "{:?}", cache.shared());
    assert_eq!(store.statistics().pins, shown as u64);
    while_churning(&store, || {
        turned_over(&store);
        let mut clones = Vec::new();
        let ways: [(Box<dyn PrefetchPolicy>, Background); 3] = [
            (Box::new(Demand), Background::Off),
            (Box::new(Blind::aligned(16)), Background::Off),
            (Box::new(Blind::aligned(16)), Background::Full),
        ];
        for (policy, background) in ways {
            let (mut clone, checks) = clone_on(&host, &parent, &cache, policy, background)?;
            clone.resume()?;
            clones.push((clone, checks));
        }
        for (clone, checks) in &clones {
            wait_for_rounds(&plan, clone, checks, 100);
            verify_machine(&plan, clone);
            let total = clone.engine().ok_or("no engine")?.statistics().total();
            println!(
                "{} faults, {} prefetched, {} filled, {} cached",
                total.faults, total.prefetched, total.filled, total.local_cache
            );
            assert_eq!(total.local_cache, shown as u64);
        }
        // Pages stay pinned as long as one clone maps them.
        let (mut clone, checks) = clones.swap_remove(0);
        drop((clones, cache));
        assert_eq!(store.statistics().pins, shown as u64);
        clone.resume()?;
        wait_for_rounds(&plan, &clone, &checks, 60);
        verify_machine(&plan, &clone);
        Ok(())
    })?;
    let statistics = store.statistics();
    assert_eq!((statistics.pins, statistics.pinned), (0, 0), "{statistics:?}");
    Ok(())
}

#[test]
fn what_is_mapped_is_neither_fetched_nor_staged() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    let plan = Plan::new(32, 1, 4, 256, 1024, 2)?;
    let (store, parent, known) = after_another(&host, &plan)?;
    let layout = parent.image.layout().clone();
    let frames = u64::from(layout.frames());

    let plain = SharedPageCache::new(layout.clone())?;
    let (fetched, there, ..) = filled(&host, &parent, &plain)?;
    assert_eq!((fetched, there), (frames, 0));
    let cache = SharedPageCache::sharing(layout, &store, &known, Some(&domain()))?;
    let shown = count(&cache.shared()) as u64;
    let (fetched, there, mut clone, checks) = filled(&host, &parent, &cache)?;
    println!(
        "{shown} of {frames} frames in {} runs: {fetched} fetched; cache {} KiB, without a store \
         {} KiB",
        cache.shared().len(),
        cache.taken()? >> 10,
        plain.taken()? >> 10
    );
    assert!(shown > 1000);
    assert_eq!((fetched, there), (frames - shown, shown));
    assert_eq!(cache.taken()? + (shown << 12), plain.taken()?);
    clone.resume()?;
    wait_for_rounds(&plan, &clone, &checks, 100);
    verify_machine(&plan, &clone);
    drop((clone, cache));
    assert_eq!(store.statistics().pins, 0);
    Ok(())
}
