//! Clones of several parents with pages in common.

use crate::common::{
    TestResult, has_userfaultfd, host, verify_image, verify_machine, wait_for_rounds,
};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::{Descriptor, EngineOptions, LocalSource};
use kaleidoscope_core::coloring::{self, color_by_page_tables};
use kaleidoscope_core::dedup::{
    self, Adaptive, Catalog, DedupSelector, HitRates, SelectionOutcome as Outcome, TrialGuest,
};
use kaleidoscope_core::fingerprint::{Content, Domain, Fingerprints, contents, partial_contents};
use kaleidoscope_core::memory::{GuestMemory, MemoryError};
use kaleidoscope_core::prefetch::{Blind, LocalityOrder};
use kaleidoscope_core::store::{PageStore, StoreView};
use kaleidoscope_kvm::guest::{CheckPort, Plan, boot};
use kaleidoscope_kvm::machine::{Host, Machine, Snapshot};
use kaleidoscope_kvm::memory::{ContentStore, PageSize};
use kaleidoscope_kvm::uffd::{OnDemand, SharedPageCache};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) fn domain() -> Arc<Domain> {
    Arc::new(Domain::new([9; 32]))
}

pub(crate) fn fingerprints(snapshot: &Snapshot) -> TestResult<Arc<Fingerprints>> {
    let domain = domain();
    let frames: Vec<_> = (0..snapshot.image.layout().frames()).map(FrameIndex).collect();
    let found = contents(&*snapshot.image, &frames, &domain, NonZeroUsize::MIN)?;
    let all = snapshot.image.layout().frames();
    Ok(Arc::new(Fingerprints::new(domain.id(), all, frames.into_iter().zip(found))))
}

/// A snapshot of a machine that has run for `rounds` rounds.
pub(crate) fn snapshot(host: &Arc<Host>, plan: &Plan, rounds: u64) -> TestResult<Snapshot> {
    let (mut machine, check_port) = boot(host, plan)?;
    machine.resume()?;
    wait_for_rounds(plan, &machine, &check_port, rounds);
    Ok(machine.freeze()?)
}

pub(crate) fn count(runs: &[std::ops::Range<u32>]) -> usize {
    runs.iter().map(|run| run.len()).sum()
}

/// Tells a thread to stop when dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `work` while pages are put into a store and evict others.
pub(crate) fn while_churning(
    store: &ContentStore,
    work: impl FnOnce() -> TestResult<()>,
) -> TestResult<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| churn(store, &stop));
        // Also when `work` panics.
        let _stop = Stop(&stop);
        work()
    })
}

/// Waits until every unpinned slot of a store was overwritten.
pub(crate) fn turned_over(store: &ContentStore) {
    let before = store.statistics().evicted;
    while store.statistics().evicted < before + 2 * u64::from(store.statistics().bound) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn churn(store: &ContentStore, stop: &AtomicBool) {
    let mut n = 0u64;
    while !stop.load(Ordering::Acquire) {
        let mut page = [1; 4096];
        page[..8].copy_from_slice(&n.to_le_bytes());
        assert!(store.put(domain().fingerprint(&page), &page).is_ok());
        n += 1;
    }
}

#[test]
fn images_share_what_they_have_in_common() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(32, 2, 4, 256, 1024, 2)?;
    let store = ContentStore::new(9000)?;
    let mut taken = 0;
    let mut all = Vec::new();
    // Machines with the same files that have run for different times.
    for rounds in [50, 200, 400] {
        let snapshot = snapshot(&host, &plan, rounds)?;
        taken += snapshot.image.taken()?;
        let (image, shared) = snapshot.image.sharing(&store, &*fingerprints(&snapshot)?)?;
        println!("{rounds} rounds: {shared:?}");
        all.push(Snapshot { image: Arc::new(image), ..snapshot });
    }
    let own = all.iter().map(|snapshot| snapshot.image.taken()).sum::<Result<u64, _>>()?;
    let now = own + store.taken()?;
    println!("{} KiB before, {} KiB now, {:?}", taken >> 10, now >> 10, store.statistics());
    // The file, which all of them have read, is stored once.
    assert!(now + (1024 << 12) < taken);
    while_churning(&store, || {
        let mut clones = Vec::new();
        for snapshot in all.iter().cycle().take(6) {
            let checks = Arc::new(CheckPort::default());
            let mut clone = Machine::clone_of(&host, snapshot, Arc::clone(&checks) as _)?;
            clone.resume()?;
            clones.push((clone, checks));
        }
        for (clone, checks) in &clones {
            wait_for_rounds(&plan, clone, checks, 60);
            // In this order, since the clone keeps writing.
            let diverged = count(&clone.diverged()?);
            let written = count(&clone.written()?);
            assert!(diverged > 0 && diverged <= written, "{diverged} of {written}");
        }
        // A clone of a clone whose parent is dropped.
        let (parent, _) = clones.swap_remove(0);
        let again = parent.freeze()?;
        drop(parent);
        verify_image(&plan, &again);
        let checks = Arc::new(CheckPort::default());
        let mut clone = Machine::clone_of(&host, &again, Arc::clone(&checks) as _)?;
        drop(again);
        clone.resume()?;
        wait_for_rounds(&plan, &clone, &checks, 60);
        clones.push((clone, checks));
        for (clone, _) in &clones {
            verify_machine(&plan, clone);
        }
        for snapshot in &all {
            verify_image(&plan, snapshot);
        }
        Ok(())
    })?;
    assert!(store.statistics().evicted > 0, "{:?}", store.statistics());
    drop(all);
    let statistics = store.statistics();
    assert_eq!((statistics.pins, statistics.pinned), (0, 0), "{statistics:?}");
    Ok(())
}

#[test]
fn what_a_sibling_s_parent_had_is_not_fetched() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    let plan = Plan::new(32, 1, 4, 256, 1024, 2)?;
    let store = ContentStore::new(9000)?;
    let mut fetched = Vec::new();
    for (rounds, is_staged) in [(50, false), (200, false), (400, true)] {
        let snapshot = snapshot(&host, &plan, rounds)?;
        let locality = Descriptor::of(&*snapshot.image, None)?.locality()?;
        let view = StoreView::new(Arc::clone(&store) as _, fingerprints(&snapshot)?, domain())?;
        let cache =
            is_staged.then(|| SharedPageCache::new(snapshot.image.layout().clone())).transpose()?;
        let on_demand = OnDemand {
            locality,
            policy: Box::new(Blind::aligned(16)),
            source: Arc::new(LocalSource::new(Arc::clone(&snapshot.image) as _)),
            options: EngineOptions::default(),
            reservation: None,
            local_cache: Some(Arc::new(view)),
            cache,
            pages: PageSize::Small,
        };
        let checks = Arc::new(CheckPort::default());
        let mut clone =
            Machine::on_demand_clone(&host, &snapshot.state, on_demand, Arc::clone(&checks) as _)?;
        clone.resume()?;
        wait_for_rounds(&plan, &clone, &checks, 100);
        verify_machine(&plan, &clone);
        let total = clone.engine().ok_or("no engine")?.statistics().total();
        println!(
            "{rounds} rounds: {} fetched, {} ahead, {} found",
            total.fetched, total.prefetched, total.local_cache
        );
        fetched.push((total.fetched + total.prefetched, total.local_cache));
    }
    // At least the file and the code.
    assert!(fetched[1].0 + 900 < fetched[0].0 && fetched[1].1 > 1000, "{fetched:?}");
    assert!(fetched[2].0 + 900 < fetched[0].0 && fetched[2].1 > 1000, "{fetched:?}");
    Ok(())
}

/// A snapshot of a machine that has run for `rounds` rounds, and its locality order.
fn colored(
    host: &Arc<Host>,
    plan: &Plan,
    rounds: u64,
) -> TestResult<(Snapshot, Arc<LocalityOrder>)> {
    let (mut machine, check_port) = boot(host, plan)?;
    machine.resume()?;
    wait_for_rounds(plan, &machine, &check_port, rounds);
    let mut registers = Vec::new();
    for _ in 0..40 {
        registers.extend(machine.look()?);
        std::thread::sleep(Duration::from_micros(1300));
    }
    let snapshot = machine.freeze()?;
    let options = coloring::ColoringOptions::default().registers(registers);
    let map = color_by_page_tables(&*snapshot.image, &options)?.map;
    Ok((snapshot, Arc::new(LocalityOrder::new(map))))
}

/// Runs the whole chain: colors, selectors, fingerprints of the selected frames, images that share
/// pages, clones, and the feedback of diverged frames to the selectors.
#[test]
fn what_selectors_choose_is_shared_and_they_learn_what_diverges() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(32, 2, 4, 256, 1024, 2)?;
    let guests = [colored(&host, &plan, 50)?, colored(&host, &plan, 300)?];
    let mut catalog = Catalog::new();
    let numbers: Vec<_> = guests.iter().map(|(_, locality)| catalog.add(locality)).collect();
    let mut hashed = Vec::new();
    for (is_adaptive, is_filtered) in [(false, false), (true, false), (true, true)] {
        let mut selectors: Vec<Box<dyn DedupSelector>> = Vec::new();
        for ((_, locality), number) in guests.iter().zip(&numbers) {
            let locality = Arc::clone(locality);
            selectors.push(match is_adaptive {
                true => Box::new(Adaptive::new(locality, &catalog, *number, &HitRates::shipped())),
                false => Box::new(dedup::Blind::new(locality)),
            });
        }
        let mut trial_guests = Vec::new();
        for (((_, locality), number), selector) in guests.iter().zip(&numbers).zip(&mut selectors) {
            let (number, selector) = (*number, &mut **selector);
            trial_guests.push(TrialGuest { number, locality, selector, is_written: &|_| false });
        }
        let mut found: [Vec<(FrameIndex, Content)>; 2] = Default::default();
        let partial = |guest: usize, frames: &[FrameIndex]| {
            partial_contents(&*guests[guest].0.image, frames, &domain(), NonZeroUsize::MIN)
        };
        let read = |guest: usize, frames: &[FrameIndex]| {
            let image = &*guests[guest].0.image;
            let read = contents(image, frames, &domain(), NonZeroUsize::MIN)?;
            found[guest].extend(frames.iter().copied().zip(read.iter().copied()));
            Ok::<_, MemoryError>(read)
        };
        let trial = match is_filtered {
            true => dedup::run_filtered(&mut trial_guests, u64::MAX, partial, read)?,
            false => dedup::run(&mut trial_guests, u64::MAX, read)?,
        };
        let total = trial.total();
        println!("{}, filtered: {is_filtered}: {total:?}", selectors[0].name());

        let store = ContentStore::new(9000)?;
        for (((snapshot, _), found), selector) in guests.iter().zip(found).zip(&mut selectors) {
            let frames = snapshot.image.layout().frames();
            let fingerprints = Fingerprints::new(domain().id(), frames, found);
            let (image, shared) = snapshot.image.sharing(&store, &fingerprints)?;
            println!("{shared:?}");
            assert!(shared.shared > 0);
            let snapshot = Snapshot { image: Arc::new(image), ..snapshot.clone() };
            let checks = Arc::new(CheckPort::default());
            let mut clone = Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?;
            clone.resume()?;
            wait_for_rounds(&plan, &clone, &checks, 60);
            verify_machine(&plan, &clone);
            let diverged = clone.diverged()?.into_iter().flatten();
            let outcomes: Vec<_> = diverged.map(|n| (FrameIndex(n), Outcome::Diverged)).collect();
            selector.learn(&outcomes);
        }
        // Each page that a guest shares with another guest, or with itself, is stored once.
        let pages = u64::from(store.statistics().pages);
        assert!(pages <= total.hashed - total.shared, "{total:?}");
        hashed.push(total.hashed);
    }
    assert!(hashed[2] <= hashed[1] && hashed[1] <= hashed[0], "{hashed:?}");
    Ok(())
}
