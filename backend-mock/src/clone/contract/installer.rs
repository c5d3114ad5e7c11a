//! Contract tests for page installers.

use super::super::pattern::Pattern;
use super::{Broken, Check, CloseOnDrop, ContractTarget, Make, TIMEOUT, ensure, next_event};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, Eviction, Installed, PageInstaller};
use kaleidoscope_core::memory::{Page, ZERO_PAGE};
use kaleidoscope_core::prefetch::Access;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Frames of each memory under test.
const FRAMES: u32 = 64;

const PATTERN: Pattern = Pattern::new(0x0b5e_55ed);

/// Checks all requirements of [`PageInstaller`], each on a new memory.
///
/// # Errors
/// [`Broken`] describes the first violated requirement.
pub fn installer<S: ContractTarget>(make: &Make<'_, S>) -> Result<(), Broken> {
    let suite: [(&str, Check<S>); 10] = [
        ("bytes", bytes_are_installed),
        ("zeros", zeros_are_installed),
        ("run", runs_are_installed),
        ("twice", bytes_are_never_overwritten),
        ("waiters", every_waiter_wakes),
        ("partial", pages_appear_at_once),
        ("outside", frames_outside_are_refused),
        ("evict", only_untouched_frames_are_evicted),
        ("given back", frames_are_given_back),
        ("wake", waking_changes_nothing),
    ];
    for (name, check) in suite {
        let target = make(FRAMES).map_err(|e| Broken::new("a memory can be created", e))?;
        let _closing = CloseOnDrop(&target);
        check(&target)
            .map_err(|broken| Broken { what: format!("{} ({name})", broken.what), ..broken })?;
    }
    Ok(())
}

fn read<S: ContractTarget>(target: &S, frame: FrameIndex) -> Result<Page, Broken> {
    let mut page = ZERO_PAGE;
    let read = target.read(frame, 0, &mut page);
    read.map(|()| page).map_err(|error| Broken::new("a filled frame can be read", error))
}

fn check_bytes<S: ContractTarget>(
    target: &S,
    frame: FrameIndex,
    promise: &'static str,
) -> Result<(), Broken> {
    let page = read(target, frame)?;
    PATTERN.verify(frame, 0, 0, &page).map_err(|error| Broken::new(promise, error))
}

/// Fills a frame with a page, or with zeros.
fn fill(
    installer: &dyn PageInstaller,
    frame: FrameIndex,
    page: Option<&Page>,
) -> Result<Installed, Broken> {
    let filled = match page {
        Some(page) => installer.install(frame, page),
        None => installer.zero(frame),
    };
    filled.map_err(|error| Broken::new("a frame of the memory can be filled", error))
}

fn bytes_are_installed<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "an installed frame holds the page's bytes";
    for frame in (0..FRAMES).step_by(7).map(FrameIndex) {
        let filled = fill(target.installer(), frame, Some(&PATTERN.page(frame, 0)))?;
        ensure!(filled == Installed::Installed, PROMISE, "frame {frame}: {filled:?}");
    }
    for frame in (0..FRAMES).step_by(7).map(FrameIndex) {
        check_bytes(target, frame, PROMISE)?;
    }
    no_event(target, "a touch of a filled frame is no fault")
}

fn no_event<S: ContractTarget>(target: &S, promise: &'static str) -> Result<(), Broken> {
    let event = target.queue().read().map_err(|error| Broken::new(promise, error))?;
    ensure!(event.is_none(), promise, "{event:?}");
    Ok(())
}

fn zeros_are_installed<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a frame filled with zeros reads as zeros";
    let installer = target.installer();
    ensure!(fill(installer, FrameIndex(3), None)? == Installed::Installed, PROMISE, "frame 3");
    fill(installer, FrameIndex(12), Some(&PATTERN.page(FrameIndex(12), 0)))
        .map(|filled| filled == Installed::Installed)?;
    let filled = installer.zero_run(10..20).map_err(|error| Broken::new(PROMISE, error))?;
    ensure!(filled <= 10, "zero_run fills what it is told to", "{filled} of 10 frames");
    for frame in (10..10 + filled).chain([3]).map(FrameIndex) {
        if frame == FrameIndex(12) {
            check_bytes(target, frame, "zeros never overwrite bytes")?;
        } else {
            ensure!(read(target, frame)? == ZERO_PAGE, PROMISE, "frame {frame}");
        }
    }
    no_event(target, "a touch of a filled frame is no fault")
}

fn runs_are_installed<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "the first frames of a run hold their bytes, as many as it says";
    let installer = target.installer();
    // A frame in the middle that has bytes already.
    let before = PATTERN.page(FrameIndex(25), 0);
    ensure!(
        fill(installer, FrameIndex(25), Some(&before))? == Installed::Installed,
        PROMISE,
        "frame 25"
    );
    target
        .write(FrameIndex(25), 8, b"own")
        .map_err(|error| Broken::new("a filled frame can be written", error))?;
    let own = read(target, FrameIndex(25))?;
    let pages: Vec<Page> = (20..30).map(|frame| PATTERN.page(FrameIndex(frame), 0)).collect();
    let filled = installer.install_run(FrameIndex(20), &pages);
    let filled = filled.map_err(|error| Broken::new(PROMISE, error))?;
    ensure!(filled <= 10, PROMISE, "{filled} of 10 frames");
    for frame in (20..20 + filled).map(FrameIndex) {
        if frame == FrameIndex(25) {
            ensure!(read(target, frame)? == own, "a frame that has bytes keeps them", "{frame}");
        } else {
            check_bytes(target, frame, PROMISE)?;
        }
    }
    let filled = installer.install_run(FrameIndex(FRAMES - 1), &pages[..1]);
    ensure!(filled.map_err(|error| Broken::new(PROMISE, error))? <= 1, PROMISE, "the last frame");
    let filled = installer.install_run(FrameIndex(3), &[]);
    ensure!(filled.is_ok_and(|filled| filled == 0), PROMISE, "an empty run");
    no_event(target, "a touch of a filled frame is no fault")
}

fn bytes_are_never_overwritten<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a frame that has bytes keeps them";
    let (installer, frame) = (target.installer(), FrameIndex(5));
    let page = PATTERN.page(frame, 0);
    ensure!(fill(installer, frame, Some(&page))? == Installed::Installed, PROMISE, "first");
    let written = target.write(frame, 100, b"the clone's own");
    written.map_err(|error| Broken::new("a filled frame can be written", error))?;
    for again in [Some(&page), Some(&ZERO_PAGE), None] {
        let filled = fill(installer, frame, again)?;
        ensure!(filled == Installed::AlreadyPresent, PROMISE, "{filled:?}");
    }
    let mut expected = page;
    if let Some(target) = expected.get_mut(100..115) {
        target.copy_from_slice(b"the clone's own");
    }
    ensure!(read(target, frame)? == expected, PROMISE, "frame {frame} has other bytes now");
    Ok(())
}

fn every_waiter_wakes<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "filling a frame wakes all its waiters";
    const VCPUS: usize = 6;
    std::thread::scope(|scope| {
        // On a failure, the vCPUs must not wait forever.
        let _closing = CloseOnDrop(target);
        for frame in (0..16).map(FrameIndex) {
            let with_zeros = frame.0.is_multiple_of(2);
            let vcpus: Vec<_> =
                (0..VCPUS).map(|_| scope.spawn(move || read(target, frame))).collect();
            // Some vCPUs wait by now, others do not yet; all must complete.
            match next_event(target.queue(), PROMISE)? {
                Event::Fault { frame: reported, .. } => {
                    ensure!(
                        reported == frame,
                        "a fault names its frame",
                        "{reported}, not {frame}"
                    );
                }
                other @ (Event::Removed(_) | Event::Closed) => {
                    return Err(Broken::new(PROMISE, format_args!("{other:?}")));
                }
            }
            let page = PATTERN.page(frame, 0);
            let filled = fill(target.installer(), frame, (!with_zeros).then_some(&page))?;
            ensure!(filled == Installed::Installed, PROMISE, "{filled:?}");
            let end = Instant::now() + TIMEOUT;
            while vcpus.iter().any(|vcpu| !vcpu.is_finished()) {
                ensure!(Instant::now() < end, PROMISE, "a vCPU still waits for frame {frame}");
                std::thread::yield_now();
            }
            let expected = if with_zeros { ZERO_PAGE } else { page };
            for vcpu in vcpus {
                let seen = vcpu.join().map_err(|_| Broken::new(PROMISE, "a vCPU panicked"))??;
                ensure!(seen == expected, PROMISE, "frame {frame}: not the installed page");
            }
            // Drain the other vCPUs' faults, which were reported before the wake-up.
            while target.queue().read().is_ok_and(|event| event.is_some()) {}
        }
        Ok(())
    })
}

fn pages_appear_at_once<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a vCPU sees all of a page or none of it";
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _closing = CloseOnDrop(target);
        let is_over = &is_over;
        let vcpu = scope.spawn(move || {
            let result = (0..FRAMES).map(FrameIndex).try_for_each(|frame| {
                // The end of a page becomes visible last if bytes are copied one by one.
                let mut end = [0; 16];
                let read = target.read(frame, 4080, &mut end);
                read.map_err(|error| Broken::new(PROMISE, error))?;
                let verified = PATTERN.verify(frame, 0, 4080, &end);
                verified.map_err(|error| Broken::new(PROMISE, error))
            });
            is_over.store(true, Ordering::Release);
            result
        });
        let end = Instant::now() + TIMEOUT;
        for frame in (0..FRAMES).map(FrameIndex) {
            // Half of the frames are filled while the vCPU waits, half just before or after its
            // touch.
            if frame.0.is_multiple_of(2) {
                let is_reported = || target.queue().read().is_ok_and(|event| event.is_some());
                while !is_reported() && !is_over.load(Ordering::Acquire) {
                    ensure!(Instant::now() < end, PROMISE, "no fault on frame {frame}");
                    std::thread::yield_now();
                }
            }
            let _ = fill(target.installer(), frame, Some(&PATTERN.page(frame, 0)))?;
        }
        vcpu.join().map_err(|_| Broken::new(PROMISE, "the vCPU panicked"))?
    })
}

fn frames_outside_are_refused<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a frame outside the memory is an error";
    let installer = target.installer();
    for frame in [FRAMES, FRAMES + 1, u32::MAX].map(FrameIndex) {
        ensure!(installer.install(frame, &ZERO_PAGE).is_err(), PROMISE, "installing frame {frame}");
        ensure!(installer.zero(frame).is_err(), PROMISE, "zeroing frame {frame}");
        let taken = installer.evict(frame);
        let is_refused = matches!(taken, Err(_) | Ok(Eviction::Unsupported));
        ensure!(is_refused, PROMISE, "evicting frame {frame}");
    }
    Ok(())
}

fn only_untouched_frames_are_evicted<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "only untouched frames are evicted";
    let installer = target.installer();
    let [untouched, read_, written] = [1, 2, 3].map(FrameIndex);
    for frame in [untouched, read_, written] {
        let filled = fill(installer, frame, Some(&PATTERN.page(frame, 0)))?;
        ensure!(filled == Installed::Installed, PROMISE, "{filled:?}");
    }
    check_bytes(target, read_, PROMISE)?;
    target.write(written, 0, &[1]).map_err(|error| Broken::new(PROMISE, error))?;
    let take = |frame| installer.evict(frame).map_err(|error| Broken::new(PROMISE, error));
    if take(untouched)? == Eviction::Unsupported {
        return Ok(());
    }
    for frame in [read_, written] {
        let taken = take(frame)?;
        ensure!(taken != Eviction::Evicted, PROMISE, "frame {frame} was in use");
    }
    check_bytes(target, read_, PROMISE)?;
    faults_and_reads(target, untouched, Some(&PATTERN.page(untouched, 0)))
}

/// Checks that a touch of the frame faults, and that the vCPU reads the page filled then.
fn faults_and_reads<S: ContractTarget>(
    target: &S,
    frame: FrameIndex,
    page: Option<&Page>,
) -> Result<(), Broken> {
    const PROMISE: &str = "a touch of an emptied frame is a fault";
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(move || read(target, frame));
        let event = next_event(target.queue(), PROMISE);
        let is_right = matches!(&event, Ok(Event::Fault { frame: f, access: _ }) if *f == frame);
        let filled = fill(target.installer(), frame, page);
        if !is_right || filled.is_err() {
            target.close();
        }
        let seen = vcpu.join().map_err(|_| Broken::new(PROMISE, "the vCPU panicked"))?;
        ensure!(is_right, PROMISE, "{:?}", event?);
        ensure!(filled? == Installed::Installed, PROMISE, "frame {frame} had bytes");
        let expected = page.unwrap_or(&ZERO_PAGE);
        ensure!(seen? == *expected, PROMISE, "frame {frame}: not the installed page");
        Ok(())
    })
}

fn frames_are_given_back<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "frames that are given back are reported, and then empty";
    let installer = target.installer();
    let gone = FrameIndex(9);
    let filled = fill(installer, gone, Some(&PATTERN.page(gone, 0)))?;
    ensure!(filled == Installed::Installed, PROMISE, "{filled:?}");
    check_bytes(target, gone, PROMISE)?;
    let is_supported = std::thread::scope(|scope| {
        let balloon = scope.spawn(|| target.give_back(8..11));
        let end = Instant::now() + TIMEOUT;
        let result = loop {
            let event = target.queue().read().map_err(|error| Broken::new(PROMISE, error));
            match event {
                Ok(Some(Event::Removed(Range { start: 8, end: 11 }))) => break Ok(()),
                Ok(None) if balloon.is_finished() => break Ok(()),
                Ok(None) if Instant::now() < end => std::thread::yield_now(),
                Ok(None) => break Err(Broken::new(PROMISE, "nothing is reported")),
                Ok(Some(other)) => break Err(Broken::new(PROMISE, format_args!("{other:?}"))),
                Err(error) => break Err(error),
            }
        };
        if result.is_err() {
            target.close();
        }
        let given = balloon.join().map_err(|_| Broken::new(PROMISE, "the balloon panicked"))?;
        result?;
        given.map_err(|error| Broken::new(PROMISE, error))
    })?;
    if !is_supported {
        return Ok(());
    }
    faults_and_reads(target, gone, None)?;
    let untouched = FrameIndex(20);
    let filled = fill(installer, untouched, Some(&PATTERN.page(untouched, 0)))?;
    ensure!(filled == Installed::Installed, "the memory can be filled afterwards", "{filled:?}");
    check_bytes(target, untouched, PROMISE)
}

fn waking_changes_nothing<S: ContractTarget>(target: &S) -> Result<(), Broken> {
    const PROMISE: &str = "waking fills no frame and loses no waiter";
    let (installer, frame) = (target.installer(), FrameIndex(4));
    installer.wake(frame).map_err(|error| Broken::new(PROMISE, error))?;
    std::thread::scope(|scope| {
        let _closing = CloseOnDrop(target);
        let vcpu = scope.spawn(move || {
            let written = target.write(frame, 0, b"woken");
            written.map_err(|error| Broken::new(PROMISE, error))
        });
        for _ in 0..3 {
            // Woken without a fill, the vCPU reports the fault again.
            let event = next_event(target.queue(), PROMISE)?;
            let is_right = match event {
                Event::Fault { frame: f, access: Access::Write | Access::Unknown } => f == frame,
                Event::Fault { .. } | Event::Removed(_) | Event::Closed => false,
            };
            ensure!(is_right, "a fault says how a frame was touched, or nothing", "{event:?}");
            installer.wake(frame).map_err(|error| Broken::new(PROMISE, error))?;
        }
        let _ = next_event(target.queue(), PROMISE)?;
        let filled = fill(installer, frame, Some(&PATTERN.page(frame, 0)))?;
        ensure!(filled == Installed::Installed, PROMISE, "{filled:?}");
        vcpu.join().map_err(|_| Broken::new(PROMISE, "the vCPU panicked"))??;
        installer.wake(frame).map_err(|error| Broken::new(PROMISE, error))?;
        let page = read(target, frame)?;
        ensure!(page.starts_with(b"woken"), PROMISE, "the write is lost");
        Ok(())
    })
}
