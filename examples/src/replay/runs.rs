//! Replays every trace under every policy, on all cores.

use super::policies::PolicyChoice;
use super::traces::NamedTrace;
use crate::failure::Failure;
use crate::progress::Bar;
use kaleidoscope_core::prefetch::Atlas;
use kaleidoscope_core::replay::{Metrics, Replay, replay};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

/// A policy, and how it did on every trace, in the traces' order.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Results {
    pub(super) policy: PolicyChoice,
    pub(super) traces: Vec<Metrics>,
}

/// Replays. The result depends on the arguments alone, not on which thread did what.
pub(super) fn run(
    policies: &[PolicyChoice],
    traces: &[NamedTrace],
    atlas: &Arc<Atlas>,
    options: &Replay,
) -> Result<Vec<Results>, Failure> {
    let pairs = policies.iter().flat_map(|policy| traces.iter().map(move |trace| (policy, trace)));
    let pairs: Vec<_> = pairs.collect();
    let results: Vec<OnceLock<Result<Metrics, Failure>>> =
        pairs.iter().map(|_| OnceLock::new()).collect();
    let bar = Bar::new("replaying", pairs.len());
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let (Some((policy, trace)), Some(result)) = (pairs.get(at), results.get(at)) else {
                return;
            };
            let metrics = policy
                .build(atlas, &trace.trace)
                .map(|mut policy| replay(&trace.trace, atlas, policy.as_mut(), options));
            // Each place is given to one thread, once.
            let _ = result.set(metrics);
            bar.advance();
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(pairs.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    bar.finish();
    let metrics = results.into_iter().filter_map(OnceLock::into_inner);
    let metrics: Vec<Metrics> = metrics.collect::<Result<_, _>>()?;
    let of_policy = metrics.chunks(traces.len().max(1));
    let results = policies.iter().zip(of_policy);
    Ok(results.map(|(p, m)| Results { policy: p.clone(), traces: m.to_vec() }).collect())
}
