//! Clones that outlive the store whose pages they map.

use crate::common::{TestResult, host, verify_image, verify_machine, wait_for_rounds};
use crate::store::{domain, fingerprints, snapshot, turned_over, while_churning};
use kaleidoscope_core::store::PageStore;
use kaleidoscope_kvm::guest::{CheckPort, Plan};
use kaleidoscope_kvm::machine::{Machine, Snapshot};
use kaleidoscope_kvm::memory::ContentStore;
use std::sync::Arc;

#[test]
fn clones_outlive_their_store() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(32, 2, 4, 256, 1024, 2)?;
    let former = ContentStore::new(6000)?;
    let mut clones = Vec::new();
    for rounds in [50, 200] {
        let snapshot = snapshot(&host, &plan, rounds)?;
        let (image, shared) = snapshot.image.sharing(&former, &*fingerprints(&snapshot)?)?;
        assert!(shared.shared > 1000, "{shared:?}");
        let snapshot = Snapshot { image: Arc::new(image), ..snapshot };
        for _ in 0..2 {
            let checks = Arc::new(CheckPort::default());
            let mut clone = Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?;
            clone.resume()?;
            clones.push((clone, checks));
        }
    }
    let held = former.statistics();
    let file = former.file().try_clone_to_owned()?;
    drop(former);

    let store = ContentStore::reopen(file, &[(*domain()).clone()])?;
    let found = store.statistics();
    println!("{held:?}, opened again {found:?}");
    assert_eq!((found.pages, found.former), (held.pages, held.pages));
    while_churning(&store, || {
        turned_over(&store);
        assert!(clones.iter().all(|(clone, _)| clone.ended().is_none()));
        for (clone, checks) in &clones {
            wait_for_rounds(&plan, clone, checks, 60);
            verify_machine(&plan, clone);
        }
        // Pages that they map can be shared with others from now on.
        let newcomer = snapshot(&host, &plan, 100)?;
        let (image, shared) = newcomer.image.sharing(&store, &*fingerprints(&newcomer)?)?;
        assert!(shared.shared > 1000, "{shared:?}");
        let newcomer = Snapshot { image: Arc::new(image), ..newcomer };
        verify_image(&plan, &newcomer);
        clones.clear();
        store.release_former();
        turned_over(&store);
        let checks = Arc::new(CheckPort::default());
        let mut clone = Machine::clone_of(&host, &newcomer, Arc::clone(&checks) as _)?;
        clone.resume()?;
        wait_for_rounds(&plan, &clone, &checks, 60);
        verify_machine(&plan, &clone);
        Ok(())
    })?;
    let statistics = store.statistics();
    assert_eq!((statistics.pins, statistics.former), (0, 0), "{statistics:?}");
    Ok(())
}
