//! Replays every trace under every policy, on all cores.

use super::policies::{Guest, PolicyChoice, Prepared};
use super::traces::NamedTrace;
use crate::failure::Failure;
use crate::progress::Bar;
use kaleidoscope_core::replay::{Metrics, Replay, replay};
use std::num::NonZero;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A policy and its metrics on every trace, in the order of the traces.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Results {
    pub(super) policy: PolicyChoice,
    pub(super) traces: Vec<Metrics>,
}

/// Replays every trace under every policy. The result is deterministic.
pub(super) fn run(
    policies: &[PolicyChoice],
    traces: &[NamedTrace],
    guest: &Guest,
    options: &Replay,
) -> Result<Vec<Results>, Failure> {
    let prepared: Vec<Prepared> =
        policies.iter().map(|policy| policy.prepare(guest)).collect::<Result<_, _>>()?;
    let locality = &guest.locality;
    let pairs = prepared.iter().flat_map(|policy| traces.iter().map(move |trace| (policy, trace)));
    let pairs: Vec<_> = pairs.collect();
    let results: Vec<OnceLock<Metrics>> = pairs.iter().map(|_| OnceLock::new()).collect();
    let bar = Bar::new("replaying", pairs.len());
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let (Some((policy, trace)), Some(result)) = (pairs.get(at), results.get(at)) else {
                return;
            };
            let mut policy = policy.build(locality, &trace.trace);
            let metrics = replay(&trace.trace, locality, policy.as_mut(), options);
            // Cannot fail: each result is set once, by one thread.
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
    let metrics: Vec<Metrics> = results.into_iter().filter_map(OnceLock::into_inner).collect();
    let of_policy = metrics.chunks(traces.len().max(1));
    let results = policies.iter().zip(of_policy);
    Ok(results.map(|(p, m)| Results { policy: p.clone(), traces: m.to_vec() }).collect())
}
