//! A running parent and its snapshot.

use kaleidoscope_core::clone::{Descriptor, EngineOptions, LocalSource};
use kaleidoscope_core::prefetch::{LocalityOrder, PrefetchPolicy};
use kaleidoscope_kvm::guest::{CheckPort, Plan, boot, progress};
use kaleidoscope_kvm::machine::{Host, Machine, Snapshot};
use kaleidoscope_kvm::memory::PageSize;
use kaleidoscope_kvm::uffd::{OnDemand, SharedPageCache};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Results with errors that are only printed.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// Most time for a guest to reach its goals.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A running parent and its snapshot.
pub(crate) struct World {
    pub(crate) host: Arc<Host>,
    pub(crate) plan: Plan,
    pub(crate) parent: Machine,
    pub(crate) snapshot: Snapshot,
    pub(crate) locality: Arc<LocalityOrder>,
}

/// The number of rounds that each process has finished.
pub(crate) fn rounds(plan: &Plan, machine: &Machine) -> Outcome<Vec<u64>> {
    Ok(progress(plan, &mut |gpa, buf| machine.read(gpa, buf))?)
}

/// Waits until every process has finished its number of rounds in `goals`. Returns how long that
/// took.
///
/// # Errors
/// If the guest reports a check failure, ends, or takes too long.
pub(crate) fn run_until(
    plan: &Plan,
    machine: &Machine,
    check_port: &CheckPort,
    goals: &[u64],
) -> Outcome<Duration> {
    let start = Instant::now();
    loop {
        if let Some(failure) = check_port.failure() {
            return Err(format!("the guest found a wrong byte: {failure:?}").into());
        }
        if let Some(how) = machine.ended() {
            return Err(how.into());
        }
        if rounds(plan, machine)?.iter().zip(goals).all(|(now, goal)| now >= goal) {
            return Ok(start.elapsed());
        }
        if start.elapsed() > TIMEOUT {
            return Err("timeout: the guest does not reach its goals".into());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

impl World {
    /// Boots a guest, waits until each of its processes has finished `warm` rounds, and takes a
    /// snapshot while it runs.
    pub(crate) fn new(plan: Plan, warm: u64) -> Outcome<Self> {
        Self::warmed(plan, warm, &mut |_| Ok(()))
    }

    /// As `new`, but calls `look` with the warm, running machine before the snapshot.
    pub(crate) fn warmed(
        plan: Plan,
        warm: u64,
        look: &mut dyn FnMut(&Machine) -> Outcome<()>,
    ) -> Outcome<Self> {
        let host = Host::open()?;
        let (mut parent, check_port) = boot(&host, &plan)?;
        parent.resume()?;
        run_until(&plan, &parent, &check_port, &vec![warm; plan.processes().len()])?;
        look(&parent)?;
        let snapshot = parent.freeze()?;
        let locality = Descriptor::of(&*snapshot.image, None)?.locality()?;
        Ok(Self { host, plan, parent, snapshot, locality })
    }

    /// The goals with which each process finishes `more` rounds after the snapshot.
    pub(crate) fn goals(&self, more: u64) -> Outcome<Vec<u64>> {
        use kaleidoscope_core::memory::GuestMemory;
        let image = &self.snapshot.image;
        let at_freeze = progress(&self.plan, &mut |gpa, buf| image.read(gpa, buf))?;
        Ok(at_freeze.into_iter().map(|rounds| rounds + more).collect())
    }

    /// A clone that shares the parent's memory copy-on-write.
    pub(crate) fn local(&self) -> Outcome<(Machine, Arc<CheckPort>)> {
        let check_port = Arc::new(CheckPort::default());
        Ok((
            Machine::clone_of(&self.host, &self.snapshot, Arc::clone(&check_port) as _)?,
            check_port,
        ))
    }

    /// A clone whose pages are fetched on demand from the snapshot's image.
    pub(crate) fn on_demand(
        &self,
        policy: Box<dyn PrefetchPolicy>,
        options: EngineOptions,
        cache: Option<Arc<SharedPageCache>>,
    ) -> Outcome<(Machine, Arc<CheckPort>)> {
        let check_port = Arc::new(CheckPort::default());
        let on_demand = OnDemand {
            locality: Arc::clone(&self.locality),
            policy,
            source: Arc::new(LocalSource::new(Arc::clone(&self.snapshot.image) as _)),
            options,
            reservation: None,
            local_cache: None,
            cache,
            pages: PageSize::Small,
        };
        let state = &self.snapshot.state;
        Ok((
            Machine::on_demand_clone(&self.host, state, on_demand, Arc::clone(&check_port) as _)?,
            check_port,
        ))
    }
}
