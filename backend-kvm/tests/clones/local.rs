//! Clones that share their parent's memory on the same host.

use crate::common::{
    TestResult, VerifyError, has_userfaultfd, host, rounds, verify_image, verify_machine,
    wait_for_rounds,
};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout};
use kaleidoscope_core::prefetch::WriteForecast;
use kaleidoscope_kvm::guest::{CheckPort, Plan, boot, progress, verify};
use kaleidoscope_kvm::machine::{Devices, Machine, Snapshot};
use kaleidoscope_kvm::{ErrorKind, state::MachineState};
use kaleidoscope_mock::Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn a_guest_runs() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(32, 1, 3, 256, 256, 2)?;
    let (mut machine, check_port) = boot(&host, &plan)?;
    machine.resume()?;
    wait_for_rounds(&plan, &machine, &check_port, 1000);
    verify_machine(&plan, &machine);
    machine.resume()?;
    wait_for_rounds(&plan, &machine, &check_port, 1000);
    Ok(())
}

#[test]
fn a_clone_goes_on_where_its_parent_was_and_both_go_on() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    for vcpus in [1, 2] {
        let plan = Plan::new(32, vcpus, 4, 256, 256, 2)?;
        let (mut parent, check_port) = boot(&host, &plan)?;
        parent.resume()?;
        wait_for_rounds(&plan, &parent, &check_port, 300);
        let snapshot = parent.freeze()?;
        println!("{vcpus} vCPUs: paused for {:?}", snapshot.pause);
        let at_freeze = progress(&plan, &mut |gpa, buf| snapshot.image.read(gpa, buf))?;
        verify_image(&plan, &snapshot);
        wait_for_rounds(&plan, &parent, &check_port, 300);
        verify_image(&plan, &snapshot);

        let checks = Arc::new(CheckPort::default());
        let mut clone = Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?;
        assert_eq!(rounds(&plan, &clone), at_freeze, "before the clone runs");
        clone.resume()?;
        wait_for_rounds(&plan, &clone, &checks, 300);
        wait_for_rounds(&plan, &parent, &check_port, 300);
        verify_machine(&plan, &clone);
        verify_machine(&plan, &parent);
        verify_image(&plan, &snapshot);
    }
    Ok(())
}

#[test]
fn clones_become_parents() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    let plan = Plan::new(32, 2, 4, 256, 256, 2)?;
    let (mut machine, mut check_port) = boot(&host, &plan)?;
    machine.resume()?;
    let mut kept: Vec<(Snapshot, Vec<u64>)> = Vec::new();
    for generation in 0..6 {
        wait_for_rounds(&plan, &machine, &check_port, 100);
        let snapshot = machine.freeze()?;
        verify_image(&plan, &snapshot);
        println!(
            "generation {generation}: paused for {:?}, {} layers, {} KiB",
            snapshot.pause,
            snapshot.image.layers(),
            snapshot.image.taken()? >> 10
        );
        let rounds = progress(&plan, &mut |gpa, buf| snapshot.image.read(gpa, buf))?;
        // Every other time a clone becomes the next parent.
        if generation % 2 == 0 {
            let checks = Arc::new(CheckPort::default());
            let mut clone = Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?;
            clone.resume()?;
            (machine, check_port) = (clone, checks);
        }
        kept.push((snapshot, rounds));
    }
    wait_for_rounds(&plan, &machine, &check_port, 100);
    // No generation has changed.
    for (snapshot, expected) in &kept {
        verify_image(&plan, snapshot);
        assert_eq!(&progress(&plan, &mut |gpa, buf| snapshot.image.read(gpa, buf))?, expected);
        let checks = Arc::new(CheckPort::default());
        let mut clone = Machine::clone_of(&host, snapshot, Arc::clone(&checks) as _)?;
        clone.resume()?;
        wait_for_rounds(&plan, &clone, &checks, 100);
        verify_machine(&plan, &clone);
    }
    Ok(())
}

#[test]
fn a_hundred_clones_at_once() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(32, 1, 2, 256, 256, 2)?;
    let (mut parent, check_port) = boot(&host, &plan)?;
    parent.resume()?;
    wait_for_rounds(&plan, &parent, &check_port, 300);
    let snapshot = parent.freeze()?;
    let start = Instant::now();
    let mut clones = Vec::new();
    for _ in 0..100 {
        let checks = Arc::new(CheckPort::default());
        clones.push((Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?, checks));
    }
    println!("created in {:?} each", start.elapsed() / 100);
    for (clone, _) in &mut clones {
        clone.resume()?;
    }
    for (clone, checks) in &clones {
        wait_for_rounds(&plan, clone, checks, 30);
    }
    // Dropping some clones does not affect the others.
    clones.truncate(60);
    for (clone, checks) in &clones {
        wait_for_rounds(&plan, clone, checks, 10);
        verify_machine(&plan, clone);
    }
    wait_for_rounds(&plan, &parent, &check_port, 300);
    verify_image(&plan, &snapshot);
    Ok(())
}

/// Number of freezes to test; `KALEIDOSCOPE_FREEZES` sets it, to thousands in nightly runs.
fn freezes() -> u32 {
    let number = std::env::var("KALEIDOSCOPE_FREEZES");
    number.map_or(300, |number| number.parse().expect("KALEIDOSCOPE_FREEZES is a number"))
}

#[test]
fn any_instant_can_be_frozen() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    let mut rng = Rng::new(1);
    for vcpus in [1, 2] {
        let plan = Plan::new(16, vcpus, 2, 64, 64, 3)?;
        let (mut parent, check_port) = boot(&host, &plan)?;
        parent.resume()?;
        wait_for_rounds(&plan, &parent, &check_port, 10);
        let base = parent.freeze()?;
        drop(parent);
        // Many short-lived clones of one image, each frozen at a random instant, saved as bytes,
        // and continued.
        for _ in 0..freezes() / 2 {
            let checks = Arc::new(CheckPort::default());
            let mut clone = Machine::clone_of(&host, &base, Arc::clone(&checks) as _)?;
            clone.resume()?;
            std::thread::sleep(Duration::from_nanos(rng.below(1 << 21)));
            let mut snapshot = clone.freeze()?;
            verify_image(&plan, &snapshot);
            snapshot.state = Arc::new(MachineState::from_bytes(&snapshot.state.to_bytes()?)?);
            drop(clone);
            let mut again = Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?;
            again.resume()?;
            wait_for_rounds(&plan, &again, &checks, 3);
            verify_machine(&plan, &again);
        }
    }
    Ok(())
}

/// The first freeze remaps the memory of a running guest. The guest and its clone must have the
/// right bytes whatever the guest was doing.
#[test]
fn any_instant_can_be_the_first() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let mut rng = Rng::new(2);
    for round in 0..(freezes() / 5).max(1) {
        let vcpus = 1 + round as usize % 2;
        let plan = Plan::new(16, vcpus, 2, 256, 256, 3)?;
        let (mut parent, check_port) = boot(&host, &plan)?;
        parent.resume()?;
        std::thread::sleep(Duration::from_nanos(rng.below(1 << 23)));
        let snapshot = parent.freeze()?;
        wait_for_rounds(&plan, &parent, &check_port, 20);
        verify_image(&plan, &snapshot);
        verify_machine(&plan, &parent);
        let checks = Arc::new(CheckPort::default());
        let mut clone = Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?;
        clone.resume()?;
        wait_for_rounds(&plan, &clone, &checks, 3);
        verify_machine(&plan, &clone);
    }
    Ok(())
}

#[test]
fn a_wrong_byte_is_detected() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(16, 1, 2, 64, 64, 1)?;
    let (mut machine, check_port) = boot(&host, &plan)?;
    machine.resume()?;
    wait_for_rounds(&plan, &machine, &check_port, 10);
    machine.pause()?;
    // A page of the file, which no process rewrites: a rewrite would repair it.
    let page = plan.file().nth(5).unwrap();
    machine.write(page.checked_add(1000).unwrap(), &[0x5a, 0xa5])?;
    let seen = verify::<VerifyError>(&plan, &mut |gpa, buf| {
        machine.read(gpa, buf).map_err(|error| VerifyError::Read(error.to_string()))
    });
    assert!(matches!(seen, Err(VerifyError::Page(wrong)) if wrong.gpa == page), "from outside");
    machine.resume()?;
    let start = Instant::now();
    while check_port.failure().is_none() {
        assert!(start.elapsed() < Duration::from_secs(180), "the guest does not detect it");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(check_port.failure().unwrap().vector, 6);
    Ok(())
}

#[test]
#[expect(clippy::single_range_in_vec_init, reason = "sets of frames")]
fn frames_that_siblings_wrote_are_copied_ahead() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    let plan = Plan::new(32, 2, 4, 256, 256, 2)?;
    let (mut parent, check_port) = boot(&host, &plan)?;
    assert!(parent.written()?.is_empty(), "no frame is shared");
    let taken = parent.memory_taken()?;
    parent.copy_ahead(vec![0..100], None)?;
    parent.resume()?;
    wait_for_rounds(&plan, &parent, &check_port, 100);
    let snapshot = parent.freeze()?;
    assert!(parent.memory_taken()? < taken, "the count starts again");

    let mut forecast = WriteForecast::new();
    let checks = Arc::new(CheckPort::default());
    let mut sibling = Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?;
    assert!(sibling.written()?.is_empty());
    sibling.resume()?;
    wait_for_rounds(&plan, &sibling, &checks, 100);
    sibling.pause()?;
    forecast.learn(&sibling.written()?);
    let frames = forecast.frames(u32::MAX);
    for process in plan.processes() {
        let status = u32::try_from(process.status.0 / 4096)?;
        assert!(frames.iter().any(|run| run.contains(&status)), "every process updates its status");
    }

    let whole = parent.layout().frames();
    for requested in [frames.clone(), vec![0..whole], vec![whole..whole + 9], vec![5..5]] {
        let checks = Arc::new(CheckPort::default());
        let mut clone = Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?;
        clone.copy_ahead(requested.clone(), None)?;
        clone.resume()?;
        // Frozen, and given new frames to copy, while it copies.
        let again = clone.freeze()?;
        verify_image(&plan, &again);
        clone.copy_ahead(requested.clone(), None)?;
        wait_for_rounds(&plan, &clone, &checks, 50);
        let start = Instant::now();
        while requested == frames && total(&clone.written()?) < total(&frames) {
            assert!(start.elapsed() < Duration::from_secs(180), "it is not copied");
        }
        verify_machine(&plan, &clone);
    }
    verify_image(&plan, &snapshot);
    Ok(())
}

fn total(runs: &[std::ops::Range<u32>]) -> usize {
    runs.iter().map(ExactSizeIterator::len).sum()
}

/// A device with state.
struct StatefulDevice;

impl Devices for StatefulDevice {
    fn save(&self) -> Vec<u8> {
        b"device state".to_vec()
    }
}

#[test]
fn devices_are_saved_with_the_rest() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let layout = MemoryLayout::contiguous(1 << 20)?;
    let machine = Machine::new(&host, layout, 1, Arc::new(StatefulDevice))?;
    let snapshot = machine.freeze()?;
    let state = MachineState::from_bytes(&snapshot.state.to_bytes()?)?;
    assert_eq!(state.devices(), b"device state");
    Ok(())
}

#[test]
fn saved_state_is_checked() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(16, 1, 2, 64, 64, 1)?;
    let (machine, _check_port) = boot(&host, &plan)?;
    let bytes = machine.freeze()?.state.to_bytes()?;
    println!("{} bytes of state", bytes.len());
    assert_eq!(MachineState::from_bytes(&bytes)?.vcpus(), 1);
    for cut in [0, 7, 8, 9, 100, bytes.len() - 1] {
        assert!(
            MachineState::from_bytes(&bytes[..cut])
                .is_err_and(|error| error.kind() == ErrorKind::InvalidInput)
        );
    }
    let longer = [&bytes[..], &[0]].concat();
    let error = MachineState::from_bytes(&longer).unwrap_err();
    assert_eq!(error.to_string(), "saved machine state: 1 surplus bytes");
    Ok(())
}

/// Damaged state is rejected by this crate or by KVM, or produces a misbehaving guest; it does no
/// other harm.
#[test]
fn damaged_state_does_no_harm() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(16, 2, 2, 64, 64, 1)?;
    let (mut parent, check_port) = boot(&host, &plan)?;
    parent.resume()?;
    wait_for_rounds(&plan, &parent, &check_port, 10);
    let mut snapshot = parent.freeze()?;
    let bytes = snapshot.state.to_bytes()?;
    let (mut refused, mut started, mut rng) = (0, 0, Rng::new(7));
    let mut roll = |below: usize| usize::try_from(rng.below(below as u64)).unwrap();
    for _ in 0..150 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + roll(4) {
            let at = roll(damaged.len());
            damaged[at] ^= 1 << roll(8);
        }
        let Ok(state) = MachineState::from_bytes(&damaged) else {
            refused += 1;
            continue;
        };
        snapshot.state = Arc::new(state);
        let checks = Arc::new(CheckPort::default());
        let Ok(mut clone) = Machine::clone_of(&host, &snapshot, checks) else {
            refused += 1;
            continue;
        };
        clone.resume()?;
        started += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{refused} refused, {started} started");
    assert!(started > 0);
    wait_for_rounds(&plan, &parent, &check_port, 30);
    Ok(())
}
