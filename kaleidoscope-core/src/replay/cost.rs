//! What a fault and a page cost.

use std::str::FromStr;

/// The way from the parent to the clone: a link that carries pages one after the other, in messages.
///
/// Time is counted in whole nanoseconds. Half of `fault_us`, rounded down, is the way of a request to the parent; the rest is
/// the way of a page back, after it has left the link.
///
/// - A message begins when the link is idle and the parent knows of a page to send, and is not interrupted. Each of its pages
///   takes `page_us`, one after the other. What is asked for while a message is on the link waits for its end.
/// - The page that a vCPU waits for goes first, in a message of its own; several go in the order of their faults.
/// - Then pages that were planned with faults, in the order of planning. The parent learns of them with the fault's
///   request, also when the fault itself asks for nothing. A message takes as many as the parent knows of when it begins.
/// - Then pages of the background, which fill up messages of planned ones too. No request is on the way for them: the parent
///   knows of a batch at once.
/// - The background is asked for a batch when the link is idle and nothing is left to be sent, no request on its way
///   included. After an empty batch it is asked again only after the next fault, of whatever kind.
/// - A fault on a page that is on its way sends a request as well. When the page is still not on the link as
///   the request gets to the parent, it goes like the page of any other fault; else the fault waits for it.
/// - A fault that is answered with zeros takes `zero_us` and no link. Other frames that a plan fills with zeros are there
///   at once.
/// - What happens at the same instant happens in this order: touches (in the trace's order), requests, the link.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CostModel {
    /// Microseconds that a fault takes on an idle link, without those of its page on the link: exit, handler, request,
    /// lookup, reply, mapping, entry.
    pub fault_us: f64,
    /// Microseconds that the link takes for a page.
    pub page_us: f64,
    /// Microseconds that a fault takes which is answered with zeros, without the parent.
    pub zero_us: f64,
    /// Most pages in one message; 0 counts as 1.
    pub message_pages: u32,
    /// Most pages in one batch of the background, and so the most that it has on their way.
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
