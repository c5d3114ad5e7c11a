//! One clone's access to the shared pages.

use super::receiver::{SharedReceiver, StopOnDrop};
use crate::addr::FrameIndex;
use crate::clone::ports::{Delivery, PageSource, Priority, SourceError};
use crate::memory::SnapshotId;
use parking_lot::Condvar;
use std::sync::Arc;
use std::time::Duration;

/// One clone's access to the pages that it shares with others; created by
/// [`Shared::sibling`](super::Shared::sibling).
///
/// Dropping it cancels its outstanding requests; frames in flight are then cached for the other
/// siblings.
#[derive(Debug)]
pub struct Sibling {
    id: u64,
    receiver: Arc<SharedReceiver>,
    ready_signal: Arc<Condvar>,
    _stop_on_drop: Arc<StopOnDrop>,
}

impl Sibling {
    pub(super) fn new(
        id: u64,
        receiver: Arc<SharedReceiver>,
        ready_signal: Arc<Condvar>,
        stop_on_drop: Arc<StopOnDrop>,
    ) -> Self {
        Self { id, receiver, ready_signal, _stop_on_drop: stop_on_drop }
    }
}

impl PageSource for Sibling {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        self.receiver.request(self.id, frames, priority)
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        self.receiver.receive(self.id, &self.ready_signal, wait, deliver)
    }

    fn window(&self) -> usize {
        self.receiver.window()
    }

    fn snapshot_id(&self) -> Option<SnapshotId> {
        self.receiver.snapshot_id()
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        self.receiver.leave(self.id);
    }
}
