//! Every policy there is: whoever adds one adds it here, and all tests and benchmarks take it up.

use kaleidoscope_core::prefetch::{Atlas, Blind, Demand, Paper, PrefetchPolicy, Shape};
use std::sync::Arc;

/// A fresh instance of every policy, blind ones in sizes at the edges too.
pub(crate) fn policies(atlas: &Arc<Atlas>) -> Vec<Box<dyn PrefetchPolicy>> {
    let mut all: Vec<Box<dyn PrefetchPolicy>> = vec![Box::new(Demand)];
    for size in [0, 1, 8, 64, u32::MAX] {
        all.push(Box::new(Blind::next(size)));
        all.push(Box::new(Blind::aligned(size)));
    }
    all.push(Box::new(Paper::new(Arc::clone(atlas))));
    all.push(Box::new(Paper::shaped(Arc::clone(atlas), Shape::Pivot)));
    all
}
