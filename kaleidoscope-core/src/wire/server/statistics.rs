//! What a server has done.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What a server has done since it was started.
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
    /// Connections that were accepted.
    connections,
    /// Connections that are open now.
    open,
    /// Connections that were refused, or closed unanswered.
    refused,
    /// Connections that ended because the client broke the protocol or asked for too much.
    violations,
    /// Connections that ended because of the network, or because the client did not read.
    broken,
    /// Connections on which nothing was asked for too long.
    idle,
    /// Connections that ended because their thread panicked, in the image's memory say.
    panics,
    /// Pages sent in all.
    pages,
    /// Pages of those that somebody waited for.
    urgent_pages,
    /// Pages of those that are zeros.
    zero_pages,
    /// Pages of those that were compressed.
    compressed_pages,
    /// Pages of those that the image does not hold.
    unavailable_pages,
    /// Replies with pages.
    batches,
    /// Bytes of replies, heads included.
    bytes,
    /// Bytes of descriptors sent.
    descriptor_bytes,
    /// Pages that the image should hold and could not be read.
    unreadable_pages,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, count: usize) {
    if count > 0 {
        counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
