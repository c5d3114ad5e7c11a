//! Contract tests for fault queues.

use super::{Broken, Check, CloseOnDrop, ContractTarget, Make, ensure, next_event, soon};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, Installed};
use kaleidoscope_core::memory::ZERO_PAGE;
use kaleidoscope_core::prefetch::Access;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Frames of each memory under test.
const FRAMES: u32 = 256;

/// Checks all requirements of [`FaultQueue`](kaleidoscope_core::clone::ports::FaultQueue), each on
/// a new memory.
///
/// # Errors
/// [`Broken`] describes the first violated requirement.
pub fn fault_queue<S: ContractTarget>(make: &Make<'_, S>) -> Result<(), Broken> {
    let suite: [Check<S>; 4] = [
        an_empty_queue_is_empty,
        faults_are_reported,
        many_threads_share_a_queue,
        closing_ends_all,
    ];
    for check in suite {
        let target = make(FRAMES).map_err(|e| Broken::new("a memory can be created", e))?;
        let _closing = CloseOnDrop(&target);
        check(&target)?;
    }
    Ok(())
}

fn an_empty_queue_is_empty<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "nothing is read from an empty queue, and waiting ends";
    for wait in [Duration::ZERO, Duration::from_millis(5)] {
        let event = target.queue().read().map_err(|error| Broken::new(PROMISE, error))?;
        ensure!(event.is_none(), PROMISE, "{event:?}");
        target.queue().wait(wait).map_err(|error| Broken::new(PROMISE, error))?;
    }
    Ok(())
}

fn faults_are_reported<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a fault is reported with its frame, and how it was touched";
    std::thread::scope(|scope| {
        let _closing = CloseOnDrop(target);
        for (frame, access) in [(7, Access::Read), (255, Access::Write), (0, Access::Read)] {
            let frame = FrameIndex(frame);
            let vcpu = scope.spawn(move || match access {
                Access::Write => target.write(frame, 4095, &[1]),
                Access::Read | Access::Unknown => target.read(frame, 4095, &mut [0]),
            });
            let event = next_event(target.queue(), PROMISE)?;
            let is_right = match event {
                Event::Fault { frame: f, access: Access::Unknown } => f == frame,
                Event::Fault { frame: f, access: a } => (f, a) == (frame, access),
                Event::Removed(_) | Event::Closed => false,
            };
            ensure!(is_right, PROMISE, "{event:?} for frame {frame}, {access:?}");
            ensure!(!vcpu.is_finished(), "a vCPU waits for its frame", "frame {frame}");
            let filled = target.installer().install(frame, &ZERO_PAGE);
            ensure!(matches!(filled, Ok(Installed::Installed)), PROMISE, "{filled:?}");
            let ended = vcpu.join().map_err(|_| Broken::new(PROMISE, "the vCPU panicked"))?;
            ended.map_err(|error| Broken::new(PROMISE, error))?;
        }
        Ok(())
    })
}

fn many_threads_share_a_queue<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "each event goes to exactly one of many readers";
    const VCPUS: u32 = 4;
    let (is_over, filled_twice) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failure: Mutex<Option<String>> = Mutex::new(None);
    let fail = |what: String| {
        if let Ok(mut failure) = failure.lock() {
            failure.get_or_insert(what);
        }
        target.close();
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Acquire) {
                    let waited = target.queue().wait(Duration::from_millis(20));
                    match waited.and_then(|()| target.queue().read()) {
                        Ok(Some(Event::Fault { frame, .. })) => {
                            match target.installer().zero(frame) {
                                Ok(Installed::Installed) => {}
                                // Each frame is touched by one vCPU only.
                                Ok(Installed::AlreadyPresent | Installed::TryAgain) => {
                                    filled_twice.fetch_add(1, Ordering::AcqRel);
                                }
                                Err(error) => fail(error.to_string()),
                            }
                        }
                        Ok(None) => {}
                        Ok(Some(Event::Closed)) => return,
                        Ok(Some(other @ Event::Removed(_))) => fail(format!("{other:?}")),
                        Err(error) => fail(error.to_string()),
                    }
                }
            });
        }
        let vcpus: Vec<_> = (0..VCPUS)
            .map(|vcpu| {
                scope.spawn(move || {
                    let mut frames = (vcpu..FRAMES).step_by(VCPUS as usize).map(FrameIndex);
                    frames.try_for_each(|frame| target.read(frame, 0, &mut [0; 8]))
                })
            })
            .collect();
        if !soon(|| vcpus.iter().all(std::thread::ScopedJoinHandle::is_finished)) {
            fail("a vCPU still waits".to_owned());
        }
        for vcpu in vcpus {
            match vcpu.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => fail(error.to_string()),
                Err(_) => fail("a vCPU panicked".to_owned()),
            }
        }
        is_over.store(true, Ordering::Release);
    });
    if let Ok(Some(what)) = failure.into_inner() {
        return Err(Broken::new(PROMISE, what));
    }
    let twice = filled_twice.into_inner();
    ensure!(twice == 0, PROMISE, "{twice} events came twice");
    Ok(())
}

fn closing_ends_all<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "closing ends all readers and all vCPUs";
    std::thread::scope(|scope| {
        let _closing = CloseOnDrop(target);
        let vcpu = scope.spawn(|| target.read(FrameIndex(1), 0, &mut [0]).is_err());
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        match next_event(target.queue(), PROMISE)? {
                            Event::Closed => return Ok(()),
                            Event::Fault { .. } | Event::Removed(_) => {}
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(5));
        target.close();
        for reader in readers {
            reader.join().map_err(|_| Broken::new(PROMISE, "a reader panicked"))??;
        }
        let has_failed = vcpu.join().map_err(|_| Broken::new(PROMISE, "the vCPU panicked"))?;
        ensure!(has_failed, PROMISE, "a vCPU read a frame that was never filled");
        Ok(())
    })
}
