//! Ports and policies that panic: the clone is stopped, every waiting thread gets an error, and no
//! thread waits for one that has ended.

use super::*;
use crate::clone::ports::{Event, Eviction, FaultQueue};
use crate::prefetch::{Fault, Planner};
use crate::sync::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

/// The method of a port or policy that panics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TrapPoint {
    Install,
    Evict,
    Request,
    Receive,
    Fault,
    Background,
    Feedback,
    Wait,
    Read,
}

/// All ports. The method at `at` panics once the trap is armed.
struct TrappedPorts {
    at: TrapPoint,
    armed: AtomicBool,
    memory: Arc<Memory>,
    source: Arc<dyn PageSource>,
}

impl TrappedPorts {
    fn check(&self, at: TrapPoint) {
        assert!(at != self.at || !self.armed.load(Ordering::Acquire), "trapped at {at:?}");
    }
}

impl PageInstaller for TrappedPorts {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        self.check(TrapPoint::Install);
        self.memory.install(frame, page)
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        self.install(frame, &ZERO_PAGE)
    }

    fn wake(&self, _frame: FrameIndex) -> Result<(), InstallError> {
        Ok(())
    }

    fn evict(&self, _frame: FrameIndex) -> Result<Eviction, InstallError> {
        self.check(TrapPoint::Evict);
        Ok(Eviction::InUse)
    }
}

impl FaultQueue for TrappedPorts {
    fn wait(&self, wait: Duration) -> Result<(), InstallError> {
        self.check(TrapPoint::Wait);
        std::thread::sleep(wait);
        Ok(())
    }

    fn read(&self) -> Result<Option<Event>, InstallError> {
        self.check(TrapPoint::Read);
        Ok(None)
    }
}

impl PageSource for TrappedPorts {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        self.check(TrapPoint::Request);
        self.source.request(frames, priority)
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        self.check(TrapPoint::Receive);
        self.source.receive(wait, deliver)
    }
}

struct TrappedPolicy(Arc<TrappedPorts>, Blind);

impl PrefetchPolicy for TrappedPolicy {
    fn name(&self) -> &'static str {
        "trap"
    }

    fn fault(&mut self, fault: &Fault, planner: &mut Planner<'_>) {
        self.0.check(TrapPoint::Fault);
        self.1.fault(fault, planner);
    }

    fn background(&mut self, planner: &mut Planner<'_>) {
        self.0.check(TrapPoint::Background);
        self.1.background(planner);
    }

    fn feedback(&mut self, frame: FrameIndex, outcome: crate::prefetch::PrefetchOutcome) {
        self.0.check(TrapPoint::Feedback);
        self.1.feedback(frame, outcome);
    }
}

fn engine(
    at: TrapPoint,
    options: EngineOptions,
    is_armed: bool,
) -> (Arc<TrappedPorts>, Arc<Engine>) {
    let trap = Arc::new(TrappedPorts {
        at,
        armed: AtomicBool::new(is_armed),
        memory: Memory::new(),
        source: local(),
    });
    let parts = EngineParts {
        locality: guest().0,
        policy: Box::new(TrappedPolicy(Arc::clone(&trap), Blind::aligned(8))),
        source: Arc::clone(&trap) as _,
        installer: Arc::clone(&trap) as _,
        queue: Some(Arc::clone(&trap) as _),
        clock: Arc::new(SystemClock::new()),
        reservation: None,
        local_cache: None,
    };
    (trap, Arc::new(Engine::start(parts, options).unwrap()))
}

/// Result of `act`, which must end in time.
fn in_time<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let (say, said) = channel();
    std::thread::spawn(move || say.send(act()));
    said.recv_timeout(Duration::from_secs(120)).expect("it takes forever")
}

fn is_of(why: &Stopped, at: TrapPoint) -> bool {
    matches!(why, Stopped::Panicked(error) if error.message() == format!("trapped at {at:?}"))
}

#[test]
fn a_part_that_panics_stops_the_clone() {
    use TrapPoint::*;
    for at in [Install, Request, Receive, Fault, Background, Feedback, Wait, Read, Evict] {
        let feedback = if at == Feedback { super::Feedback::Staged } else { super::Feedback::Off };
        let (trap, engine) =
            engine(at, EngineOptions { feedback, ..EngineOptions::default() }, false);
        engine.fault(FrameIndex(8), Access::Read).unwrap();
        let served = Arc::clone(&engine);
        let server = std::thread::spawn(move || served.serve());
        trap.armed.store(true, Ordering::Release);
        // Faults on several threads, and a reclaim, reach every method.
        let ended = in_time({
            let engine = Arc::clone(&engine);
            move || {
                let faults = std::thread::scope(|scope| {
                    let touch = |first: u32| {
                        let engine = &engine;
                        move || {
                            (first..FRAMES)
                                .step_by(3)
                                .try_for_each(|n| engine.fault(FrameIndex(n), Access::Write))
                        }
                    };
                    [0, 1, 2].map(|first| scope.spawn(touch(first))).map(|t| t.join().unwrap())
                });
                let reclaimed = engine.reclaim(1).map(drop);
                faults.into_iter().chain([reclaimed]).find_map(Result::err)
            }
        });
        let served = in_time(move || server.join().unwrap());
        let why = served.unwrap_err();
        assert!(is_of(&why, at), "{at:?}: {why:?}");
        assert!(ended.is_none_or(|why| is_of(&why, at)));
        assert!(is_of(&engine.stopped().unwrap(), at));
        assert!(is_of(&engine.fault(FrameIndex(699), Access::Read).unwrap_err(), at));
        in_time(move || drop((engine, trap)));
    }
}

#[test]
fn a_panic_on_the_streaming_thread_stops_the_clone() {
    for at in [TrapPoint::Install, TrapPoint::Request, TrapPoint::Receive, TrapPoint::Background] {
        // There are no faults: only the streaming thread reaches the trap.
        let options = EngineOptions { background: Background::Full, ..EngineOptions::default() };
        let (trap, engine) = engine(at, options, true);
        let watched = Arc::clone(&engine);
        let why = in_time(move || {
            loop {
                match watched.stopped() {
                    Some(why) => break why,
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        assert!(is_of(&why, at), "{at:?}: {why:?}");
        in_time(move || drop((engine, trap)));
    }
}
