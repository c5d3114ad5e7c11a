//! The list of all policies for tests and benchmarks; add every new policy here.

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::prefetch::{
    Blind, Class, ColorGuide, Colored, Demand, LocalityOrder, Oracle, Paper, Predict,
    PrefetchPolicy, Recorded, RecordedOrder, Settings, Shape, Streamed, Window,
};
use std::sync::Arc;

/// A new instance of every policy, including blind ones with extreme sizes.
pub(crate) fn policies(locality: &Arc<LocalityOrder>) -> Vec<Box<dyn PrefetchPolicy>> {
    let mut all: Vec<Box<dyn PrefetchPolicy>> = vec![Box::new(Demand)];
    for size in [0, 1, 8, 64, u32::MAX] {
        all.push(Box::new(Blind::next(size)));
        all.push(Box::new(Blind::aligned(size)));
    }
    all.push(Box::new(Paper::new(Arc::clone(locality))));
    all.push(Box::new(Paper::shaped(Arc::clone(locality), Shape::Pivot)));
    let guide = |settings| Arc::new(ColorGuide::new(Arc::clone(locality), settings));
    let default = guide(Settings::default());
    let region = guide(Settings::default().without_prediction("region"));
    all.push(Box::new(Colored::new(region)));
    all.push(Box::new(Colored::new(Arc::clone(&default))));
    all.push(Box::new(Colored::new(guide(edges()))));
    // An earlier clone that touched every third frame, in descending order.
    let touched = || (0..locality.frames()).rev().step_by(3).map(FrameIndex);
    let expected = touched().zip([0.9, 0.2, 1.0].into_iter().cycle());
    let recorded_order = Arc::new(RecordedOrder::new(locality, expected, 0.5));
    for (name, predict) in [("recorded", Predict::Lost), ("recorded-elsewhere", Predict::Always)] {
        let (guide, recorded_order) = (Arc::clone(&default), Arc::clone(&recorded_order));
        all.push(Box::new(Recorded::new(name, guide, recorded_order, predict)));
    }
    let set: Arc<[FrameIndex]> = touched().collect();
    all.push(Box::new(Streamed::new("recorded-frames", Arc::clone(&set), Demand)));
    all.push(Box::new(Streamed::new("idle", set, Colored::new(default))));
    all.push(Box::new(Oracle::new(touched())));
    all
}

/// Settings with extreme numbers.
fn edges() -> Settings {
    let mut settings = Settings::bare("edges");
    settings.zero_ahead = u32::MAX;
    settings.inode_pages = u32::MAX;
    let windows = [
        Window { cold: 0, hot: u32::MAX, grow: 1, max: u32::MAX },
        Window { cold: u32::MAX, hot: 1, grow: 0, max: 0 },
        Window { cold: 3, hot: 7, grow: 1, max: 1000 },
    ];
    for (class, window) in Class::all().zip(windows.into_iter().cycle()) {
        settings.windows[class.index()] = window;
    }
    settings
}
