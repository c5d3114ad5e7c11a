//! Prefetch policies, and their plans for faults.

#![expect(unsafe_code, reason = "C calls these functions and passes pointers")]

use super::failure::{Failure, Status, call};
use super::map::Map;
use super::pointers;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::prefetch::{
    self, Answer, Blind, ColorGuide, Colored, Demand, Fault, LocalityOrder, Plan, PrefetchPolicy,
    Settings, predicted,
};
use parking_lot::Mutex;
use std::ffi::c_char;
use std::sync::Arc;

/// Most frames of a plan, the frame of the fault not counted: as many as a session's.
const BUDGET: usize = 256;

/// Largest window of a blind policy, in frames.
const MAX_BLIND: u32 = 1 << 20;

/// How a frame was accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Access {
    /// Not known.
    Unknown = 0,
    /// Read or executed.
    Read = 1,
    /// Written.
    Write = 2,
}

/// What to do with a planned frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Action {
    /// Fetch it from the memory file.
    Fetch = 0,
    /// Fill it with zeros: the guest does not need its bytes.
    Zero = 1,
}

/// A frame of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PlannedFrame {
    /// Guest-physical frame number.
    pub gfn: u64,
    /// What to do with the frame.
    pub action: Action,
}

/// Decides which frames a clone receives before it touches them. One policy serves one clone.
#[derive(Debug)]
pub struct Policy {
    locality: Arc<LocalityOrder>,
    state: Mutex<State>,
}

struct State {
    /// `None` after a panic: the policy's state may be half done.
    policy: Option<Box<dyn PrefetchPolicy>>,
    plan: Plan,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.policy.as_ref().map(|policy| policy.name());
        f.debug_struct("State").field("policy", &name).finish_non_exhaustive()
    }
}

/// A policy by its name.
pub(super) fn named(
    name: &str,
    locality: &Arc<LocalityOrder>,
) -> Result<Box<dyn PrefetchPolicy>, Failure> {
    let size = |text: &str| {
        let size = text.parse().ok().filter(|size| (1..=MAX_BLIND).contains(size));
        size.ok_or_else(|| {
            let message = format_args!("`{name}`: N must be from 1 to {MAX_BLIND}");
            Failure::argument(message)
        })
    };
    let policy: Box<dyn PrefetchPolicy> = match name {
        "predicted" => predicted(locality),
        "region" => {
            let settings = Settings::shipped_for(locality.map().kernel());
            let settings = settings.without_prediction(name);
            Box::new(Colored::new(Arc::new(ColorGuide::new(Arc::clone(locality), settings))))
        }
        "demand" => Box::new(Demand),
        _ => match (name.strip_prefix("blind-next-"), name.strip_prefix("blind-aligned-")) {
            (Some(n), _) => Box::new(Blind::next(size(n)?)),
            (_, Some(n)) => Box::new(Blind::aligned(size(n)?)),
            (None, None) => {
                return Err(Failure::argument(format_args!(
                    "no policy is called `{name}`; there are predicted, region, demand, \
                     blind-next-N, blind-aligned-N"
                )));
            }
        },
    };
    Ok(policy)
}

/// Makes a policy.
///
/// `name` is `predicted` (also if null), `region` (as `predicted`, without its stream of frames that
/// clones are likely to use), `demand` (only the frame of the fault), `blind-next-N` (the N frames
/// that follow), or `blind-aligned-N` (the aligned block of N frames); N is at most 1048576.
///
/// # Safety
/// `map` is from `kaleidoscope_map_open`, and may be freed before the policy. `name` ends with NUL.
/// `policy` is where the result goes; free it with `kaleidoscope_policy_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_policy_new(
    map: *const Map,
    name: *const c_char,
    policy: *mut *mut Policy,
) -> Status {
    call(|| {
        // SAFETY: the caller promises that it is null or a map that is not freed yet.
        let map = unsafe { pointers::borrow(map, "map") }?;
        // SAFETY: the caller promises that it is null or a string.
        let name = unsafe { pointers::text(name, "name") }?;
        // SAFETY: the caller promises that it is null or a place for a pointer.
        let out = unsafe { pointers::out(policy, "policy") }?;
        let locality = Arc::clone(&map.locality);
        let policy = named(name.unwrap_or("predicted"), &locality)?;
        let mut plan = Plan::new(Arc::clone(&locality), BUDGET);
        plan.allow_zeros(locality.map().has_trusted_free_frames());
        pointers::give(
            out,
            Policy { locality, state: Mutex::new(State { policy: Some(policy), plan }) },
        );
        Ok(())
    })
}

/// Plans for a fault: writes the frame of the fault, then frames to fetch in descending priority,
/// then frames to fill with zeros. Every other frame is RAM that is not present; none comes twice.
/// There are zeros only if the map was verified against its memory file, and its free frames are
/// known to be safe to lose.
///
/// `access` is one of `kaleidoscope_access`. `present` says which frames the clone has: bit `n % 8`
/// of byte `n / 8` is frame index `n`, the frame at byte `4096 * n` of the RAM in the order of
/// guest-physical addresses without holes. It has at least one bit for each frame; null with 0
/// bytes says that no frame is present.
///
/// `frames` has room for `capacity` frames, at least 1; a plan is cut to fit, and has at most 513.
/// `count` is the number of frames written.
///
/// # Safety
/// `policy` is from `kaleidoscope_policy_new`; `present` has `present_bytes` bytes, `frames` room
/// for `capacity` items, and `count` is a place for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_policy_plan(
    policy: *const Policy,
    gfn: u64,
    access: u32,
    present: *const u8,
    present_bytes: usize,
    frames: *mut PlannedFrame,
    capacity: usize,
    count: *mut usize,
) -> Status {
    call(|| {
        // SAFETY: the caller promises that it is null or a policy that is not freed yet.
        let policy = unsafe { pointers::borrow(policy, "policy") }?;
        // SAFETY: the caller promises that it is null or so many bytes.
        let present = unsafe { pointers::items(present, present_bytes, "present") }?;
        // SAFETY: the caller promises that it is null or room for so many items.
        let room = unsafe { pointers::items_out(frames, capacity, "frames") }?;
        // SAFETY: the caller promises that it is null or a place for the result.
        let count = unsafe { pointers::out(count, "count") }?;
        let frame = Map::index_of(&policy.locality, gfn)?;
        let access = match access {
            0 => prefetch::Access::Unknown,
            1 => prefetch::Access::Read,
            2 => prefetch::Access::Write,
            _ => return Err(Failure::argument(format_args!("no `access` is {access}"))),
        };
        let others = capacity
            .checked_sub(1)
            .ok_or_else(|| Failure::argument("`capacity` is 0: there is no room for a plan"))?;
        let needed = policy.locality.frames().div_ceil(8) as usize;
        if !present.is_empty() && present.len() < needed {
            let message = format_args!("`present` needs {needed} bytes, and has {present_bytes}");
            return Err(Failure::argument(message));
        }
        let is_absent = |frame: FrameIndex| {
            let byte = present.get(frame.as_usize() / 8).copied().unwrap_or(0);
            byte & (1 << (frame.0 % 8)) == 0
        };
        let mut state = policy.state.lock();
        let State { policy: kept, plan } = &mut *state;
        let mut inner = kept.take().ok_or_else(|| {
            Failure::new(Status::InvalidState, "the policy has panicked in an earlier call")
        })?;
        let fault = Fault { frame, access, in_flight: false };
        let mut planner = plan.begin(&is_absent, Some(frame));
        planner.limit(others);
        inner.fault(&fault, &mut planner);
        *kept = Some(inner);
        let own = match plan.answer() {
            Answer::Fetch => Action::Fetch,
            Answer::Zero => Action::Zero,
        };
        let fetched = plan.fetch().iter().map(|frame| (*frame, Action::Fetch));
        let zeroed = plan.zero().iter().map(|frame| (*frame, Action::Zero));
        let layout = policy.locality.layout();
        let planned = std::iter::once((frame, own)).chain(fetched).chain(zeroed);
        let planned = planned.filter_map(|(frame, action)| Some((layout.gfn_of(frame)?, action)));
        let mut written = 0;
        for (slot, (gfn, action)) in room.iter_mut().zip(planned) {
            slot.write(PlannedFrame { gfn: gfn.0, action });
            written += 1;
        }
        count.write(written);
        Ok(())
    })
}

/// Frees a policy. Null is allowed.
///
/// # Safety
/// `policy` is null or from `kaleidoscope_policy_new`, no other call uses it, and none will.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kaleidoscope_policy_free(policy: *mut Policy) {
    call(|| {
        // SAFETY: the caller promises that it is null, or a policy that is freed here only.
        unsafe { pointers::free(policy) };
        Ok(())
    });
}
