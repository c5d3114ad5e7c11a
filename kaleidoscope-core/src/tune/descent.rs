//! Coordinate descent over windows.

use super::{Judge, Score, TracedGuest, predict, touched};
use crate::prefetch::{Class, Settings, Window};

/// Candidate window sizes in pages.
const SIZES: [u32; 18] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];

/// How far a size moves in `SIZES` in one step of the descent.
const STEPS: [isize; 8] = [-1, 1, -2, 2, -3, 3, -5, 5];

/// Candidate numbers of faults after which a growing window doubles.
const GROWTHS: [u32; 4] = [1, 2, 4, 8];

/// Candidate limits of growing windows in pages.
const LIMITS: [u32; 5] = [16, 32, 64, 128, 256];

/// Candidate numbers of pages of a file to fetch with its inode.
const INODE_PAGES: [u32; 7] = [0, 1, 2, 4, 8, 16, 32];

/// Least improvement of the cost for which a change is kept, so that noise changes nothing.
const MIN_IMPROVEMENT: f64 = 1e-5;

/// The descent ends after a round with less improvement than this.
const MIN_ROUND_IMPROVEMENT: f64 = 1e-3;

/// Parameters of the tuner.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tuner {
    /// Cost of a wasted page relative to a fault, both measured in units of the baseline's.
    pub price: f64,
    /// Most rounds over all parameters.
    pub rounds: u32,
}

/// Tunes settings on the guests' traces, starting from `start`. `report` receives the round, the
/// class and the score after every class.
#[must_use]
pub fn tune<'a>(
    subjects: impl IntoIterator<Item = &'a TracedGuest>,
    start: Settings,
    tuner: &Tuner,
    report: &mut dyn FnMut(u32, Class, Score),
) -> Settings {
    let mut descent = Descent::new(Judge::new(subjects), start, tuner.price);
    let classes = touched(descent.judge.subjects());
    for round in 0..tuner.rounds {
        let before = descent.cost;
        predict::choose(&mut descent);
        for class in classes.iter().copied() {
            descent.window(class);
            report(round, class, descent.score);
        }
        for pages in INODE_PAGES {
            descent.attempt(|settings| settings.inode_pages = pages);
        }
        if before - descent.cost < MIN_ROUND_IMPROVEMENT {
            break;
        }
    }
    descent.settings
}

/// The best settings so far.
pub(super) struct Descent<'a> {
    pub(super) judge: Judge<'a>,
    pub(super) settings: Settings,
    score: Score,
    cost: f64,
    price: f64,
}

impl<'a> Descent<'a> {
    fn new(mut judge: Judge<'a>, settings: Settings, price: f64) -> Self {
        let score = judge.score(&settings);
        judge.keep();
        Self { judge, settings, score, cost: score.cost(price), price }
    }

    /// Keeps a change if it lowers the cost. Returns whether it did.
    pub(super) fn attempt(&mut self, change: impl FnOnce(&mut Settings)) -> bool {
        let mut changed = self.settings.clone();
        change(&mut changed);
        if changed == self.settings {
            return false;
        }
        let score = self.judge.score(&changed);
        let is_better = score.cost(self.price) < self.cost - MIN_IMPROVEMENT;
        if is_better {
            self.judge.keep();
            (self.settings, self.score, self.cost) = (changed, score, score.cost(self.price));
        }
        is_better
    }

    /// Improves one class's window.
    fn window(&mut self, class: Class) {
        let mut attempt = |change: &dyn Fn(Window) -> Window| {
            self.attempt(|settings| {
                if let Some(window) = settings.windows.get_mut(class.index()) {
                    *window = change(*window);
                }
            })
        };
        for step in STEPS {
            attempt(&|w| Window {
                cold: step_size(w.cold, step),
                hot: step_size(w.hot, step),
                ..w
            });
        }
        for step in STEPS {
            attempt(&|w| Window { cold: step_size(w.cold, step), ..w });
            attempt(&|w| Window { hot: step_size(w.hot, step), ..w });
        }
        for grow in GROWTHS {
            for max in LIMITS {
                attempt(&|w| Window { grow, max, ..w });
            }
        }
        attempt(&|w| Window { grow: 0, max: 0, ..w });
    }
}

/// The candidate size `step` places above or below.
fn step_size(size: u32, step: isize) -> u32 {
    let at = SIZES.iter().position(|s| *s >= size).unwrap_or(SIZES.len() - 1);
    let to = at.saturating_add_signed(step).min(SIZES.len() - 1);
    SIZES.get(to).copied().unwrap_or(size)
}
