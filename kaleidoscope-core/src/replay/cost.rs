//! Costs of faults and pages.

use std::str::FromStr;

/// Model of the link from the parent to the clone, which carries pages serially, in messages.
///
/// Time is counted in whole nanoseconds. Half of `fault_us`, rounded down, is the latency of a
/// request to the parent; the rest is the latency of a page back, after it has left the link.
///
/// - A message starts when the link is idle and the parent knows of a page to send, and is not
///   interrupted. Each of its pages takes `page_us`, serially. Pages that are requested while a
///   message is on the link wait for its end.
/// - The page that a vCPU waits for is sent first, in a message of its own; several are sent in the
///   order of their faults.
/// - Next are pages that were planned with faults, in the order of planning. The parent learns of
///   them with the fault's request, even if the fault itself requests nothing. A message takes as
///   many as the parent knows of when it starts.
/// - Last are pages of the background, which also fill up messages of planned pages. They need no
///   request: the parent knows of a batch at once.
/// - The background is asked for a batch when the link is idle and nothing is left to be sent,
///   including requests in flight. After an empty batch it is asked again only after the next
///   fault of any kind.
/// - A fault on a page that is in flight sends a request as well. If the page is not yet on the
///   link when the request reaches the parent, it is sent like the page of any other fault; else
///   the fault waits for it.
/// - A fault that is answered with zeros takes `zero_us` and does not use the link. Other frames
///   that a plan fills with zeros are present at once.
/// - Simultaneous events are processed in this order: touches (in the trace's order), requests,
///   the link.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CostModel {
    /// Microseconds that a fault takes on an idle link, without its page's time on the link: exit,
    /// handler, request, lookup, reply, mapping, entry.
    pub fault_us: f64,
    /// Microseconds that the link takes for a page.
    pub page_us: f64,
    /// Microseconds of a fault that is answered with zeros, without the parent.
    pub zero_us: f64,
    /// Most pages in one message; 0 counts as 1.
    pub message_pages: u32,
    /// Most pages in one batch of the background, and so the most that it has in flight.
    pub stream_pages: u32,
}

impl CostModel {
    /// Gigabit Ethernet: 4 KiB take 33 us at 1 Gbit/s, plus headers; the round trip through two
    /// kernels and the userfaultfd handler takes about 300 us.
    pub const GBE: Self =
        Self { fault_us: 300.0, page_us: 35.0, zero_us: 20.0, message_pages: 16, stream_pages: 64 };

    /// 25 Gbit/s Ethernet: 1.3 us per page; 60 us for the round trip.
    pub const GBE25: Self =
        Self { fault_us: 60.0, page_us: 1.5, zero_us: 20.0, message_pages: 16, stream_pages: 64 };

    /// The same host, with a handler that copies from memory.
    pub const LOCAL: Self =
        Self { fault_us: 25.0, page_us: 0.8, zero_us: 20.0, message_pages: 16, stream_pages: 64 };

    /// Names of the models that [`FromStr`] knows.
    pub const NAMES: [&'static str; 3] = ["gbe", "25gbe", "local"];
}

/// A model by its name, or by its parameters: `fault=60,page=1.5` in microseconds, and optionally
/// `zero=`, `message=` and `stream=` (defaults: 20 us, 16 and 64 pages).
impl FromStr for CostModel {
    type Err = CostError;

    fn from_str(text: &str) -> Result<Self, CostError> {
        match text {
            "gbe" => Ok(Self::GBE),
            "25gbe" => Ok(Self::GBE25),
            "local" => Ok(Self::LOCAL),
            _ if text.contains('=') => Self::from_figures(text),
            _ => Err(CostError::Unknown(text.to_owned())),
        }
    }
}

impl CostModel {
    fn from_figures(text: &str) -> Result<Self, CostError> {
        let mut model = Self { fault_us: f64::NAN, page_us: f64::NAN, ..Self::GBE };
        for part in text.split(',') {
            let (name, value) =
                part.split_once('=').ok_or_else(|| CostError::Figure(part.to_owned()))?;
            match name {
                "fault" => model.fault_us = microseconds(name, value)?,
                "page" => model.page_us = microseconds(name, value)?,
                "zero" => model.zero_us = microseconds(name, value)?,
                "message" => model.message_pages = pages(name, value, 1)?,
                "stream" => model.stream_pages = pages(name, value, 0)?,
                _ => return Err(CostError::Figure(part.to_owned())),
            }
        }
        for (name, us) in [("fault", model.fault_us), ("page", model.page_us)] {
            if us.is_nan() {
                return Err(CostError::Missing(name));
            }
        }
        Ok(model)
    }
}

/// Longest time of a cost: an hour.
const MAX_US: f64 = 3.6e9;

fn microseconds(name: &str, value: &str) -> Result<f64, CostError> {
    let us: Option<f64> = value.parse().ok();
    us.filter(|us| (0.0..=MAX_US).contains(us)).ok_or_else(|| CostError::invalid_value(name, value))
}

fn pages(name: &str, value: &str, least: u32) -> Result<u32, CostError> {
    let pages: Option<u32> = value.parse().ok();
    pages.filter(|pages| *pages >= least).ok_or_else(|| CostError::invalid_value(name, value))
}

/// Why a text does not describe a cost model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CostError {
    /// An unknown model name.
    #[error("no cost model is called `{0}`; there are gbe, 25gbe, local, and fault=US,page=US")]
    Unknown(String),
    /// An unknown or malformed parameter.
    #[error(
        "`{0}` is not a parameter of a cost model; \
         there are fault=, page=, zero=, message= and stream="
    )]
    Figure(String),
    /// A required parameter is missing.
    #[error("a cost model needs `{0}=`")]
    Missing(&'static str),
    /// A parameter's value is invalid.
    #[error("`{name}={value}`: {}", rule(.name))]
    Value {
        /// Name of the parameter.
        name: String,
        /// The invalid value.
        value: String,
    },
}

impl CostError {
    fn invalid_value(name: &str, value: &str) -> Self {
        Self::Value { name: name.to_owned(), value: value.to_owned() }
    }
}

/// The constraint on a parameter's value.
fn rule(name: &str) -> &'static str {
    match name {
        "message" => "pages of a message are a whole number from 1 on",
        "stream" => "pages of the background are a whole number",
        _ => "microseconds are a number from 0 to 3.6e9",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<CostModel>().unwrap_err().to_string()
    }

    #[test]
    fn models_have_names() {
        let models = CostModel::NAMES.map(|name| name.parse());
        assert_eq!(models, [Ok(CostModel::GBE), Ok(CostModel::GBE25), Ok(CostModel::LOCAL)]);
        assert!(error("10gbe").contains("there are gbe, 25gbe, local"));
    }

    #[test]
    fn models_are_made_of_figures() {
        let usual = CostModel { fault_us: 60.0, page_us: 1.5, ..CostModel::GBE };
        assert_eq!("fault=60,page=1.5".parse(), Ok(usual));
        let all = CostModel {
            fault_us: 60.0,
            page_us: 1.5,
            zero_us: 0.0,
            message_pages: 1,
            stream_pages: 0,
        };
        assert_eq!("stream=0,message=1,zero=0,page=1.5,fault=60".parse(), Ok(all));
    }

    #[test]
    fn bad_figures_are_named() {
        assert_eq!(error("fault=60"), "a cost model needs `page=`");
        assert_eq!(error("page=1"), "a cost model needs `fault=`");
        assert!(error("fault=60,page=1,speed=3").starts_with("`speed=3` is not a parameter"));
        assert!(error("fault=60,page").starts_with("`page` is not a parameter"));
        for value in ["-1", "NaN", "inf", "", "1e10"] {
            let text = error(&format!("fault={value},page=1"));
            assert!(text.starts_with(&format!("`fault={value}`: microseconds")), "{text}");
        }
        assert!(error("fault=1,page=1,message=0").contains("from 1 on"));
        assert!(error("fault=1,page=1,stream=-1").contains("whole number"));
    }
}
