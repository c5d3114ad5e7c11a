//! What every fault queue promises.

use super::{Broken, Check, Closing, ContractTarget, Make, ensure, next_event, soon};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, Installed};
use kaleidoscope_core::memory::ZERO_PAGE;
use kaleidoscope_core::prefetch::Access;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Frames of each subject.
const FRAMES: u32 = 256;

/// Checks every promise of [`FaultQueue`](kaleidoscope_core::clone::ports::FaultQueue) on fresh
/// subjects.
///
/// # Errors
/// [`Broken`] names the first promise that is not kept.
pub fn fault_queue<S: ContractTarget>(make: &Make<'_, S>) -> Result<(), Broken> {
    let suite: [Check<S>; 4] = [
        an_empty_queue_is_empty,
        faults_are_reported,
        many_threads_share_a_queue,
        closing_ends_all,
    ];
    for check in suite {
        let subject = make(FRAMES).map_err(|e| Broken::new("a subject can be made", e))?;
        let _closing = Closing(&subject);
        check(&subject)?;
    }
    Ok(())
}

fn an_empty_queue_is_empty<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "nothing is read from an empty queue, and waiting ends";
    for wait in [Duration::ZERO, Duration::from_millis(5)] {
        let event = subject.queue().read().map_err(|error| Broken::new(PROMISE, error))?;
        ensure!(event.is_none(), PROMISE, "{event:?}");
        subject.queue().wait(wait).map_err(|error| Broken::new(PROMISE, error))?;
    }
    Ok(())
}

fn faults_are_reported<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a fault is reported with its frame, and how it was touched";
    std::thread::scope(|scope| {
        let _closing = Closing(subject);
        for (frame, access) in [(7, Access::Read), (255, Access::Write), (0, Access::Read)] {
            let frame = FrameIndex(frame);
            let vcpu = scope.spawn(move || match access {
                Access::Write => subject.write(frame, 4095, &[1]),
                Access::Read | Access::Unknown => subject.read(frame, 4095, &mut [0]),
            });
            let event = next_event(subject.queue(), PROMISE)?;
            let is_right = match event {
                Event::Fault { frame: f, access: Access::Unknown } => f == frame,
                Event::Fault { frame: f, access: a } => (f, a) == (frame, access),
                Event::Removed(_) | Event::Closed => false,
            };
            ensure!(is_right, PROMISE, "{event:?} for frame {frame}, {access:?}");
            ensure!(!vcpu.is_finished(), "a vCPU waits for its frame", "frame {frame}");
            let placed = subject.installer().install(frame, &ZERO_PAGE);
            ensure!(matches!(placed, Ok(Installed::Installed)), PROMISE, "{placed:?}");
            let ended = vcpu.join().map_err(|_| Broken::new(PROMISE, "the vCPU panicked"))?;
            ended.map_err(|error| Broken::new(PROMISE, error))?;
        }
        Ok(())
    })
}

fn many_threads_share_a_queue<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "of many readers one gets each event, and none is lost";
    const VCPUS: u32 = 4;
    let (is_over, placed_twice) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failure: Mutex<Option<String>> = Mutex::new(None);
    let fail = |what: String| {
        if let Ok(mut failure) = failure.lock() {
            failure.get_or_insert(what);
        }
        subject.close();
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Acquire) {
                    let waited = subject.queue().wait(Duration::from_millis(20));
                    match waited.and_then(|()| subject.queue().read()) {
                        Ok(Some(Event::Fault { frame, .. })) => {
                            match subject.installer().zero(frame) {
                                Ok(Installed::Installed) => {}
                                // No vCPU shares a frame with another one.
                                Ok(Installed::AlreadyPresent | Installed::TryAgain) => {
                                    placed_twice.fetch_add(1, Ordering::AcqRel);
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
                    frames.try_for_each(|frame| subject.read(frame, 0, &mut [0; 8]))
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
    let twice = placed_twice.into_inner();
    ensure!(twice == 0, PROMISE, "{twice} events came twice");
    Ok(())
}

fn closing_ends_all<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "when the clone ends, every reader is told, and every vCPU ends";
    std::thread::scope(|scope| {
        let _closing = Closing(subject);
        let vcpu = scope.spawn(|| subject.read(FrameIndex(1), 0, &mut [0]).is_err());
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        match next_event(subject.queue(), PROMISE)? {
                            Event::Closed => return Ok(()),
                            Event::Fault { .. } | Event::Removed(_) => {}
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(5));
        subject.close();
        for reader in readers {
            reader.join().map_err(|_| Broken::new(PROMISE, "a reader panicked"))??;
        }
        let has_failed = vcpu.join().map_err(|_| Broken::new(PROMISE, "the vCPU panicked"))?;
        ensure!(has_failed, PROMISE, "a vCPU got bytes that nobody placed");
        Ok(())
    })
}
