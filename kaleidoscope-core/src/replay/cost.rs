//! What a fault and a page cost.

use std::str::FromStr;

/// The way from the parent to the clone: a link that carries pages one after the other.
///
/// A fault waits for its request to get to the parent, for the message on the link to end, for its own page, and for the way
/// back. Pages that were planned with it follow behind it, and a later fault overtakes them at the next message's border.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CostModel {
    /// Microseconds from a fault until its page begins to arrive on an idle link, and until the vCPU runs again:
    /// exit, handler, request, lookup, reply, mapping, entry.
    pub fault_us: f64,
    /// Microseconds that the link takes for a page.
    pub page_us: f64,
    /// Microseconds that a fault takes which is answered with zeros, without the parent.
    pub zero_us: f64,
    /// Most pages in one message; a message is not interrupted.
    pub message_pages: u32,
    /// Most pages that the background may have on their way.
    pub stream_pages: u32,
}

impl CostModel {
    /// Gigabit Ethernet: 4 KiB take 33 us at 1 Gbit/s and a little for headers; the round trip through two kernels and the
    /// userfaultfd handler about 300 us.
    pub const GBE: Self =
        Self { fault_us: 300.0, page_us: 35.0, zero_us: 20.0, message_pages: 16, stream_pages: 64 };

    /// 25 Gbit/s Ethernet: 1.3 us per page; 60 us for the round trip.
    pub const GBE25: Self =
        Self { fault_us: 60.0, page_us: 1.5, zero_us: 20.0, message_pages: 16, stream_pages: 64 };

    /// The same host: a handler that copies from memory.
    pub const LOCAL: Self =
        Self { fault_us: 25.0, page_us: 0.8, zero_us: 20.0, message_pages: 16, stream_pages: 64 };

    /// Names of the models that [`FromStr`] knows.
    pub const NAMES: [&'static str; 3] = ["gbe", "25gbe", "local"];
}

impl FromStr for CostModel {
    type Err = UnknownCostModel;

    fn from_str(name: &str) -> Result<Self, UnknownCostModel> {
        match name {
            "gbe" => Ok(Self::GBE),
            "25gbe" => Ok(Self::GBE25),
            "local" => Ok(Self::LOCAL),
            _ => Err(UnknownCostModel(name.to_owned())),
        }
    }
}

/// A name that no cost model has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no cost model is called `{0}`; there are gbe, 25gbe and local")]
pub struct UnknownCostModel(String);
