//! Runs a clone engine until it has everything.

use super::copy::Copy;
use super::source::Watched;
use super::view::View;
use crate::failure::Failure;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{PageInstaller, PageSource};
use kaleidoscope_core::clone::{
    Background, Engine, EngineOptions, EngineParts, FreeFrames, Statistics, Stopped,
};
use kaleidoscope_core::prefetch::{LocalityOrder, PrefetchPolicy};
use kaleidoscope_core::wire::client::Client;
use std::sync::Arc;
use std::time::Duration;

/// How often to look how far it is.
const LOOK: Duration = Duration::from_millis(20);

/// How to fetch.
pub(super) struct Order {
    pub(super) policy: Box<dyn PrefetchPolicy>,
    pub(super) background: Background,
    pub(super) free_frames: FreeFrames,
    pub(super) timeout: Duration,
}

/// What to do depends on whose fault it is.
fn failure(why: &Stopped) -> Failure {
    let failure = Failure::new(why);
    match why {
        Stopped::Memory(_) => failure.hint(
            "the file takes as much room as the guest has RAM, less what is zeros there: free some, or have -o point \
             elsewhere",
        ),
        Stopped::Source(_) | Stopped::Timeout { .. } => failure.hint(
            "with the addresses of several servers of the image, a pull goes on where one of them ends; --timeout \
             is how long a page may take",
        ),
        Stopped::Cancelled
        | Stopped::Ended
        | Stopped::Unavailable { .. }
        | Stopped::NoSuchFrame { .. }
        | _ => failure,
    }
}

/// Fetches everything into the file.
pub(super) fn all(
    client: &Arc<Client>,
    locality: &Arc<LocalityOrder>,
    copy: &Arc<Copy>,
    order: Order,
) -> Result<Statistics, Failure> {
    let source =
        Watched { source: Arc::clone(client) as Arc<dyn PageSource>, copy: Arc::clone(copy) };
    let parts = EngineParts::new(
        Arc::clone(locality),
        order.policy,
        Arc::new(source),
        Arc::clone(copy) as Arc<dyn PageInstaller>,
    );
    let options = EngineOptions::default()
        .background(order.background)
        .free_frames(order.free_frames)
        .timeout(order.timeout);
    let engine = Engine::start(parts, options)
        .map_err(|e| Failure::new(format_args!("the system gives no thread: {e}")))?;
    let is_wanted = |frame| order.free_frames == FreeFrames::Fetch || !locality.is_free(frame);
    let wanted = || (0..locality.frames()).map(FrameIndex).filter(|frame| is_wanted(*frame));
    let mut view = View::new(wanted().count());
    let result = loop {
        if let Some(why) = engine.stopped() {
            break Err(failure(&why));
        }
        if engine.is_filled() {
            break Ok(());
        }
        std::thread::sleep(LOOK);
        view.show(&engine.statistics(), &client.statistics());
    };
    view.finish();
    let statistics = engine.statistics();
    // When it is dropped, its thread has ended, and nothing is written any more.
    drop(engine);
    if let (Err(_), Some(failure)) = (&result, copy.failure()) {
        return Err(failure);
    }
    result?;
    match copy.first_gap(wanted()) {
        None => Ok(statistics),
        Some(frame) => {
            Err(Failure::new(format_args!("internal error: frame {frame} is not there")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_core::clone::ports::{InstallError, SourceError};

    #[test]
    fn only_servers_that_end_are_replaced_by_others() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = InstallError::caused_by("frame 7 of copy.bin", full);
        let failure = failure(&Stopped::Memory(Arc::new(full))).to_string();
        assert!(failure.contains("room") && !failure.contains("server"), "{failure}");
        let gone = Stopped::Source(Arc::new(SourceError::new("closed by the server")));
        let failure = super::failure(&gone).to_string();
        assert!(failure.contains("several servers"), "{failure}");
    }
}
