//! What a client has done.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What a client has done since it was connected first.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct ClientStatistics {
            $($(#[$doc])* pub $name: u64),+
        }

        /// The live counters.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64),+
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> ClientStatistics {
                ClientStatistics { $($name: self.$name.load(Ordering::Relaxed)),+ }
            }
        }
    };
}

counters! {
    /// Frames that arrived, each once.
    frames,
    /// Frames of those that are zeros.
    zero_frames,
    /// Frames of those that the image does not hold.
    unavailable_frames,
    /// Second copies of frames, which were dropped.
    second_copies,
    /// Bytes received, heads included.
    bytes,
    /// Connections that were lost, whatever the reason.
    disconnects,
    /// Connections of those that were given up because the server sent nothing for too long.
    silences,
    /// Connections of those that were given up because the server broke the protocol.
    violations,
    /// Connections of those that were given up because a checksum was wrong.
    checksum_failures,
    /// Connections made after the first one.
    reconnects,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    if count > 0 {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}
