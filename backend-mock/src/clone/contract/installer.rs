//! What every installer promises.

use super::super::pattern::Pattern;
use super::{Broken, Check, Closing, ContractTarget, Make, TIMEOUT, ensure, next_event};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Event, Eviction, Installed, PageInstaller};
use kaleidoscope_core::memory::{Page, ZERO_PAGE};
use kaleidoscope_core::prefetch::Access;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Frames of each subject.
const FRAMES: u32 = 64;

const PATTERN: Pattern = Pattern::new(0x0b5e_55ed);

/// Checks every promise of [`PageInstaller`] on fresh subjects.
///
/// # Errors
/// [`Broken`] names the first promise that is not kept.
pub fn installer<S: ContractTarget>(make: &Make<'_, S>) -> Result<(), Broken> {
    let suite: [(&str, Check<S>); 9] = [
        ("bytes", bytes_are_placed),
        ("zeros", zeros_are_placed),
        ("twice", bytes_are_never_overwritten),
        ("waiters", every_waiter_wakes),
        ("halves", nobody_sees_half_a_page),
        ("outside", frames_outside_are_refused),
        ("taken back", only_untouched_frames_are_taken_back),
        ("given back", frames_are_given_back),
        ("wake", waking_changes_nothing),
    ];
    for (name, check) in suite {
        let subject = make(FRAMES).map_err(|e| Broken::new("a subject can be made", e))?;
        let _closing = Closing(&subject);
        check(&subject)
            .map_err(|broken| Broken { what: format!("{} ({name})", broken.what), ..broken })?;
    }
    Ok(())
}

fn read<S: ContractTarget>(subject: &S, frame: FrameIndex) -> Result<Page, Broken> {
    let mut page = ZERO_PAGE;
    let read = subject.read(frame, 0, &mut page);
    read.map(|()| page).map_err(|error| Broken::new("a frame that is there can be read", error))
}

fn check_bytes<S: ContractTarget>(
    subject: &S,
    frame: FrameIndex,
    promise: &'static str,
) -> Result<(), Broken> {
    let page = read(subject, frame)?;
    PATTERN.verify(frame, 0, 0, &page).map_err(|error| Broken::new(promise, error))
}

/// Places a page; again while the memory is changing.
fn place(
    installer: &dyn PageInstaller,
    frame: FrameIndex,
    page: Option<&Page>,
) -> Result<Installed, Broken> {
    let placed = match page {
        Some(page) => installer.install(frame, page),
        None => installer.zero(frame),
    };
    placed.map_err(|error| Broken::new("a frame of the memory can be filled", error))
}

fn bytes_are_placed<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a placed frame holds the page's bytes";
    for frame in (0..FRAMES).step_by(7).map(FrameIndex) {
        let placed = place(subject.installer(), frame, Some(&PATTERN.page(frame, 0)))?;
        ensure!(placed == Installed::Installed, PROMISE, "frame {frame}: {placed:?}");
    }
    for frame in (0..FRAMES).step_by(7).map(FrameIndex) {
        check_bytes(subject, frame, PROMISE)?;
    }
    no_event(subject, "a touch of a frame that is there is no fault")
}

fn no_event<S: ContractTarget>(subject: &S, promise: &'static str) -> Result<(), Broken> {
    let event = subject.queue().read().map_err(|error| Broken::new(promise, error))?;
    ensure!(event.is_none(), promise, "{event:?}");
    Ok(())
}

fn zeros_are_placed<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a frame filled with zeros reads as zeros";
    let installer = subject.installer();
    ensure!(place(installer, FrameIndex(3), None)? == Installed::Installed, PROMISE, "frame 3");
    place(installer, FrameIndex(12), Some(&PATTERN.page(FrameIndex(12), 0)))
        .map(|placed| placed == Installed::Installed)?;
    let filled = installer.zero_run(10..20).map_err(|error| Broken::new(PROMISE, error))?;
    ensure!(filled <= 10, "zero_run fills what it is told to", "{filled} of 10 frames");
    for frame in (10..10 + filled).chain([3]).map(FrameIndex) {
        if frame == FrameIndex(12) {
            check_bytes(subject, frame, "zeros never overwrite bytes")?;
        } else {
            ensure!(read(subject, frame)? == ZERO_PAGE, PROMISE, "frame {frame}");
        }
    }
    no_event(subject, "a touch of a frame that is there is no fault")
}

fn bytes_are_never_overwritten<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a frame that has bytes keeps them";
    let (installer, frame) = (subject.installer(), FrameIndex(5));
    let page = PATTERN.page(frame, 0);
    ensure!(place(installer, frame, Some(&page))? == Installed::Installed, PROMISE, "first");
    let written = subject.write(frame, 100, b"the clone's own");
    written.map_err(|error| Broken::new("a frame that is there can be written", error))?;
    for again in [Some(&page), Some(&ZERO_PAGE), None] {
        let placed = place(installer, frame, again)?;
        ensure!(placed == Installed::AlreadyPresent, PROMISE, "{placed:?}");
    }
    let mut expected = page;
    if let Some(target) = expected.get_mut(100..115) {
        target.copy_from_slice(b"the clone's own");
    }
    ensure!(read(subject, frame)? == expected, PROMISE, "frame {frame} has other bytes now");
    Ok(())
}

fn every_waiter_wakes<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "filling a frame wakes all who wait for it";
    const VCPUS: usize = 6;
    std::thread::scope(|scope| {
        // Should this fail, the vCPUs must not wait for ever.
        let _closing = Closing(subject);
        for frame in (0..16).map(FrameIndex) {
            let with_zeros = frame.0.is_multiple_of(2);
            let vcpus: Vec<_> =
                (0..VCPUS).map(|_| scope.spawn(move || read(subject, frame))).collect();
            // Some of them wait by now, others will come: all must get through.
            match next_event(subject.queue(), PROMISE)? {
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
            let placed = place(subject.installer(), frame, (!with_zeros).then_some(&page))?;
            ensure!(placed == Installed::Installed, PROMISE, "{placed:?}");
            let end = Instant::now() + TIMEOUT;
            while vcpus.iter().any(|vcpu| !vcpu.is_finished()) {
                ensure!(Instant::now() < end, PROMISE, "a vCPU still waits for frame {frame}");
                std::thread::yield_now();
            }
            let expected = if with_zeros { ZERO_PAGE } else { page };
            for vcpu in vcpus {
                let seen = vcpu.join().map_err(|_| Broken::new(PROMISE, "a vCPU panicked"))??;
                ensure!(seen == expected, PROMISE, "frame {frame}: not what was placed");
            }
            // The others' faults, reported before they were woken.
            while subject.queue().read().is_ok_and(|event| event.is_some()) {}
        }
        Ok(())
    })
}

fn nobody_sees_half_a_page<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a vCPU sees all of a page or none of it";
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _closing = Closing(subject);
        let is_over = &is_over;
        let vcpu = scope.spawn(move || {
            let result = (0..FRAMES).map(FrameIndex).try_for_each(|frame| {
                // Its end is placed last, if one byte is placed after the other.
                let mut end = [0; 16];
                let read = subject.read(frame, 4080, &mut end);
                read.map_err(|error| Broken::new(PROMISE, error))?;
                let verified = PATTERN.verify(frame, 0, 4080, &end);
                verified.map_err(|error| Broken::new(PROMISE, error))
            });
            is_over.store(true, Ordering::Release);
            result
        });
        let end = Instant::now() + TIMEOUT;
        for frame in (0..FRAMES).map(FrameIndex) {
            // Half of them while the vCPU waits, half of them just before or after.
            if frame.0.is_multiple_of(2) {
                let is_reported = || subject.queue().read().is_ok_and(|event| event.is_some());
                while !is_reported() && !is_over.load(Ordering::Acquire) {
                    ensure!(Instant::now() < end, PROMISE, "no fault on frame {frame}");
                    std::thread::yield_now();
                }
            }
            let _ = place(subject.installer(), frame, Some(&PATTERN.page(frame, 0)))?;
        }
        vcpu.join().map_err(|_| Broken::new(PROMISE, "the vCPU panicked"))?
    })
}

fn frames_outside_are_refused<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "a frame outside the memory is an error";
    let installer = subject.installer();
    for frame in [FRAMES, FRAMES + 1, u32::MAX].map(FrameIndex) {
        ensure!(installer.install(frame, &ZERO_PAGE).is_err(), PROMISE, "placing frame {frame}");
        ensure!(installer.zero(frame).is_err(), PROMISE, "zeroing frame {frame}");
        let taken = installer.evict(frame);
        let is_refused = matches!(taken, Err(_) | Ok(Eviction::Unsupported));
        ensure!(is_refused, PROMISE, "taking frame {frame} back");
    }
    Ok(())
}

fn only_untouched_frames_are_taken_back<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "only frames that nobody touched are taken back";
    let installer = subject.installer();
    let [untouched, read_, written] = [1, 2, 3].map(FrameIndex);
    for frame in [untouched, read_, written] {
        let placed = place(installer, frame, Some(&PATTERN.page(frame, 0)))?;
        ensure!(placed == Installed::Installed, PROMISE, "{placed:?}");
    }
    check_bytes(subject, read_, PROMISE)?;
    subject.write(written, 0, &[1]).map_err(|error| Broken::new(PROMISE, error))?;
    let take = |frame| installer.evict(frame).map_err(|error| Broken::new(PROMISE, error));
    if take(untouched)? == Eviction::Unsupported {
        return Ok(());
    }
    for frame in [read_, written] {
        let taken = take(frame)?;
        ensure!(taken != Eviction::Evicted, PROMISE, "frame {frame} was in use");
    }
    check_bytes(subject, read_, PROMISE)?;
    faults_and_gets(subject, untouched, Some(&PATTERN.page(untouched, 0)))
}

/// A touch of the frame is a fault, and the vCPU gets what is placed then.
fn faults_and_gets<S: ContractTarget>(
    subject: &S,
    frame: FrameIndex,
    page: Option<&Page>,
) -> Result<(), Broken> {
    const PROMISE: &str = "a touch of an emptied frame is a fault";
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(move || read(subject, frame));
        let event = next_event(subject.queue(), PROMISE);
        let is_right = matches!(&event, Ok(Event::Fault { frame: f, access: _ }) if *f == frame);
        let placed = place(subject.installer(), frame, page);
        if !is_right || placed.is_err() {
            subject.close();
        }
        let seen = vcpu.join().map_err(|_| Broken::new(PROMISE, "the vCPU panicked"))?;
        ensure!(is_right, PROMISE, "{:?}", event?);
        ensure!(placed? == Installed::Installed, PROMISE, "frame {frame} had bytes");
        let expected = page.unwrap_or(&ZERO_PAGE);
        ensure!(seen? == *expected, PROMISE, "frame {frame}: not what was placed");
        Ok(())
    })
}

fn frames_are_given_back<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "frames that are given back are reported, and then empty";
    let installer = subject.installer();
    let gone = FrameIndex(9);
    let placed = place(installer, gone, Some(&PATTERN.page(gone, 0)))?;
    ensure!(placed == Installed::Installed, PROMISE, "{placed:?}");
    check_bytes(subject, gone, PROMISE)?;
    let is_supported = std::thread::scope(|scope| {
        let balloon = scope.spawn(|| subject.give_back(8..11));
        let end = Instant::now() + TIMEOUT;
        let result = loop {
            let event = subject.queue().read().map_err(|error| Broken::new(PROMISE, error));
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
            subject.close();
        }
        let given = balloon.join().map_err(|_| Broken::new(PROMISE, "the balloon panicked"))?;
        result?;
        given.map_err(|error| Broken::new(PROMISE, error))
    })?;
    if !is_supported {
        return Ok(());
    }
    faults_and_gets(subject, gone, None)?;
    let untouched = FrameIndex(20);
    let placed = place(installer, untouched, Some(&PATTERN.page(untouched, 0)))?;
    ensure!(placed == Installed::Installed, "the memory can be filled afterwards", "{placed:?}");
    check_bytes(subject, untouched, PROMISE)
}

fn waking_changes_nothing<S: ContractTarget>(subject: &S) -> Result<(), Broken> {
    const PROMISE: &str = "waking fills nothing and loses nobody";
    let (installer, frame) = (subject.installer(), FrameIndex(4));
    installer.wake(frame).map_err(|error| Broken::new(PROMISE, error))?;
    std::thread::scope(|scope| {
        let _closing = Closing(subject);
        let vcpu = scope.spawn(move || {
            let written = subject.write(frame, 0, b"woken");
            written.map_err(|error| Broken::new(PROMISE, error))
        });
        for _ in 0..3 {
            // Woken without bytes, the vCPU reports the fault anew.
            let event = next_event(subject.queue(), PROMISE)?;
            let is_right = match event {
                Event::Fault { frame: f, access: Access::Write | Access::Unknown } => f == frame,
                Event::Fault { .. } | Event::Removed(_) | Event::Closed => false,
            };
            ensure!(is_right, "a fault says how a frame was touched, or nothing", "{event:?}");
            installer.wake(frame).map_err(|error| Broken::new(PROMISE, error))?;
        }
        let _ = next_event(subject.queue(), PROMISE)?;
        let placed = place(installer, frame, Some(&PATTERN.page(frame, 0)))?;
        ensure!(placed == Installed::Installed, PROMISE, "{placed:?}");
        vcpu.join().map_err(|_| Broken::new(PROMISE, "the vCPU panicked"))??;
        installer.wake(frame).map_err(|error| Broken::new(PROMISE, error))?;
        let page = read(subject, frame)?;
        ensure!(page.starts_with(b"woken"), PROMISE, "the write is lost");
        Ok(())
    })
}
