//! Clones that are told their identity.

use crate::common::{TestResult, host, verify_machine, wait_for_rounds};
use kaleidoscope_core::clone::CloneId;
use kaleidoscope_core::clone::hooks::{
    CloneHook, GenerationId, Guest, HookError, Hooks, IdentityInMemory, Notice,
};
use kaleidoscope_kvm::ErrorKind;
use kaleidoscope_kvm::guest::{CheckPort, NOTICE, Plan, boot};
use kaleidoscope_kvm::machine::Machine;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The machine's identity as each process sees it.
fn identities(plan: &Plan, machine: &Machine) -> TestResult<Vec<[u8; 16]>> {
    let seen = plan.processes().iter().map(|process| {
        let mut seen = [0; 16];
        machine.read(process.identity(), &mut seen)?;
        Ok(seen)
    });
    seen.collect()
}

fn notices(plan: &Plan, machine: &Machine, vcpu: usize) -> TestResult<u64> {
    let mut bytes = [0; 8];
    machine.read(plan.notices(vcpu), &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Counts freezes, and rejects them if so configured.
#[derive(Default)]
struct Guard(Arc<AtomicUsize>, bool);

impl CloneHook for Guard {
    fn before_freeze(&self, _: &dyn Guest) -> Result<(), HookError> {
        if self.1 { Err(HookError::new("not now")) } else { Ok(()) }
    }

    fn after_freeze(&self, _: &dyn Guest) -> Result<(), HookError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn every_clone_knows_its_identity() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(32, 2, 4, 256, 256, 2)?;
    let (mut parent, check_port) = boot(&host, &plan)?;
    parent.resume()?;
    wait_for_rounds(&plan, &parent, &check_port, 100);
    let freezes = Arc::new(AtomicUsize::new(0));
    let hooks = Hooks::none()
        .and(Guard(Arc::clone(&freezes), false))
        .and(IdentityInMemory { gpa: plan.identity() })
        .and(GenerationId {
            gpa: plan.identity(),
            notice: Some(Notice { vcpu: 1, vector: NOTICE }),
        });
    let forbidden = parent.freeze_with(&Hooks::none().and(Guard(Arc::default(), true)));
    let forbidden = forbidden.unwrap_err();
    assert_eq!(forbidden.kind(), ErrorKind::Hook);
    assert_eq!(forbidden.to_string(), "a hook failed: not now");
    wait_for_rounds(&plan, &parent, &check_port, 10);
    let snapshot = parent.freeze_with(&hooks)?;
    assert_eq!(freezes.load(Ordering::Relaxed), 1);

    let mut clones = Vec::new();
    for _ in 0..5 {
        let checks = Arc::new(CheckPort::default());
        let mut clone = Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?;
        let id = CloneId::random()?;
        clone.resume_as(id, &hooks)?;
        clones.push((clone, checks, id));
    }
    for (clone, checks, id) in &clones {
        wait_for_rounds(&plan, clone, checks, 30);
        assert!(identities(&plan, clone)?.iter().all(|seen| *seen == id.0));
        let start = Instant::now();
        while notices(&plan, clone, 1)? == 0 {
            assert!(start.elapsed() < Duration::from_secs(180), "the clone was not notified");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((notices(&plan, clone, 0)?, notices(&plan, clone, 1)?), (0, 1));
        verify_machine(&plan, clone);
    }
    // The parent is not a clone, and was not notified.
    wait_for_rounds(&plan, &parent, &check_port, 30);
    assert!(identities(&plan, &parent)?.iter().all(|seen| *seen == [0; 16]));
    assert_eq!((notices(&plan, &parent, 0)?, notices(&plan, &parent, 1)?), (0, 0));
    Ok(())
}

#[test]
fn interrupts_that_are_pending_survive() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(16, 1, 2, 64, 64, 1)?;
    let (mut parent, check_port) = boot(&host, &plan)?;
    parent.resume()?;
    wait_for_rounds(&plan, &parent, &check_port, 30);
    // Sent while the guest is paused: the interrupt is pending in the local APIC, not in a
    // register.
    parent.pause()?;
    parent.interrupt(0, NOTICE)?;
    assert!(parent.interrupt(1, NOTICE).is_err());
    let before = notices(&plan, &parent, 0)?;
    let snapshot = parent.freeze()?;
    assert_eq!(before, 0);
    for _ in 0..3 {
        let checks = Arc::new(CheckPort::default());
        let mut clone = Machine::clone_of(&host, &snapshot, Arc::clone(&checks) as _)?;
        clone.resume()?;
        wait_for_rounds(&plan, &clone, &checks, 30);
        assert_eq!(notices(&plan, &clone, 0)?, 1);
    }
    parent.resume()?;
    wait_for_rounds(&plan, &parent, &check_port, 30);
    assert_eq!(notices(&plan, &parent, 0)?, 1);
    Ok(())
}
