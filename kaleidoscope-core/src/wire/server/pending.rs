//! The frames that one client has requested and not received.

use crate::addr::FrameIndex;
use crate::clone::ports::Priority;
use foldhash::fast::RandomState;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

/// Stale entries in the prefetch queue that are tolerated before a cleanup.
const MAX_STALE: usize = 64;

/// A frame in a queue: its index, and the number of the request.
type QueueEntry = (u32, u64);

/// The unanswered frames of one client, each once, urgent ones first.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Unanswered frames with their priority and the number of the request.
    wanted: HashMap<u32, (Priority, u64), RandomState>,
    urgent: VecDeque<QueueEntry>,
    /// Also holds frames that became urgent since.
    prefetch: VecDeque<QueueEntry>,
    /// Number of frames in `wanted` that are not urgent.
    prefetch_count: usize,
    /// Number of the next request.
    next: u64,
}

impl Pending {
    /// Number of frames.
    pub(super) fn len(&self) -> usize {
        self.wanted.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Adds a requested frame. A frame that is already pending is answered once, at the higher
    /// priority.
    pub(super) fn want(&mut self, frame: FrameIndex, priority: Priority) {
        let entry = (frame.0, self.next);
        match self.wanted.entry(frame.0) {
            Entry::Vacant(vacant) => {
                vacant.insert((priority, self.next));
            }
            Entry::Occupied(old) if old.get().0 >= priority => return,
            Entry::Occupied(mut old) => {
                self.prefetch_count -= 1;
                old.insert((priority, self.next));
            }
        }
        self.next += 1;
        match priority {
            Priority::Urgent => self.urgent.push_back(entry),
            Priority::Prefetch => {
                self.prefetch.push_back(entry);
                self.prefetch_count += 1;
            }
        }
        if self.prefetch.len() > 2 * self.prefetch_count + MAX_STALE {
            let wanted = &self.wanted;
            self.prefetch.retain(|entry| wanted.get(&entry.0).is_some_and(|w| w.1 == entry.1));
        }
    }

    /// Moves the next frames to answer into `batch`, at most `most`: urgent frames if there are
    /// any, else prefetched ones. Returns their priority.
    pub(super) fn next(&mut self, most: usize, batch: &mut Vec<FrameIndex>) -> Priority {
        batch.clear();
        let priority = if self.urgent.is_empty() { Priority::Prefetch } else { Priority::Urgent };
        let queue = match priority {
            Priority::Urgent => &mut self.urgent,
            Priority::Prefetch => &mut self.prefetch,
        };
        while batch.len() < most
            && let Some((frame, request)) = queue.pop_front()
        {
            if let Entry::Occupied(wanted) = self.wanted.entry(frame)
                && wanted.get().1 == request
            {
                wanted.remove();
                batch.push(FrameIndex(frame));
            }
        }
        if priority == Priority::Prefetch {
            self.prefetch_count -= batch.len();
        }
        priority
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_urgent_frame_goes_first_and_once() {
        let mut pending = Pending::default();
        for frame in 0..5 {
            pending.want(FrameIndex(frame), Priority::Prefetch);
        }
        pending.want(FrameIndex(3), Priority::Urgent);
        pending.want(FrameIndex(3), Priority::Prefetch);
        let mut batch = Vec::new();
        assert_eq!(pending.next(2, &mut batch), Priority::Urgent);
        assert_eq!(batch, [FrameIndex(3)]);
        assert_eq!(pending.next(9, &mut batch), Priority::Prefetch);
        assert_eq!(batch, [0, 1, 2, 4].map(FrameIndex));
        assert!(pending.is_empty());
    }

    #[test]
    fn a_client_that_starves_its_prefetch_costs_no_more() {
        let mut pending = Pending::default();
        let mut batch = Vec::new();
        for round in 0..10_000 {
            let frame = FrameIndex(round % 7);
            pending.want(frame, Priority::Prefetch);
            pending.want(frame, Priority::Urgent);
            pending.next(1, &mut batch);
            assert_eq!(batch, [frame]);
        }
        assert!(pending.is_empty() && pending.prefetch.len() <= MAX_STALE);
    }

    proptest! {
        #[test]
        fn every_frame_is_answered_once(
            steps in prop::collection::vec((0u32..40, any::<bool>(), 0usize..4), 0..300),
        ) {
            let mut pending = Pending::default();
            let mut naive: Vec<(u32, Priority)> = Vec::new();
            let mut batch = Vec::new();
            let check = |pending: &mut Pending,
                         naive: &mut Vec<(u32, Priority)>,
                         most,
                         batch: &mut Vec<FrameIndex>| {
                let urgent = naive.iter().any(|n| n.1 == Priority::Urgent);
                let priority = pending.next(most, batch);
                prop_assert_eq!(priority == Priority::Urgent, urgent);
                let expected = naive.iter().filter(|n| n.1 == priority).take(most);
                let expected: Vec<_> = expected.map(|n| FrameIndex(n.0)).collect();
                prop_assert_eq!(&*batch, &expected);
                naive.retain(|n| !expected.contains(&FrameIndex(n.0)));
                prop_assert_eq!(pending.len(), naive.len());
                Ok(())
            };
            for (frame, urgent, take) in steps {
                let priority = if urgent { Priority::Urgent } else { Priority::Prefetch };
                pending.want(FrameIndex(frame), priority);
                match naive.iter().position(|n| n.0 == frame) {
                    Some(at) if naive[at].1 >= priority => {}
                    Some(at) => {
                        naive.remove(at);
                        naive.push((frame, priority));
                    }
                    None => naive.push((frame, priority)),
                }
                if take > 0 {
                    check(&mut pending, &mut naive, take, &mut batch)?;
                }
            }
            while !naive.is_empty() {
                check(&mut pending, &mut naive, 3, &mut batch)?;
            }
            prop_assert!(pending.is_empty());
        }
    }
}
