//! A sign of life for work that takes over a second.

use indicatif::{ProgressBar, ProgressStyle};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Work that is faster shows nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Time between two frames of the animation.
const TICK: Duration = Duration::from_millis(100);

/// Does `work`, showing what it is and how long it takes once a second has passed. Shows nothing where standard error is
/// no terminal.
pub(crate) fn during<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let (done, finished) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if finished.recv_timeout(PATIENCE) != Err(mpsc::RecvTimeoutError::Timeout) {
                return;
            }
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style);
            let bar = bar.with_message(what.to_owned()).with_elapsed(start.elapsed());
            while finished.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
                bar.tick();
            }
            bar.finish_and_clear();
        });
        let result = work();
        drop(done);
        result
    })
}
