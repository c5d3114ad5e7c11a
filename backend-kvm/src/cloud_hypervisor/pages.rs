//! The engine of a clone, which starts with the first request for a page.

use crate::error::{Error, ErrorKind};
use crate::uffd::{OnDemand, Running, UserfaultMemory};
use kaleidoscope_core::clone::{Engine, Stopped};
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};

/// The engine, once there is one. A background fill that began at once could put the first page that
/// a VMM needs into its file before the VMM asks; but only a request shows that the VMM waits for
/// pages at all, and does not read zeros.
#[derive(Debug)]
pub(super) struct Pages {
    parts: Mutex<Option<(OnDemand, UserfaultMemory)>>,
    running: OnceLock<Running>,
}

impl Pages {
    pub(super) fn new(parts: OnDemand, memory: UserfaultMemory) -> Self {
        Self { parts: Mutex::new(Some((parts, memory))), running: OnceLock::new() }
    }

    /// The engine, which is started by the first call.
    pub(super) fn start(&self) -> Result<&Arc<Engine>, Error> {
        if let Some(engine) = self.engine() {
            return Ok(engine);
        }
        let parts = self.parts.lock().take();
        let (parts, memory) = parts.ok_or_else(|| stopped(&Stopped::Cancelled))?;
        let running = Running::start(parts, Arc::new(memory), 0, |_, _| {})?;
        Ok(self.running.get_or_init(|| running).engine())
    }

    /// The engine, if it has been started.
    pub(super) fn engine(&self) -> Option<&Arc<Engine>> {
        self.running.get().map(Running::engine)
    }

    /// Has no more pages delivered, or none at all.
    pub(super) fn stop(&self) {
        drop(self.parts.lock().take());
        if let Some(engine) = self.engine() {
            engine.stop();
        }
    }
}

/// Pages can no longer be delivered.
pub(super) fn stopped(why: &Stopped) -> Error {
    Error::caused_by(ErrorKind::Ended, "a VM's pages", why.clone())
}
