//! Memory of a rust-vmm based VMM, filled on demand.

use crate::common::{TestResult, has_userfaultfd};
use kaleidoscope_core::addr::{FRAME_BYTES, Gpa};
use kaleidoscope_core::clone::{Descriptor, EngineOptions, LocalSource};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout, VecMemory};
use kaleidoscope_core::prefetch::{Blind, Demand, PrefetchPolicy};
use kaleidoscope_kvm::memory::PageSize;
use kaleidoscope_kvm::uffd::{Filling, OnDemand, SnapshotMmap};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Two regions with a hole between them; the first is much larger than the minimum that one
/// userfaultfd watches.
const REGIONS: [(u64, usize); 2] = [(0, 80 << 20), (0x1_0000_0000, 1 << 20)];

fn parent() -> TestResult<Arc<VecMemory>> {
    let regions = REGIONS.map(|(start, len)| (Gpa(start), len as u64));
    let mut memory = VecMemory::zeroed(MemoryLayout::new(&regions)?);
    for (n, page) in (0u32..).zip(memory.bytes_mut().chunks_mut(FRAME_BYTES)) {
        // Every seventh page is all zeros.
        if !n.is_multiple_of(7) {
            page.chunks_mut(4).for_each(|word| word.copy_from_slice(&n.to_le_bytes()));
        }
    }
    Ok(Arc::new(memory))
}

fn empty() -> TestResult<GuestMemoryMmap> {
    Ok(GuestMemoryMmap::from_ranges(&REGIONS.map(|(start, len)| (GuestAddress(start), len)))?)
}

#[test]
fn a_vmm_s_memory_is_filled_as_it_is_touched() -> TestResult<()> {
    if !has_userfaultfd() {
        return Ok(());
    }
    let parent = parent()?;
    let locality = Descriptor::of(&*parent, None)?.locality()?;
    let policies: [Box<dyn PrefetchPolicy>; 2] = [Box::new(Demand), Box::new(Blind::aligned(16))];
    for policy in policies {
        let memory = empty()?;
        let on_demand = |policy| OnDemand {
            locality: Arc::clone(&locality),
            policy,
            source: Arc::new(LocalSource::new(Arc::clone(&parent) as _)),
            options: EngineOptions::default(),
            reservation: None,
            local_cache: None,
            cache: None,
            pages: PageSize::Small,
        };
        let filling = Filling::start(&memory, on_demand(policy), 2, |_| {})?;
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let (memory, parent) = (&memory, &parent);
                scope.spawn(move || {
                    let (mut mine, mut theirs) = ([0; 5000], [0; 5000]);
                    for (start, len) in REGIONS {
                        for at in (thread * 4096..len as u64 - 5000).step_by(50_000) {
                            memory.read_slice(&mut mine, GuestAddress(start + at)).unwrap();
                            parent.read(Gpa(start + at), &mut theirs).unwrap();
                            assert!(mine == theirs, "at {:#x}", start + at);
                        }
                    }
                });
            }
        });
        assert!(filling.engine().statistics().total().faults > 100);
        // The whole memory as a snapshot, as the coloring reads it.
        let snapshot = SnapshotMmap::new(memory.clone())?;
        let mut page = [0; FRAME_BYTES];
        snapshot.read(Gpa(0x1_0000_0000), &mut page)?;
        assert_eq!(parent.slice(Gpa(0x1_0000_0000), FRAME_BYTES), Some(&page[..]));
        assert!(snapshot.read(Gpa(0x1_0010_0000), &mut page).is_err());
        assert_eq!(snapshot.layout(), parent.layout());
    }
    Ok(())
}

#[test]
fn memory_of_another_form_is_refused() -> TestResult<()> {
    let parent = parent()?;
    let on_demand = OnDemand {
        locality: Descriptor::of(&*parent, None)?.locality()?,
        policy: Box::new(Demand),
        source: Arc::new(LocalSource::new(Arc::clone(&parent) as _)),
        options: EngineOptions::default(),
        reservation: None,
        local_cache: None,
        cache: None,
        pages: PageSize::Small,
    };
    let other = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 81 << 20)])?;
    let error = Filling::start(&other, on_demand, 1, |_| {}).unwrap_err();
    assert!(error.to_string().contains("other regions"), "{error}");
    Ok(())
}
