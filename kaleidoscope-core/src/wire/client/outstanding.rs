//! The frames that a client has requested and not received.

use crate::addr::FrameIndex;
use crate::clone::ports::Priority;
use crate::memory::LazyTable;
use crate::wire::protocol::FetchEncoder;
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A requested frame.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    priority: Priority,
    /// When it was requested first.
    since: Instant,
    /// Whether it was requested on this connection.
    is_sent: bool,
}

/// Classification of a received frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    /// A requested frame.
    Awaited,
    /// The second copy of a frame that was requested twice.
    SecondCopy,
    /// A frame that arrived more often than it was requested.
    Repeated,
    /// A frame that was never requested.
    NotAskedFor,
}

/// The requested frames, and which of them were sent to the server.
#[derive(Debug)]
pub(super) struct Outstanding {
    wanted: HashMap<u32, Wanted, RandomState>,
    /// Number of frames in `wanted` that were sent to the server.
    sent: usize,
    /// Most frames to have sent at a time.
    most: usize,
    /// Frames that are not sent yet, in sending order. May also hold frames that were sent since.
    backlog: VecDeque<u32>,
    /// One bit per frame: it was requested at some time.
    asked: LazyTable<AtomicU64>,
    /// How many second copies may still arrive on this connection.
    second_copies: u64,
}

/// The requests to write.
#[derive(Debug)]
pub(super) struct Requests {
    urgent: FetchEncoder,
    prefetch: FetchEncoder,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self {
            urgent: FetchEncoder::new(Priority::Urgent, Vec::new()),
            prefetch: FetchEncoder::new(Priority::Prefetch, Vec::new()),
        }
    }

    fn push(&mut self, frame: u32, priority: Priority) {
        let encoder = match priority {
            Priority::Urgent => &mut self.urgent,
            Priority::Prefetch => &mut self.prefetch,
        };
        encoder.push(FrameIndex(frame));
    }

    /// The encoded requests: the urgent ones, to be written first, then the others.
    pub(super) fn finish(self) -> [Vec<u8>; 2] {
        [self.urgent.finish(), self.prefetch.finish()]
    }
}

impl Outstanding {
    /// No frame is requested. At most `most` frames are sent to the server at a time.
    pub(super) fn new(frames: u32, most: usize) -> Self {
        let words = usize::try_from(frames.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            wanted: HashMap::with_capacity_and_hasher(256, RandomState::default()),
            sent: 0,
            most,
            backlog: VecDeque::new(),
            asked: LazyTable::new(words),
            second_copies: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// When the oldest requested frame was requested.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.wanted.values().map(|wanted| wanted.since).min()
    }

    /// Requests a frame, or raises its priority.
    pub(super) fn want(
        &mut self,
        frame: FrameIndex,
        priority: Priority,
        now: Instant,
        requests: &mut Requests,
    ) {
        let has_room = self.sent < self.most;
        let wanted = match self.wanted.entry(frame.0) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Wanted { priority, since: now, is_sent: has_room });
                self.mark(frame);
                if has_room {
                    self.sent += 1;
                    requests.push(frame.0, priority);
                } else {
                    self.postpone(frame.0, priority);
                }
                return;
            }
            std::collections::hash_map::Entry::Occupied(wanted) => wanted.into_mut(),
        };
        if priority <= wanted.priority {
            return;
        }
        wanted.priority = priority;
        if wanted.is_sent {
            self.second_copies += 1;
            requests.push(frame.0, priority);
        } else {
            self.postpone(frame.0, priority);
        }
    }

    fn mark(&mut self, frame: FrameIndex) {
        if let Some(word) = self.asked.get(frame.as_usize() / 64) {
            word.fetch_or(1 << (frame.0 % 64), Ordering::Relaxed);
        }
    }

    fn postpone(&mut self, frame: u32, priority: Priority) {
        match priority {
            Priority::Urgent => self.backlog.push_front(frame),
            Priority::Prefetch => self.backlog.push_back(frame),
        }
    }

    /// Records that a frame has arrived.
    pub(super) fn arrived(&mut self, frame: FrameIndex) -> Arrival {
        if let Some(wanted) = self.wanted.remove(&frame.0) {
            self.sent -= usize::from(wanted.is_sent);
            return Arrival::Awaited;
        }
        let word = self.asked.made(frame.as_usize() / 64);
        let was_asked = word.is_some_and(|w| w.load(Ordering::Relaxed) >> (frame.0 % 64) & 1 == 1);
        if !was_asked {
            return Arrival::NotAskedFor;
        }
        match self.second_copies.checked_sub(1) {
            Some(left) => {
                self.second_copies = left;
                Arrival::SecondCopy
            }
            None => Arrival::Repeated,
        }
    }

    /// Whether there are unsent frames, and room to send them.
    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty() && self.sent < self.most
    }

    /// Sends frames of the backlog while there is room.
    pub(super) fn refill(&mut self, requests: &mut Requests) {
        while self.sent < self.most
            && let Some(frame) = self.backlog.pop_front()
        {
            if let Some(wanted) = self.wanted.get_mut(&frame).filter(|wanted| !wanted.is_sent) {
                wanted.is_sent = true;
                self.sent += 1;
                requests.push(frame, wanted.priority);
            }
        }
    }

    /// Requests all frames again from another server, which takes `most` frames at a time: urgent
    /// frames first, then in the order of their first request.
    pub(super) fn ask_again(&mut self, most: usize, requests: &mut Requests) {
        self.most = most;
        self.sent = 0;
        self.second_copies = 0;
        let mut all: Vec<_> = self.wanted.iter_mut().collect();
        all.sort_by_key(|(frame, wanted)| {
            (std::cmp::Reverse(wanted.priority), wanted.since, **frame)
        });
        self.backlog.clear();
        for (frame, wanted) in all {
            wanted.is_sent = false;
            self.backlog.push_back(*frame);
        }
        self.refill(requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runs of a single request: first frame, and number of frames.
    fn runs(bytes: &[u8]) -> Vec<(u32, u32)> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        (8..bytes.len()).step_by(8).map(|at| (word(at), word(at + 4))).collect()
    }

    fn ask(outstanding: &mut Outstanding, frames: &[u32], priority: Priority) -> Vec<(u32, u32)> {
        let mut requests = Requests::new();
        for frame in frames {
            outstanding.want(FrameIndex(*frame), priority, Instant::now(), &mut requests);
        }
        let [urgent, prefetch] = requests.finish();
        runs(if priority == Priority::Urgent { &urgent } else { &prefetch })
    }

    #[test]
    fn no_more_is_asked_than_the_server_takes() {
        let mut outstanding = Outstanding::new(100, 4);
        let sent = ask(&mut outstanding, &[0, 1, 2, 3, 4, 5], Priority::Prefetch);
        assert_eq!(sent, [(0, 4)]);
        assert_eq!(ask(&mut outstanding, &[9, 5], Priority::Urgent), [], "no room");
        assert_eq!(outstanding.arrived(FrameIndex(2)), Arrival::Awaited);
        assert_eq!(outstanding.arrived(FrameIndex(2)), Arrival::Repeated);
        assert_eq!(outstanding.arrived(FrameIndex(50)), Arrival::NotAskedFor);
        assert_eq!(outstanding.arrived(FrameIndex(99)), Arrival::NotAskedFor);
        assert!(outstanding.has_backlog());
        let mut requests = Requests::new();
        outstanding.refill(&mut requests);
        assert_eq!(runs(&requests.finish()[0]), [(5, 1)], "the last urgent one first");
        for frame in [0, 1, 3, 5] {
            assert_eq!(outstanding.arrived(FrameIndex(frame)), Arrival::Awaited);
        }
        let mut requests = Requests::new();
        outstanding.refill(&mut requests);
        let [urgent, prefetch] = requests.finish();
        assert_eq!((runs(&urgent), runs(&prefetch)), (vec![(9, 1)], vec![(4, 1)]));
        assert!(!outstanding.has_backlog() && !outstanding.is_empty());
    }

    #[test]
    fn a_frame_asked_for_twice_may_come_twice() {
        let mut outstanding = Outstanding::new(100, 100);
        ask(&mut outstanding, &[7], Priority::Prefetch);
        assert_eq!(ask(&mut outstanding, &[7], Priority::Prefetch), []);
        assert_eq!(ask(&mut outstanding, &[7], Priority::Urgent), [(7, 1)]);
        assert_eq!(ask(&mut outstanding, &[7], Priority::Urgent), []);
        assert_eq!(outstanding.arrived(FrameIndex(7)), Arrival::Awaited);
        assert_eq!(outstanding.arrived(FrameIndex(7)), Arrival::SecondCopy);
        assert_eq!(outstanding.arrived(FrameIndex(7)), Arrival::Repeated);
    }

    #[test]
    fn another_server_is_asked_for_all_of_it() {
        let mut outstanding = Outstanding::new(100, 100);
        ask(&mut outstanding, &[30, 31, 10], Priority::Prefetch);
        ask(&mut outstanding, &[50, 31], Priority::Urgent);
        outstanding.arrived(FrameIndex(30));
        let mut requests = Requests::new();
        outstanding.ask_again(100, &mut requests);
        let [urgent, prefetch] = requests.finish();
        assert_eq!((runs(&urgent), runs(&prefetch)), (vec![(31, 1), (50, 1)], vec![(10, 1)]));
        assert_eq!(outstanding.arrived(FrameIndex(30)), Arrival::Repeated, "another connection's");
        let mut requests = Requests::new();
        outstanding.ask_again(1, &mut requests);
        assert_eq!(runs(&requests.finish()[0]), [(31, 1)]);
    }
}
