//! Counters of a server.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters of a server since its start.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct ServerStatistics {
            $($(#[$doc])* pub $name: u64),+
        }

        /// The live counters.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64),+
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> ServerStatistics {
                ServerStatistics { $($name: self.$name.load(Ordering::Relaxed)),+ }
            }
        }
    };
}

counters! {
    /// Connections accepted.
    connections,
    /// Connections open now.
    open,
    /// Connections refused, or closed without a reply.
    refused,
    /// Connections that ended because the client broke the protocol or exceeded its limits.
    violations,
    /// Connections that ended because of the network, or because the client did not read.
    broken,
    /// Connections that ended because the client requested nothing for too long.
    idle,
    /// Connections that ended because their thread panicked, e.g. in the image's memory.
    panics,
    /// Pages sent.
    pages,
    /// Pages among them that were requested as urgent.
    urgent_pages,
    /// Pages among them that are zeros.
    zero_pages,
    /// Pages among them that were sent compressed.
    compressed_pages,
    /// Pages among them that the image does not hold.
    unavailable_pages,
    /// Replies with pages.
    batches,
    /// Bytes of these replies, heads included.
    bytes,
    /// Bytes of descriptors sent.
    descriptor_bytes,
    /// Pages that the image holds but that could not be read.
    unreadable_pages,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, count: usize) {
    if count > 0 {
        counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
