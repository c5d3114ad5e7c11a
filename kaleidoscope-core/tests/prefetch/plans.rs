//! What every plan must hold, and a script that asks a policy for plans.

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::color::{Color, ColorMap};
use kaleidoscope_core::prefetch::{
    Access, Answer, Fault, LocalityOrder, Plan, PrefetchOutcome, PrefetchPolicy, Presence,
};
use std::collections::HashSet;
use std::sync::Arc;

/// What is in a clone. Of frames that the guest does not have it says the worst: that they are
/// absent.
struct Present(Vec<bool>);

impl Presence for Present {
    fn is_absent(&self, frame: FrameIndex) -> bool {
        self.0.get(frame.as_usize()) != Some(&true)
    }
}

/// Something that happens to a clone. Numbers of frames may be any.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Fault(Fault),
    Background,
    Feedback(FrameIndex, PrefetchOutcome),
    /// A frame comes or goes without the policy.
    Flip(FrameIndex),
}

/// A plan's contents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Contents {
    answer: Answer,
    fetch: Vec<FrameIndex>,
    zero: Vec<FrameIndex>,
}

/// Runs a script and returns every plan. What is planned is present from then on.
///
/// # Errors
/// What is wrong with a plan.
pub(crate) fn run(
    locality: &Arc<LocalityOrder>,
    policy: &mut dyn PrefetchPolicy,
    steps: &[Step],
    budget: usize,
    is_plan_reused: bool,
) -> Result<Vec<Contents>, String> {
    let mut present = Present(vec![false; locality.map().len()]);
    let mut plan = Plan::new(Arc::clone(locality), budget);
    let mut plans = Vec::new();
    for step in steps {
        if !is_plan_reused {
            plan = Plan::new(Arc::clone(locality), budget);
        }
        let asked = match *step {
            Step::Feedback(frame, outcome) => {
                policy.feedback(frame, outcome);
                continue;
            }
            Step::Flip(frame) => {
                present.0.get_mut(frame.as_usize()).into_iter().for_each(|there| *there = !*there);
                continue;
            }
            Step::Fault(fault) => {
                policy.fault(&fault, &mut plan.begin(&present, Some(fault.frame)));
                Some(fault.frame)
            }
            Step::Background => {
                policy.background(&mut plan.begin(&present, None));
                None
            }
        };
        // Blind policies see no colors; every other one knows better than to fetch what nobody
        // needs.
        let may_fetch_free = policy.name().starts_with("blind-");
        check(locality.map(), &plan, &present, asked, budget, may_fetch_free).map_err(|wrong| {
            let (fetch, zero) = (plan.fetch(), plan.zero());
            format!("{} at {step:?}: {wrong}, in {fetch:?} and {zero:?}", policy.name())
        })?;
        for frame in plan.fetch().iter().chain(plan.zero()).copied().chain(asked) {
            present.0.get_mut(frame.as_usize()).into_iter().for_each(|there| *there = true);
        }
        let (fetch, zero) = (plan.fetch().to_vec(), plan.zero().to_vec());
        plans.push(Contents { answer: plan.answer(), fetch, zero });
    }
    Ok(plans)
}

/// What every plan must hold.
fn check(
    map: &ColorMap,
    plan: &Plan,
    present: &Present,
    asked: Option<FrameIndex>,
    budget: usize,
    may_fetch_free: bool,
) -> Result<(), String> {
    let is_free = |frame: FrameIndex| {
        map.frame(frame).is_some_and(|f| matches!(f.color, Color::Free | Color::Offline))
    };
    if plan.answer() == Answer::Zero && !asked.is_some_and(is_free) {
        return Err("zeros for a frame that is needed".to_owned());
    }
    if plan.fetch().len() > budget || plan.zero().len() > budget {
        return Err(format!("more than {budget} frames"));
    }
    let mut seen = HashSet::new();
    for frame in plan.fetch().iter().chain(plan.zero()) {
        if frame.as_usize() >= map.len() {
            return Err(format!("{frame:?} is not in the guest"));
        }
        if Some(*frame) == asked || present.0[frame.as_usize()] || !seen.insert(*frame) {
            return Err(format!("{frame:?} is asked for, present, or there twice"));
        }
    }
    if let Some(frame) = plan.zero().iter().find(|frame| !is_free(**frame)) {
        return Err(format!("zeros for {frame:?}, which is needed"));
    }
    if let Some(frame) = plan.fetch().iter().find(|f| !may_fetch_free && is_free(**f)) {
        return Err(format!("{frame:?} is fetched and free"));
    }
    Ok(())
}

/// The step that three numbers mean, mostly about frames of a guest with `frames` frames.
pub(crate) fn step((kind, frame, detail): (u8, u32, u8), frames: u32) -> Step {
    let is_wild = detail >= 240;
    // Frames just past the end are in it too.
    let frame = FrameIndex(if is_wild { frame } else { frame % frames.saturating_add(2) });
    match kind % 16 {
        0..10 => Step::Fault(Fault {
            frame,
            access: [Access::Unknown, Access::Read, Access::Write][usize::from(detail % 3)],
            in_flight: detail % 5 == 0,
        }),
        10..12 => Step::Background,
        12 => Step::Feedback(frame, PrefetchOutcome::Unused),
        13 => Step::Feedback(frame, PrefetchOutcome::Used),
        _ => Step::Flip(frame),
    }
}
