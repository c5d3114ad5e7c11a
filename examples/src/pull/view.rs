//! How far a pull is, live.

use crate::map_output::table::size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kaleidoscope_core::addr::FRAME_SIZE;
use kaleidoscope_core::clone::Statistics;
use kaleidoscope_core::wire::client::ClientStatistics;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A pull that is faster shows nothing.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Time between two pictures.
const TICK: Duration = Duration::from_millis(100);

/// Over which time the rate is taken.
const WINDOW: Duration = Duration::from_secs(2);

/// Colors that are shown, those with the most pages first.
const COLORS: usize = 4;

/// The progress view. Shows nothing where standard error is no terminal.
pub(super) struct View {
    bar: ProgressBar,
    start: Instant,
    shown: Instant,
    /// When so many pages were there.
    pages: VecDeque<(Instant, u64)>,
}

impl View {
    /// No page of so many is there.
    pub(super) fn new(pages: usize) -> Self {
        let style = ProgressStyle::with_template("[{bar:32}] {pos}/{len} pages, {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let pages = u64::try_from(pages).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(pages), ProgressDrawTarget::hidden());
        let now = Instant::now();
        Self { bar: bar.with_style(style), start: now, shown: now, pages: VecDeque::new() }
    }

    /// Shows what is there now.
    pub(super) fn show(&mut self, clone: &Statistics, client: &ClientStatistics) {
        let now = Instant::now();
        if self.shown.elapsed() < TICK {
            return;
        }
        self.shown = now;
        let resident = clone.total().resident;
        self.pages.push_back((now, resident));
        while self.pages.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.pages.pop_front();
        }
        if self.start.elapsed() < TIMEOUT {
            return;
        }
        if self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_message(line(self.rate(), clone, client));
        self.bar.set_position(resident);
    }

    /// Bytes per second lately.
    fn rate(&self) -> u64 {
        let (Some((from, before)), Some((to, now))) = (self.pages.front(), self.pages.back())
        else {
            return 0;
        };
        let millis = to.duration_since(*from).as_millis().max(1);
        let bytes = u128::from(now.saturating_sub(*before)) * u128::from(FRAME_SIZE);
        u64::try_from(bytes * 1000 / millis).unwrap_or(u64::MAX)
    }

    /// The view disappears.
    pub(super) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// `12.5 MiB/s, 3 faults, file-cache 812, slab 96`, and reconnects if there were any.
fn line(rate: u64, clone: &Statistics, client: &ClientStatistics) -> String {
    let total = clone.total();
    let mut parts = vec![format!("{}/s", size(rate)), format!("{} faults", total.faults)];
    if client.reconnects > 0 {
        parts.push(format!("{} reconnects", client.reconnects));
    }
    let mut colors: Vec<_> = clone.by_color.iter().map(|(c, n)| (n.resident, *c)).collect();
    colors.sort_by_key(|(pages, _)| std::cmp::Reverse(*pages));
    let most = colors.iter().take(COLORS).filter(|(pages, _)| *pages > 0);
    parts.extend(most.map(|(pages, color)| format!("{color} {pages}")));
    parts.join(", ")
}
