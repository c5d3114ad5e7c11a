//! One clone's way to the pages that are shared.

use super::receiver::{Alive, SharedReceiver};
use crate::addr::FrameIndex;
use crate::clone::ports::{Delivery, PageSource, Priority, SourceError};
use parking_lot::Condvar;
use std::sync::Arc;
use std::time::Duration;

/// One clone's way to the pages that it shares with others; from
/// [`Shared::sibling`](super::Shared::sibling).
///
/// What it asked for and was not given yet is forgotten when it is dropped; frames that are on
/// their way then are kept for the others.
#[derive(Debug)]
pub struct Sibling {
    id: u64,
    receiver: Arc<SharedReceiver>,
    news: Arc<Condvar>,
    _alive: Arc<Alive>,
}

impl Sibling {
    pub(super) fn new(
        id: u64,
        receiver: Arc<SharedReceiver>,
        news: Arc<Condvar>,
        alive: Arc<Alive>,
    ) -> Self {
        Self { id, receiver, news, _alive: alive }
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
        self.receiver.receive(self.id, &self.news, wait, deliver)
    }

    fn window(&self) -> usize {
        self.receiver.window()
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        self.receiver.leave(self.id);
    }
}
