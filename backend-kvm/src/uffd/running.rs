//! The engine of an on-demand clone, and the threads that answer its faults.

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

/// The parts of an on-demand clone, besides its state.
pub struct OnDemand {
    /// The parent's color map, in locality order.
    pub locality: Arc<LocalityOrder>,
    /// Decides what is fetched before it is touched.
    pub policy: Box<dyn PrefetchPolicy>,
    /// The source of pages.
    pub source: Arc<dyn PageSource>,
    /// How the engine behaves.
    pub options: EngineOptions,
    /// The clone's share of the host's memory.
    pub reservation: Option<Reservation>,
    /// Pages that other clones or programs have brought to this host.
    pub local_cache: Option<Arc<dyn LocalCache>>,
    /// Pages that clones of the parent on this host share, including those mapped from the content
    /// store. Without it, each clone has copies of its own.
    pub cache: Option<Arc<SharedPageCache>>,
    /// Size of the host's pages. A huge page is filled as a whole, once all of its frames that are
    /// not free have arrived. A shared cache has small pages.
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
    /// Starts an engine on memory, with this number of threads for faults. Each thread calls
    /// `ended` when pages can no longer be fetched, with a function that takes the memory from the
    /// guest. `ended` calls it after it has recorded the reason, and before it reports that the
    /// clone has ended.
    pub(crate) fn start(
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
        /// Runs when the thread ends in any way: the guest must not run on without it.
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
                if service::contained("the callback for a clone's end", || {
                    (self.ended)(&why, &take)
                })
                .is_err()
                {
                    // The callback may have panicked before it took the memory.
                    take();
                }
            }
        }
        let last = Last { engine: Arc::clone(&self.engine), pages: Arc::clone(&self.pages), ended };
        let serve = move || {
            // `last` reports the reason, also after a panic, which has stopped the engine.
            let _ = last.engine.serve();
        };
        let thread = service::spawn(&format!("faults{n}"), 256 << 10, serve, drop);
        thread.asked("starting a thread for faults")
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Stops the engine, and takes the memory from threads that wait for its pages.
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
