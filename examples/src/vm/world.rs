//! A parent that runs, and what its freeze left.

use kaleidoscope_core::clone::{Descriptor, EngineOptions, LocalSource};
use kaleidoscope_core::prefetch::{LocalityOrder, PrefetchPolicy};
use kaleidoscope_kvm::guest::{CheckPort, Plan, boot, progress};
use kaleidoscope_kvm::machine::{Host, Machine, Snapshot};
use kaleidoscope_kvm::memory::PageSize;
use kaleidoscope_kvm::uffd::{OnDemand, SharedPageCache};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Errors of the commands' parts, which people read.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// Longer than anything takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A parent that runs on, and what a freeze left of it.
pub(crate) struct World {
    pub(crate) host: Arc<Host>,
    pub(crate) plan: Plan,
    pub(crate) parent: Machine,
    pub(crate) snapshot: Snapshot,
    pub(crate) locality: Arc<LocalityOrder>,
}

/// How often each process has been around.
pub(crate) fn rounds(plan: &Plan, machine: &Machine) -> Outcome<Vec<u64>> {
    Ok(progress(plan, &mut |gpa, buf| machine.read(gpa, buf))?)
}

/// Waits until every process has been around so often more, and says how long that took.
pub(crate) fn let_run(
    plan: &Plan,
    machine: &Machine,
    check_port: &CheckPort,
    goals: &[u64],
) -> Outcome<Duration> {
    let start = Instant::now();
    loop {
        if let Some(failure) = check_port.failure() {
            return Err(format!("the guest found a byte that is not its own: {failure:?}").into());
        }
        if let Some(how) = machine.ended() {
            return Err(how.into());
        }
        if rounds(plan, machine)?.iter().zip(goals).all(|(now, goal)| now >= goal) {
            return Ok(start.elapsed());
        }
        if start.elapsed() > TIMEOUT {
            return Err("the guest does not get on".into());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

impl World {
    /// Boots a guest, has each of its processes go around `warm` times, and freezes it while it
    /// runs on.
    pub(crate) fn new(plan: Plan, warm: u64) -> Outcome<Self> {
        Self::warmed(plan, warm, &mut |_| Ok(()))
    }

    /// The same; `look` is called with the warm machine, which runs.
    pub(crate) fn warmed(
        plan: Plan,
        warm: u64,
        look: &mut dyn FnMut(&Machine) -> Outcome<()>,
    ) -> Outcome<Self> {
        let host = Host::open()?;
        let (mut parent, check_port) = boot(&host, &plan)?;
        parent.resume()?;
        let_run(&plan, &parent, &check_port, &vec![warm; plan.processes().len()])?;
        look(&parent)?;
        let snapshot = parent.freeze()?;
        let locality = Descriptor::of(&*snapshot.image, None)?.locality()?;
        Ok(Self { host, plan, parent, snapshot, locality })
    }

    /// What each process has to reach to have been around so often since the freeze.
    pub(crate) fn goals(&self, more: u64) -> Outcome<Vec<u64>> {
        use kaleidoscope_core::memory::GuestMemory;
        let image = &self.snapshot.image;
        let at_freeze = progress(&self.plan, &mut |gpa, buf| image.read(gpa, buf))?;
        Ok(at_freeze.into_iter().map(|rounds| rounds + more).collect())
    }

    /// A clone that shares the parent's memory.
    pub(crate) fn local(&self) -> Outcome<(Machine, Arc<CheckPort>)> {
        let check_port = Arc::new(CheckPort::default());
        Ok((
            Machine::clone_of(&self.host, &self.snapshot, Arc::clone(&check_port) as _)?,
            check_port,
        ))
    }

    /// A clone whose pages come from the parent's image one by one.
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
