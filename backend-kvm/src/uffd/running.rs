//! The engine of a clone whose memory comes page by page, and the threads that answer its faults.

use super::SharedPageCache;
use super::memory::UserfaultMemory;
use crate::error::{Asked, Error};
use crate::memory::PageSize;
use kaleidoscope_core::alloc::Reservation;
use kaleidoscope_core::clone::ports::{LocalCache, PageSource};
use kaleidoscope_core::clone::{Engine, EngineOptions, EngineParts, Stopped};
use kaleidoscope_core::prefetch::{LocalityOrder, PrefetchPolicy};
use kaleidoscope_core::service;
use parking_lot::Mutex;
use std::sync::Arc;
use std::thread::JoinHandle;

/// What a clone whose memory comes page by page is made of, beside its state.
pub struct OnDemand {
    /// What the parent's frames are.
    pub locality: Arc<LocalityOrder>,
    /// What comes ahead of a touch.
    pub policy: Box<dyn PrefetchPolicy>,
    /// Where pages come from.
    pub source: Arc<dyn PageSource>,
    /// How.
    pub options: EngineOptions,
    /// The clone's share of the host's memory.
    pub reservation: Option<Reservation>,
    /// Pages that are on this host already, whoever brought them.
    pub local_cache: Option<Arc<dyn LocalCache>>,
    /// Where pages are kept that clones of the parent on this host share, and what they show of
    /// the content store; none to have a copy for each.
    pub cache: Option<Arc<SharedPageCache>>,
    /// The host's pages that its memory is made of. Huge ones are filled as a whole, with what is
    /// not free of their frames; a cache has small ones.
    pub pages: PageSize,
}

impl std::fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnDemand").field("options", &self.options).finish_non_exhaustive()
    }
}

/// An engine at work on a VM's memory, and the threads that answer its faults.
#[derive(Debug)]
pub(crate) struct Running {
    pub(super) engine: Arc<Engine>,
    pub(super) pages: Arc<UserfaultMemory>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Running {
    /// Starts an engine on memory, with so many threads for faults. `ended` is called when pages
    /// cease to come, by each of the threads, with a function that takes the memory from the guest:
    /// `ended` calls that before it tells that the clone has ended, and after the reason is fixed.
    pub(super) fn start(
        on_demand: OnDemand,
        pages: Arc<UserfaultMemory>,
        threads: usize,
        ended: impl Fn(&Stopped, &dyn Fn()) + Clone + Send + 'static,
    ) -> Result<Self, Error> {
        let options = on_demand.options.granule(on_demand.pages.frames());
        let parts = EngineParts::new(
            on_demand.locality,
            on_demand.policy,
            on_demand.source,
            Arc::clone(&pages) as _,
        )
        .queue(Some(Arc::clone(&pages) as _))
        .reservation(on_demand.reservation)
        .local_cache(on_demand.local_cache);
        let engine = Arc::new(Engine::start(parts, options).asked("starting a clone's engine")?);
        let running = Self { engine, pages, threads: Mutex::default() };
        for n in 0..threads {
            let thread = running.serve(n, ended.clone())?;
            running.threads.lock().push(thread);
        }
        Ok(running)
    }

    /// Waits until the threads have ended.
    pub(super) fn join(&self) {
        // Locked until the end: a second caller waits, too.
        for thread in self.threads.lock().drain(..) {
            // A panic there has stopped the engine.
            let _ = thread.join();
        }
    }

    fn serve(
        &self,
        n: usize,
        ended: impl Fn(&Stopped, &dyn Fn()) + Send + 'static,
    ) -> Result<JoinHandle<()>, Error> {
        /// However the thread ends, the guest does not go on without it.
        struct Last<F: Fn(&Stopped, &dyn Fn())> {
            engine: Arc<Engine>,
            pages: Arc<UserfaultMemory>,
            ended: F,
        }
        impl<F: Fn(&Stopped, &dyn Fn())> Drop for Last<F> {
            fn drop(&mut self) {
                self.engine.stop();
                let why = self.engine.stopped().unwrap_or(Stopped::Cancelled);
                let take = || self.pages.revoke();
                if service::contained("who is told of a clone's end", || (self.ended)(&why, &take))
                    .is_err()
                {
                    // It may not have got that far.
                    take();
                }
            }
        }
        let last = Last { engine: Arc::clone(&self.engine), pages: Arc::clone(&self.pages), ended };
        let serve = move || {
            // Why it ended is told by `last`, also of a panic: that has stopped the engine.
            let _ = last.engine.serve();
        };
        let thread = service::spawn(&format!("faults{n}"), 256 << 10, serve, drop);
        thread.asked("starting a thread for faults")
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Stops everything, and takes the memory from whoever waits for it.
    pub(crate) fn stop(&self) {
        self.engine.stop();
        self.pages.revoke();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        self.join();
    }
}
