//! Contract tests for page sources.

use super::super::pattern::Pattern;
use super::super::{MockParent, Snapshot};
use super::{Broken, TIMEOUT, ensure};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::ports::{Delivery, PageSource, Priority};
use kaleidoscope_core::memory::{GuestMemory, MemoryLayout, ZERO_PAGE};
use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Frames of the image.
const FRAMES: u32 = 4096;

const PATTERN: Pattern = Pattern::new(0x50_fa57).with(20, 20);

type Check = fn(&dyn PageSource) -> Result<(), Broken>;

/// Creates a source over a snapshot image.
pub type MakeSource<'m> =
    dyn Fn(Arc<dyn GuestMemory>) -> Result<Arc<dyn PageSource>, Box<dyn Error + Send + Sync>> + 'm;

/// Checks all requirements of [`PageSource`] on new sources over an image whose parent keeps
/// writing.
///
/// # Errors
/// [`Broken`] describes the first violated requirement.
pub fn source(make: &MakeSource<'_>) -> Result<(), Broken> {
    const MADE: &str = "a source can be created";
    let layout = MemoryLayout::contiguous(u64::from(FRAMES) << 12);
    let parent = MockParent::new(layout.map_err(|e| Broken::new(MADE, e))?, PATTERN);
    let snapshot: Snapshot = parent.freeze();
    let _writers = parent.keep_writing(1, 1).map_err(|e| Broken::new(MADE, e))?;
    let suite: [Check; 6] = [
        receiving_times_out,
        every_frame_arrives,
        urgent_frames_overtake,
        asking_again_is_harmless,
        many_threads_ask,
        nothing_is_asked_for,
    ];
    for check in suite {
        let source = make(Arc::new(snapshot.clone())).map_err(|e| Broken::new(MADE, e))?;
        check(&*source)?;
    }
    Ok(())
}

/// The received frames, in order of first arrival, with the number of deliveries of each.
#[derive(Default)]
struct Arrived {
    order: Vec<FrameIndex>,
    times: HashMap<FrameIndex, u32>,
}

impl Arrived {
    /// Receives once, and checks the bytes.
    fn receive(&mut self, source: &dyn PageSource, wait: Duration) -> Result<(), Broken> {
        const PROMISE: &str = "a source delivers the bytes of the freeze";
        let mut wrong = None;
        let received = source.receive(wait, &mut |delivery| {
            let frame = delivery.frame();
            let times = self.times.entry(frame).or_default();
            *times += 1;
            if *times == 1 {
                self.order.push(frame);
            }
            let checked = match delivery {
                Delivery::Page(_, page) => PATTERN.verify(frame, 0, 0, page),
                Delivery::Zero(_) => PATTERN.verify(frame, 0, 0, &ZERO_PAGE),
                Delivery::Unavailable(_) => {
                    wrong.get_or_insert(format!("frame {frame} is reported as unavailable"));
                    Ok(())
                }
            };
            if let Err(mismatch) = checked {
                wrong.get_or_insert(mismatch.to_string());
            }
        });
        received
            .map_err(|error| Broken::new("a source with valid requests does not fail", error))?;
        wrong.map_or(Ok(()), |wrong| Err(Broken::new(PROMISE, wrong)))
    }

    /// Receives until all of these frames have arrived.
    fn receive_all(
        &mut self,
        source: &dyn PageSource,
        frames: &[FrameIndex],
        promise: &'static str,
    ) -> Result<(), Broken> {
        let end = Instant::now() + TIMEOUT;
        let missing = |a: &Self| frames.iter().find(|f| !a.times.contains_key(f)).copied();
        while let Some(frame) = missing(self) {
            ensure!(Instant::now() < end, promise, "frame {frame} does not arrive");
            self.receive(source, Duration::from_millis(50))?;
        }
        Ok(())
    }
}

fn ask(source: &dyn PageSource, frames: &[FrameIndex], priority: Priority) -> Result<(), Broken> {
    let asked = source.request(frames, priority);
    asked.map_err(|error| Broken::new("frames of the image can be requested", error))
}

fn all() -> Vec<FrameIndex> {
    (0..FRAMES).map(FrameIndex).collect()
}

fn receiving_times_out(source: &dyn PageSource) -> Result<(), Broken> {
    const PROMISE: &str = "receiving ends after the wait";
    ensure!(source.window() > 0, "the window is not zero", "window 0");
    let mut arrived = Arrived::default();
    for wait in [Duration::ZERO, Duration::from_millis(5)] {
        arrived.receive(source, wait)?;
    }
    ensure!(arrived.order.is_empty(), PROMISE, "{:?} arrived unasked", arrived.order);
    Ok(())
}

fn every_frame_arrives(source: &dyn PageSource) -> Result<(), Broken> {
    let mut arrived = Arrived::default();
    for (n, frames) in all().chunks(64).enumerate() {
        let priority = if n % 3 == 0 { Priority::Urgent } else { Priority::Prefetch };
        ask(source, frames, priority)?;
        if n % 4 == 0 {
            arrived.receive(source, Duration::ZERO)?;
        }
    }
    arrived.receive_all(source, &all(), "every requested frame arrives")
}

fn urgent_frames_overtake(source: &dyn PageSource) -> Result<(), Broken> {
    const PROMISE: &str = "an urgent frame overtakes prefetched ones";
    let mut arrived = Arrived::default();
    let frames = all();
    let urgent = FrameIndex(FRAMES - 1);
    let others = frames.get(..frames.len() - 1).unwrap_or_default();
    ask(source, others, Priority::Prefetch)?;
    ask(source, &[urgent], Priority::Urgent)?;
    arrived.receive_all(source, &frames, "every requested frame arrives")?;
    let at = arrived.order.iter().position(|frame| *frame == urgent).unwrap_or(usize::MAX);
    // Frames that were already in flight may arrive first.
    ensure!(at < frames.len() / 2, PROMISE, "{at} of {} arrived before it", frames.len());
    Ok(())
}

fn asking_again_is_harmless(source: &dyn PageSource) -> Result<(), Broken> {
    const PROMISE: &str = "a frame requested again arrives once or twice";
    let mut arrived = Arrived::default();
    let frames: Vec<_> = (0..200).map(FrameIndex).collect();
    ask(source, &frames, Priority::Prefetch)?;
    ask(source, &frames, Priority::Urgent)?;
    arrived.receive_all(source, &frames, PROMISE)?;
    for _ in 0..20 {
        arrived.receive(source, Duration::from_millis(1))?;
    }
    let most = arrived.times.values().max().copied().unwrap_or(0);
    ensure!(most <= 2, PROMISE, "{most} times");
    ask(source, &frames, Priority::Urgent)?;
    Arrived::default().receive_all(source, &frames, "a frame can be requested any number of times")
}

fn many_threads_ask(source: &dyn PageSource) -> Result<(), Broken> {
    const PROMISE: &str = "many threads may request while another one receives";
    let mut arrived = Arrived::default();
    std::thread::scope(|scope| {
        let askers: Vec<_> = (0..4u32)
            .map(|thread| {
                scope.spawn(move || {
                    let mut own = (0..FRAMES).filter(|f| f % 4 == thread).map(FrameIndex);
                    own.try_for_each(|frame| ask(source, &[frame], Priority::Urgent))
                })
            })
            .collect();
        while askers.iter().any(|asker| !asker.is_finished()) {
            arrived.receive(source, Duration::from_millis(1))?;
        }
        for asker in askers {
            asker.join().map_err(|_| Broken::new(PROMISE, "a thread panicked"))??;
        }
        arrived.receive_all(source, &all(), PROMISE)
    })
}

fn nothing_is_asked_for(source: &dyn PageSource) -> Result<(), Broken> {
    ask(source, &[], Priority::Urgent)?;
    ask(source, &[], Priority::Prefetch)?;
    let mut arrived = Arrived::default();
    arrived.receive(source, Duration::from_millis(2))?;
    ensure!(arrived.order.is_empty(), "an empty request delivers nothing", "{:?}", arrived.order);
    ask(source, &[FrameIndex(1)], Priority::Urgent)?;
    arrived.receive_all(source, &[FrameIndex(1)], "every requested frame arrives")
}
