//! A parent that runs, and what its freeze left.

use kaleidoscope_core::clone::{Descriptor, LocalSource, Options};
use kaleidoscope_core::prefetch::{Atlas, PrefetchPolicy};
use kaleidoscope_kvm::guest::{Plan, Witness, boot, progress};
use kaleidoscope_kvm::lazy::{Lazy, Stage};
use kaleidoscope_kvm::machine::{Frozen, Host, Machine};
use kaleidoscope_kvm::memory::PageSize;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Errors of the commands' parts, which people read.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A parent that runs on, and what a freeze left of it.
pub(crate) struct World {
    pub(crate) host: Arc<Host>,
    pub(crate) plan: Plan,
    pub(crate) parent: Machine,
    pub(crate) frozen: Frozen,
    pub(crate) atlas: Arc<Atlas>,
}

/// How often each process has been around.
pub(crate) fn rounds(plan: &Plan, machine: &Machine) -> Outcome<Vec<u64>> {
    Ok(progress(plan, &mut |gpa, buf| machine.read(gpa, buf))?)
}

/// Waits until every process has been around so often more, and says how long that took.
pub(crate) fn let_run(
    plan: &Plan,
    machine: &Machine,
    witness: &Witness,
    goals: &[u64],
) -> Outcome<Duration> {
    let start = Instant::now();
    loop {
        if let Some(complaint) = witness.complaint() {
            return Err(format!("the guest found a byte that is not its own: {complaint:?}").into());
        }
        if let Some(how) = machine.ended() {
            return Err(how.into());
        }
        if rounds(plan, machine)?.iter().zip(goals).all(|(now, goal)| now >= goal) {
            return Ok(start.elapsed());
        }
        if start.elapsed() > PATIENCE {
            return Err("the guest does not get on".into());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

impl World {
    /// Boots a guest, has each of its processes go around `warm` times, and freezes it while it runs on.
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
        let (mut parent, witness) = boot(&host, &plan)?;
        parent.resume()?;
        let_run(&plan, &parent, &witness, &vec![warm; plan.processes().len()])?;
        look(&parent)?;
        let frozen = parent.freeze()?;
        let atlas = Descriptor::of(&*frozen.image, None)?.atlas()?;
        Ok(Self { host, plan, parent, frozen, atlas })
    }

    /// What each process has to reach to have been around so often since the freeze.
    pub(crate) fn goals(&self, more: u64) -> Outcome<Vec<u64>> {
        use kaleidoscope_core::memory::GuestMemory;
        let image = &self.frozen.image;
        let at_freeze = progress(&self.plan, &mut |gpa, buf| image.read(gpa, buf))?;
        Ok(at_freeze.into_iter().map(|rounds| rounds + more).collect())
    }

    /// A clone that shares the parent's memory.
    pub(crate) fn local(&self) -> Outcome<(Machine, Arc<Witness>)> {
        let witness = Arc::new(Witness::default());
        Ok((Machine::clone_of(&self.host, &self.frozen, Arc::clone(&witness) as _)?, witness))
    }

    /// A clone whose pages come from the parent's image one by one.
    pub(crate) fn lazy(
        &self,
        policy: Box<dyn PrefetchPolicy>,
        options: Options,
        stage: Option<Arc<Stage>>,
    ) -> Outcome<(Machine, Arc<Witness>)> {
        let witness = Arc::new(Witness::default());
        let lazy = Lazy {
            atlas: Arc::clone(&self.atlas),
            policy,
            source: Arc::new(LocalSource::new(Arc::clone(&self.frozen.image) as _)),
            options,
            grant: None,
            nearby: None,
            stage,
            pages: PageSize::Small,
        };
        let state = &self.frozen.state;
        Ok((Machine::lazy_clone(&self.host, state, lazy, Arc::clone(&witness) as _)?, witness))
    }
}
