//! A sign of life for work that takes over a second.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Work that is faster shows nothing.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Time between two frames of the animation.
const TICK: Duration = Duration::from_millis(100);

/// The current step of the work, for the progress line.
#[derive(Debug, Default)]
pub(crate) struct Status(Mutex<&'static str>);

impl Status {
    /// Says what is done now.
    pub(crate) fn set(&self, stage: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn get(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does `work`, showing what it is and how long it takes once a second has passed. Shows nothing
/// where standard error is no terminal.
pub(crate) fn during<T>(what: &str, work: impl FnOnce(&Status) -> T) -> T {
    let start = Instant::now();
    let status = Status::default();
    let (done, finished) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let status = &status;
        scope.spawn(move || {
            if finished.recv_timeout(TIMEOUT) != Err(mpsc::RecvTimeoutError::Timeout) {
                return;
            }
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style);
            let bar = bar.with_elapsed(start.elapsed());
            while finished.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
                bar.set_message(format!("{what}: {}", status.get()));
                bar.tick();
            }
            bar.finish_and_clear();
        });
        let result = work(status);
        drop(done);
        result
    })
}

/// How far along work is that consists of many pieces, which threads may share. Shows nothing
/// during the first second, nor where standard error is no terminal.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    start: Instant,
}

impl Bar {
    /// No piece is done yet.
    pub(crate) fn new(what: &'static str, pieces: usize) -> Self {
        let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {eta}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let pieces = u64::try_from(pieces).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(pieces), ProgressDrawTarget::hidden());
        Self { bar: bar.with_style(style).with_message(what), start: Instant::now() }
    }

    /// One more piece is done.
    pub(crate) fn advance(&self) {
        if self.bar.is_hidden() && self.start.elapsed() > TIMEOUT {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(1);
    }

    /// All are done: the bar disappears.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}
