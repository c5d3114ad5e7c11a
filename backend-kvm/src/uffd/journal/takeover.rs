//! Going on where a process died that served a VM.

use super::Journal;
use crate::error::{Error, ErrorKind};
use crate::uffd::memory::UserfaultMemory;
use kaleidoscope_core::clone::ports::Event;

/// Most runs of frames that the engine is told of at once. It needs to know of none: frames that
/// were given back are filled with zeros, whatever it has fetched for them.
const MAX_RUNS: usize = 1 << 16;

impl UserfaultMemory {
    /// Keeps the memory's state in a journal, and goes on with what the journal holds. No other
    /// thread uses the memory yet.
    pub(in crate::uffd) fn keep_in(&mut self, journal: Journal) -> Result<(), Error> {
        let unsupported = |what: &'static str| Err(Error::new(ErrorKind::Unsupported, what));
        let [watched] = self.watched.as_slice() else {
            return unsupported("a session with a journal serves one userfaultfd");
        };
        if !watched.reports_removal {
            return unsupported(
                "a session with a journal needs a userfaultfd with UFFD_FEATURE_EVENT_REMOVE: \
                 without, nothing tells a page that was given back from one that never came",
            );
        }
        let frames = self.shards.last().map_or(0, |shard| shard.frames.end);
        if journal.frames() != frames {
            let of = journal.frames();
            let what =
                format!("the journal is of a guest of {of} frames, and this one has {frames}");
            return Err(Error::input(what));
        }
        if journal.begin() {
            journal.take_up(|range| self.frames_in(watched, range))?;
            let mut pending = self.pending.lock();
            for frames in journal.given_back() {
                if let Some(blocks) = &self.blocks {
                    blocks.give_back(frames.clone());
                }
                if pending.len() < MAX_RUNS {
                    pending.push_back(Event::Removed(frames));
                }
            }
            drop(pending);
            // The faults that the former process had read: their vCPUs report them anew. Fails only
            // for a VM that has ended, which the engine finds out.
            for shard in &self.shards {
                let _ = shard.descriptor.wake(shard.addresses());
            }
        }
        self.journal = Some(journal);
        Ok(())
    }
}
