//! Counters of a client.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters of a client since its first connection.
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
    /// Frames that arrived, each counted once.
    frames,
    /// Frames among them that are zeros.
    zero_frames,
    /// Frames among them that the image does not hold.
    unavailable_frames,
    /// Second copies of frames, which were dropped.
    second_copies,
    /// Bytes received, heads included.
    bytes,
    /// Connections that were lost, for any reason.
    disconnects,
    /// Connections among them that were dropped because the server sent nothing for too long.
    silences,
    /// Connections among them that were dropped because the server broke the protocol.
    violations,
    /// Connections among them that were dropped because a checksum was wrong.
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
