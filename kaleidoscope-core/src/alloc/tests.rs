//! Reservations and hosts against a naive model, on one thread and on many.

use super::*;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Levels that a callback received, in order.
type Notifications = Arc<Mutex<Vec<Pressure>>>;

fn listen(reservation: &Reservation) -> Notifications {
    let notified = Notifications::default();
    let to = Arc::clone(&notified);
    reservation.on_pressure(Box::new(move |level| to.lock().push(level)));
    notified
}

fn host(frames: u64) -> Arc<Host> {
    Host::new(HostLimits::for_frames(frames))
}

/// Whether a level is possible at an amount, with hysteresis down to 1/32 below its mark.
fn fits(level: Pressure, amount: u64, marks: [u64; 3]) -> bool {
    let number = usize::from(level as u8);
    let low = number.checked_sub(1).map_or(0, |below| marks[below] - marks[below] / 32);
    let high = marks[number..].iter().copied().min().unwrap_or(u64::MAX);
    amount >= low && amount < high
}

#[test]
fn chunks_are_drawn_and_returned() {
    let host = host(1 << 20);
    let reservation = host.admit(CloneLimits::unlimited()).unwrap();
    assert_eq!((reservation.granted(), host.granted()), (0, 0));
    reservation.take_for_fault(1);
    assert_eq!((reservation.used(), reservation.granted(), host.granted()), (1, 512, 512));
    assert_eq!(reservation.take_for_prefetch(511), 511);
    assert_eq!(host.granted(), 512);
    assert_eq!(reservation.take_for_prefetch(513), 513);
    assert_eq!((reservation.used(), reservation.granted()), (1025, 1536));
    reservation.give_back(600);
    assert_eq!(reservation.granted(), 1024, "one spare chunk is kept, the other goes back");
    reservation.give_back(u32::MAX);
    assert_eq!((reservation.used(), reservation.granted(), host.granted()), (0, 512, 512));
    drop(reservation);
    let end = HostStatistics { peak: 1536, ..HostStatistics::default() };
    assert_eq!(host.statistics(), end);
}

#[test]
fn pressure_rises_in_steps_and_faults_go_on() {
    let host = host(64 * 512);
    let reservation = host.admit(CloneLimits::unlimited()).unwrap();
    let other = host.admit(CloneLimits::unlimited()).unwrap();
    let (notified, told_other) = (listen(&reservation), listen(&other));
    // Prefetch reaches the first mark in one call, then only the spare frames of the clone's
    // chunks.
    assert_eq!(reservation.take_for_prefetch(48 * 512 - 10), 48 * 512 - 10);
    assert_eq!(
        (host.pressure(), other.pressure()),
        (Pressure::ShrinkPrefetch, Pressure::ShrinkPrefetch)
    );
    assert_eq!(reservation.take_for_prefetch(100), 10, "what its last chunk holds");
    assert_eq!(other.take_for_prefetch(100), 0, "it holds nothing");
    // Faults continue past reclaim, past refusal, and beyond the limit.
    other.take_for_fault(8 * 512);
    assert_eq!(reservation.pressure(), Pressure::Reclaim);
    assert!(host.admit(CloneLimits::unlimited()).is_ok());
    other.take_for_fault(4 * 512);
    let refused = host.admit(CloneLimits::unlimited()).unwrap_err();
    assert_eq!(refused.granted, 60 * 512);
    assert!(refused.to_string().contains("30720 of the 32768 frames"), "{refused}");
    assert_eq!(host.overdraft(), 0);
    other.take_for_fault(4 * 512 + 1);
    assert_eq!(host.overdraft(), 512);
    assert_eq!(host.statistics().refused, 1);
    drop(other);
    assert_eq!(host.pressure(), Pressure::ShrinkPrefetch, "48 chunks are at the first mark still");
    reservation.give_back(48 * 512);
    assert_eq!(host.pressure(), Pressure::None);
    use Pressure::{None, Reclaim, RefuseClones, ShrinkPrefetch};
    assert_eq!(*notified.lock(), [ShrinkPrefetch, Reclaim, RefuseClones, ShrinkPrefetch, None]);
    assert_eq!(
        *told_other.lock(),
        [ShrinkPrefetch, Reclaim, RefuseClones],
        "gone with its reservation"
    );
}

#[test]
fn the_reserve_is_left_to_faults() {
    let limits = HostLimits { reserve: 2 * 512, ..HostLimits::unlimited() };
    let host = Host::new(HostLimits { frames: 10 * 512, ..limits });
    let reservation = host.admit(CloneLimits::unlimited()).unwrap();
    assert_eq!(reservation.take_for_prefetch(u32::MAX), 8 * 512);
    assert_eq!(reservation.take_for_prefetch(1), 0);
    reservation.take_for_fault(2 * 512);
    assert_eq!((host.granted(), host.overdraft()), (10 * 512, 0));
}

#[test]
fn a_clone_has_limits_of_its_own() {
    let host = host(1 << 20);
    let reservation = host.admit(CloneLimits::for_frames(1600)).unwrap();
    let notified = listen(&reservation);
    let other = host.admit(CloneLimits::unlimited()).unwrap();
    assert_eq!(reservation.take_for_prefetch(1199), 1199);
    assert_eq!(reservation.pressure(), Pressure::None);
    assert_eq!(reservation.take_for_prefetch(1), 1);
    assert_eq!(reservation.pressure(), Pressure::ShrinkPrefetch);
    assert_eq!(reservation.take_for_prefetch(1000), 336, "what three chunks hold");
    assert_eq!(reservation.take_for_prefetch(1000), 0);
    assert_eq!(reservation.pressure(), Pressure::Reclaim);
    reservation.take_for_fault(100);
    assert_eq!((reservation.overdraft(), other.pressure()), (36, Pressure::None));
    reservation.give_back(1636);
    assert_eq!(reservation.pressure(), Pressure::None);
    use Pressure::{None, Reclaim, ShrinkPrefetch};
    assert_eq!(*notified.lock(), [ShrinkPrefetch, Reclaim, None]);
}

#[test]
fn spare_chunks_return_when_others_need_them() {
    let host = host(64 * 512);
    let idle = host.admit(CloneLimits::unlimited()).unwrap();
    idle.take_for_fault(512);
    idle.give_back(512);
    assert_eq!(idle.granted(), 512, "kept for the next frames");
    let busy = host.admit(CloneLimits::unlimited()).unwrap();
    busy.take_for_fault(55 * 512);
    assert_eq!(host.pressure(), Pressure::Reclaim);
    assert_eq!((idle.granted(), host.granted()), (0, 55 * 512));
    idle.take_for_fault(512);
    idle.give_back(512);
    assert_eq!(idle.granted(), 0, "not kept under pressure");
}

/// A callback that returns frames changes the level, and so is queued again: no deadlock and no
/// recursion.
#[test]
fn a_callback_may_give_back() {
    let host = host(64 * 512);
    let reservations: Vec<_> =
        (0..8).map(|_| Arc::new(host.admit(CloneLimits::unlimited()).unwrap())).collect();
    let notified = Notifications::default();
    for reservation in &reservations {
        let (own, notified) = (Arc::downgrade(reservation), Arc::clone(&notified));
        reservation.on_pressure(Box::new(move |level| {
            notified.lock().push(level);
            if let Some(own) = own.upgrade().filter(|_| level >= Pressure::Reclaim) {
                own.give_back(4 * 512);
            }
        }));
    }
    for reservation in &reservations {
        reservation.take_for_fault(8 * 512);
    }
    assert!(notified.lock().contains(&Pressure::Reclaim));
    assert!(host.granted() < 56 * 512, "{}", host.granted());
    drop(reservations);
    assert_eq!((host.granted(), host.used()), (0, 0));
}

#[test]
fn a_new_listener_is_called_with_the_current_level() {
    let host = Host::new(HostLimits { shrink_prefetch_at: 0, ..HostLimits::unlimited() });
    let reservation = host.admit(CloneLimits::unlimited()).unwrap();
    assert_eq!(*listen(&reservation).lock(), [Pressure::ShrinkPrefetch]);
}

/// A callback that panics ends its thread; other listeners are still notified.
#[test]
fn a_panic_in_a_callback_affects_only_its_thread() {
    let host = host(64 * 512);
    let bad = host.admit(CloneLimits::unlimited()).unwrap();
    bad.on_pressure(Box::new(|_| panic!("on purpose")));
    let good = host.admit(CloneLimits::unlimited()).unwrap();
    let notified = listen(&good);
    let result = std::thread::scope(|scope| scope.spawn(|| bad.take_for_fault(50 * 512)).join());
    assert!(result.is_err());
    drop(bad);
    good.take_for_fault(60 * 512);
    assert_eq!(notified.lock().last(), Some(&Pressure::RefuseClones));
}

#[test]
fn more_than_a_clone_can_have_is_not_counted() {
    let host = Host::new(HostLimits::unlimited());
    let reservation = host.admit(CloneLimits::unlimited()).unwrap();
    for _ in 0..100 {
        reservation.take_for_fault(u32::MAX);
    }
    assert!(reservation.used() < 5 << 32 && reservation.used() <= reservation.granted());
    assert_eq!(reservation.granted(), host.granted());
    drop(reservation);
    assert_eq!(host.granted(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Admit { frames: u64 },
    Fault { clone: usize, frames: u32 },
    Prefetch { clone: usize, frames: u32 },
    GiveBack { clone: usize, frames: u32 },
    Drop { clone: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let clone = any::<usize>;
    prop_oneof![
        1 => (0u64..6000).prop_map(|frames| Step::Admit { frames }),
        4 => (clone(), 0u32..1200).prop_map(|(clone, frames)| Step::Fault { clone, frames }),
        6 => (clone(), 0u32..3000).prop_map(|(clone, frames)| Step::Prefetch { clone, frames }),
        6 => (clone(), 0u32..3000).prop_map(|(clone, frames)| Step::GiveBack { clone, frames }),
        1 => clone().prop_map(|clone| Step::Drop { clone }),
    ]
}

/// The naive model of a clone: its used frames.
struct Model {
    reservation: Reservation,
    notified: Notifications,
    used: u64,
}

proptest! {
    #[test]
    fn accounts_agree_with_a_naive_model(
        chunks in 4u64..64,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let limits = HostLimits::for_frames(chunks * 512);
        let marks = [limits.shrink_prefetch_at, limits.reclaim_at, limits.refuse_clones_at];
        let host = Host::new(limits);
        let mut clones: Vec<Model> = Vec::new();
        for step in steps {
            let before = host.statistics();
            let mut is_fault = false;
            match step {
                Step::Admit { frames } => match host.admit(CloneLimits::for_frames(frames)) {
                    Ok(reservation) => {
                        prop_assert!(before.pressure < Pressure::RefuseClones);
                        clones.push(Model { notified: listen(&reservation), reservation, used: 0 });
                    }
                    Err(refused) => {
                        prop_assert_eq!(before.pressure, Pressure::RefuseClones);
                        prop_assert_eq!(refused.granted, before.granted);
                    }
                },
                Step::Fault { clone, frames } if !clones.is_empty() => {
                    is_fault = true;
                    let at = clone % clones.len();
                    clones[at].reservation.take_for_fault(frames);
                    clones[at].used += u64::from(frames);
                }
                Step::Prefetch { clone, frames } if !clones.is_empty() => {
                    let at = clone % clones.len();
                    let (level, spare) = {
                        let reservation = &clones[at].reservation;
                        (reservation.pressure(), reservation.granted() - reservation.used())
                    };
                    let taken = clones[at].reservation.take_for_prefetch(frames);
                    clones[at].used += taken;
                    let limit = clones[at].reservation.limits().frames;
                    let left = limit.saturating_sub(clones[at].used - taken);
                    prop_assert!(taken <= left && taken <= u64::from(frames));
                    match level {
                        Pressure::None => {
                            let most = limits.frames - limits.reserve;
                            let room = most.saturating_sub(before.granted);
                            let most = spare + room / 512 * 512;
                            let expected = most.min(left).min(u64::from(frames));
                            // A grant that raises the pressure to reclaim takes back the clone's
                            // own spare chunk.
                            let lost = if spare >= 512 { 512 } else { 0 };
                            prop_assert!(taken <= expected && taken + lost >= expected);
                        }
                        Pressure::ShrinkPrefetch => {
                            prop_assert_eq!(taken, spare.min(left).min(u64::from(frames)));
                        }
                        Pressure::Reclaim | Pressure::RefuseClones => prop_assert_eq!(taken, 0),
                    }
                }
                Step::GiveBack { clone, frames } if !clones.is_empty() => {
                    let at = clone % clones.len();
                    clones[at].reservation.give_back(frames);
                    clones[at].used = clones[at].used.saturating_sub(u64::from(frames));
                }
                Step::Drop { clone } if !clones.is_empty() => {
                    drop(clones.swap_remove(clone % clones.len()));
                }
                Step::Fault { .. }
                | Step::Prefetch { .. }
                | Step::GiveBack { .. }
                | Step::Drop { .. } => {}
            }
            let now = host.statistics();
            prop_assert!(fits(now.pressure, now.granted, marks), "{:?} of {:?}", now, limits);
            let granted: u64 = clones.iter().map(|c| c.reservation.granted()).sum();
            prop_assert_eq!(now.granted, granted);
            prop_assert_eq!(now.used, clones.iter().map(|c| c.used).sum::<u64>());
            prop_assert_eq!(now.overdraft, now.granted.saturating_sub(limits.frames));
            if !is_fault {
                prop_assert!(now.overdraft <= before.overdraft, "only faults go beyond the limit");
            }
            for Model { reservation, notified, used } in &clones {
                prop_assert_eq!(reservation.used(), *used);
                prop_assert!(reservation.granted() % CHUNK_FRAMES == 0);
                prop_assert!(reservation.granted() >= *used);
                prop_assert!(reservation.granted() - used < 2 * CHUNK_FRAMES);
                let own = reservation.limits();
                let marks = [own.shrink_prefetch_at, own.reclaim_at, u64::MAX];
                let (level, of_host) = (reservation.pressure(), now.pressure);
                prop_assert!(level == of_host || (level > of_host && fits(level, *used, marks)));
                let notified = notified.lock();
                prop_assert!(notified.windows(2).all(|w| w[0] != w[1]));
                prop_assert_eq!(notified.last().copied().unwrap_or_default(), level);
            }
        }
        drop(clones);
        let end = host.statistics();
        prop_assert_eq!((end.clones, end.granted, end.used), (0, 0, 0));
        prop_assert_eq!(end.pressure, Pressure::None);
    }

    /// Several threads per clone, in any order: the accounts are right in the end, and all frames
    /// are returned.
    #[test]
    fn threads_do_not_lose_frames(seed: u64) {
        const CLONES: usize = 6;
        let limits = HostLimits::for_frames(24 * 512);
        let host = Host::new(limits);
        let clones: Vec<_> = (0..CLONES)
            .map(|_| {
                let reservation = host.admit(CloneLimits::for_frames(8 * 512)).unwrap();
                (listen(&reservation), AtomicU64::new(0), reservation)
            })
            .collect();
        std::thread::scope(|scope| {
            for thread in 0..CLONES * 2 {
                let (host, clones) = (&host, &clones);
                scope.spawn(move || {
                    let (_, used, reservation) = &clones[thread % CLONES];
                    let mut random = seed ^ (thread as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let mut mine = 0;
                    for _ in 0..300 {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let frames = u32::try_from(random >> 54).unwrap();
                        match random >> 40 & 3 {
                            0 => {
                                reservation.take_for_fault(frames);
                                mine += u64::from(frames);
                            }
                            1 => mine += reservation.take_for_prefetch(frames * 2),
                            2 | 3 => {
                                let back = u64::from(frames * 2).min(mine);
                                reservation.give_back(u32::try_from(back).unwrap());
                                mine -= back;
                            }
                            _ => unreachable!(),
                        }
                        assert!(host.granted() % CHUNK_FRAMES == 0);
                        // A short-lived clone.
                        if random >> 32 & 15 == 0
                            && let Ok(guest) = host.admit(CloneLimits::unlimited())
                        {
                            guest.take_for_fault(700);
                        }
                    }
                    used.fetch_add(mine, Ordering::Relaxed);
                });
            }
        });
        let total: u64 = clones.iter().map(|(_, used, _)| used.load(Ordering::Relaxed)).sum();
        prop_assert_eq!(host.used(), total);
        let granted: u64 = clones.iter().map(|(_, _, reservation)| reservation.granted()).sum();
        prop_assert_eq!(host.granted(), granted);
        let marks = [limits.shrink_prefetch_at, limits.reclaim_at, limits.refuse_clones_at];
        prop_assert!(fits(host.pressure(), host.granted(), marks));
        for (notified, used, reservation) in &clones {
            prop_assert_eq!(reservation.used(), used.load(Ordering::Relaxed));
            let last = notified.lock().last().copied().unwrap_or_default();
            prop_assert_eq!(last, reservation.pressure());
            prop_assert!(reservation.pressure() >= host.pressure());
        }
        drop(clones);
        prop_assert_eq!((host.granted(), host.used(), host.pressure()), (0, 0, Pressure::None));
    }
}
