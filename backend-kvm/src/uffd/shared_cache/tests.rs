//! Stages that become images.

#![expect(clippy::single_range_in_vec_init, reason = "sets of frames")]

use super::{Put, SharedPageCache};
use crate::error::{Error, ErrorKind};
use crate::memory::{MemoryFile, PageSize, SnapshotMemory, bytes};
use crate::sys::{Mapping, Sharing, own_pages};
use crate::uffd::memory::UserfaultMemory;
use crate::uffd::own::Part;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::clone::FreeFrames;
use kaleidoscope_core::clone::ports::{Installed, PageInstaller};
use kaleidoscope_core::color::{Color, ColorMap, Frame, FrameKind, KernelIdentity};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::prefetch::LocalityOrder;
use rustix::fs::{Mode, OFlags, SealFlags, SeekFrom, fcntl_add_seals, open, seek};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const FRAMES: u32 = 96;

fn layout() -> MemoryLayout {
    MemoryLayout::contiguous(u64::from(FRAMES) << 12).unwrap()
}

fn page(n: u32) -> [u8; FRAME_BYTES] {
    [n.to_le_bytes()[0] + 1; FRAME_BYTES]
}

/// A guest of which these frames are free.
fn locality(free: Range<u32>) -> Arc<LocalityOrder> {
    let frames = (0..FRAMES).map(|n| match free.contains(&n) {
        true => Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() },
        false => Frame::default(),
    });
    let map = ColorMap::new(layout(), KernelIdentity::default(), frames, Vec::new());
    Arc::new(LocalityOrder::new(map.unwrap()))
}

/// An empty cache; none where memory cannot be watched.
fn cache() -> Option<Arc<SharedPageCache>> {
    match SharedPageCache::new(layout()) {
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            println!("******** SKIPPED: {error} ********");
            None
        }
        made => Some(made.unwrap()),
    }
}

fn put(cache: &SharedPageCache, n: u32) -> Put {
    cache.put(FrameIndex(n), &page(n)).unwrap()
}

/// Freezes a cache as a clone does that has these frames itself.
fn freeze(cache: &SharedPageCache, kept: &[Range<u32>]) -> Result<Arc<SnapshotMemory>, Error> {
    cache.freeze(|| Ok(kept.to_vec()))
}

fn refusal(result: Result<impl Sized, Error>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn a_stage_with_every_page_becomes_an_image() -> Outcome {
    let Some(cache) = cache() else { return Ok(()) };
    let free = locality(90..96);
    let first = cache.admit(&free, FreeFrames::Zero)?;
    // The same frames are free, in a map of its own.
    cache.admit(&locality(90..96), FreeFrames::Zero)?;
    for n in (0..80).chain([91]) {
        assert_eq!(put(&cache, n), Put::New);
    }
    assert!(refusal(freeze(&cache, &[80..89])).contains("not on its cache"));
    assert_eq!(put(&cache, 5), Put::Known);
    assert_eq!(put(&cache, 89), Put::New, "what cannot be snapshotted goes on");
    let image = freeze(&cache, &[80..89])?;
    let expected = |n: u32| if n < 80 || n == 89 || n == 91 { page(n)[0] } else { 0 };
    let bytes = || image.bytes().unwrap().iter().step_by(FRAME_BYTES).copied();
    assert!(bytes().eq((0..FRAMES).map(expected)));
    // A page that comes too late is zeros for the clone that asked.
    assert_eq!([5, 80, 91, 95].map(|n| put(&cache, n)), {
        [Put::Known, Put::Sealed, Put::Known, Put::Sealed]
    });
    assert!(bytes().eq((0..FRAMES).map(expected)));
    let mut byte = [7];
    first.read(80 * FRAME_BYTES, &mut byte)?;
    assert_eq!(byte, [0]);
    assert!(Arc::ptr_eq(&image, &freeze(&cache, &[])?), "it is snapshotted once");
    // Clones that need what is zeros now have to go elsewhere.
    cache.admit(&free, FreeFrames::Zero)?;
    assert!(refusal(cache.admit(&free, FreeFrames::Fetch)).contains("other free frames"));
    assert!(
        refusal(cache.admit(&locality(89..96), FreeFrames::Zero)).contains("other free frames")
    );
    Ok(())
}

#[test]
fn clones_that_do_without_different_frames_cannot_be_frozen() -> Outcome {
    for (other, mode) in [(90..96, FreeFrames::Fetch), (91..96, FreeFrames::Zero)] {
        let Some(cache) = cache() else { return Ok(()) };
        cache.admit(&locality(90..96), FreeFrames::Zero)?;
        cache.admit(&locality(other), mode)?;
        (0..FRAMES).for_each(|n| assert_eq!(put(&cache, n), Put::New));
        assert!(refusal(freeze(&cache, &[])).contains("do not agree"));
    }
    Ok(())
}

#[test]
fn frames_that_are_needed_are_never_zeros() -> Outcome {
    let Some(cache) = cache() else { return Ok(()) };
    cache.admit(&locality(0..FRAMES), FreeFrames::Fetch)?;
    (1..FRAMES).for_each(|n| assert_eq!(put(&cache, n), Put::New));
    assert!(refusal(freeze(&cache, &[])).contains("not on its cache"), "free frames are fetched");
    assert!(refusal(freeze(&cache, &[1..FRAMES])).contains("not on its cache"));
    assert!(freeze(&cache, &[0..1]).is_ok());
    Ok(())
}

/// Siblings put pages while one of them wants its cache snapshot: it gets all of them or none.
#[test]
fn a_stage_is_frozen_with_every_page_or_not_at_all() -> Outcome {
    for round in 0..200u32 {
        let Some(cache) = cache() else { return Ok(()) };
        cache.admit(&locality(0..0), FreeFrames::Fetch)?;
        let image = std::thread::scope(|scope| {
            for thread in 0..3 {
                let cache = &cache;
                scope.spawn(move || {
                    (0..FRAMES).for_each(|n| {
                        let n = (n * (2 * thread + 1) + round) % FRAMES;
                        assert_ne!(cache.put(FrameIndex(n), &page(n)).unwrap(), Put::Sealed);
                    });
                });
            }
            loop {
                match freeze(&cache, &[]) {
                    Ok(image) => return image,
                    Err(error) if error.kind() == ErrorKind::NotComplete => {
                        std::thread::yield_now()
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        });
        let firsts = image.bytes().unwrap().iter().step_by(FRAME_BYTES).copied();
        assert!(firsts.eq((0..FRAMES).map(|n| page(n)[0])));
    }
    Ok(())
}

#[test]
fn zeros_over_a_page_of_the_stage_stay() -> Outcome {
    let Some(cache) = cache() else { return Ok(()) };
    let free = locality(90..96);
    let mapping = Arc::new(cache.admit(&free, FreeFrames::Zero)?);
    let part = Part { mapping: Arc::clone(&mapping), frames: 0..FRAMES };
    let pages = UserfaultMemory::new(&[part], 1, Some(Arc::clone(&cache)), PageSize::Small)?;
    for n in 0..90 {
        assert_eq!(pages.install(FrameIndex(n), &page(n))?, Installed::Installed);
    }
    assert_eq!(pages.zero_run(90..93)?, 3);
    // A sibling's policy takes it along.
    assert_eq!(put(&cache, 91), Put::New);
    let image = pages.release()?.ok_or("it is staged")?;
    assert_eq!(
        pages.install(FrameIndex(94), &page(94))?,
        Installed::AlreadyPresent,
        "no thread waits"
    );
    let mut bytes = vec![1; FRAMES as usize * FRAME_BYTES];
    mapping.read(0, &mut bytes)?;
    let seen = |n: u32| bytes.get(n as usize * FRAME_BYTES).copied();
    assert!((0..90).all(|n| seen(n) == Some(page(n)[0])));
    assert!((90..FRAMES).all(|n| seen(n) == Some(0)));
    // Its image has the sibling's page there, and the clone's next freeze has to say otherwise.
    assert_eq!(image.bytes().unwrap().get(91 * FRAME_BYTES).copied(), Some(page(91)[0]));
    assert_eq!(own_pages(&mapping)?, [91 * FRAME_BYTES..92 * FRAME_BYTES]);
    Ok(())
}

/// What says to the test below that it is the process that is to be killed.
const ROLE: &str = "KALEIDOSCOPE_STAGE_TO_BE_KILLED";

/// Does nothing but in the process that [`a_killed_process_leaves_whole_pages`] starts: there it
/// puts pages until it is killed.
#[test]
fn puts_until_it_is_killed() {
    let Some(seed) = std::env::var_os(ROLE) else { return };
    let seed: u32 = seed.to_str().unwrap().parse().unwrap();
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let cache = cache().unwrap();
    println!("\ncache {}", cache.file().unwrap().as_raw_fd());
    for n in (0..FRAMES).map(|n| (n * 7 + seed) % FRAMES) {
        assert_ne!(put(&cache, n), Put::Sealed);
        std::thread::sleep(std::time::Duration::from_micros(300));
    }
    println!("\nall");
    std::thread::park();
}

/// Killed and waited for however the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Frames that a cache's file has, as the kernel says.
fn in_file(file: &OwnedFd) -> Vec<u32> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(from) = seek(file, SeekFrom::Data(at)) {
        let to = seek(file, SeekFrom::Hole(from)).unwrap();
        found.extend(from / 4096..to / 4096);
        at = to;
    }
    found.into_iter().map(|n| u32::try_from(n).unwrap()).collect()
}

#[test]
fn a_killed_process_leaves_whole_pages() -> Outcome {
    if cache().is_none() {
        return Ok(());
    }
    let (_, path) = module_path!().split_once("::").ok_or("no module")?;
    for (seed, wait) in (0..12u32).zip((0..).step_by(3)) {
        let child = Command::new(std::env::current_exe()?)
            .args(["--exact", &format!("{path}::puts_until_it_is_killed"), "--nocapture"])
            .env(ROLE, (seed * 11).to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut child = Killed(child);
        let mut lines = BufReader::new(child.0.stdout.take().ok_or("no output")?).lines();
        let fd = lines.find_map(|line| line.ok()?.strip_prefix("cache ").map(str::to_owned));
        let path = format!("/proc/{}/fd/{}", child.0.id(), fd.ok_or("no cache")?);
        let file = open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let ours = SharedPageCache::join(layout(), file.try_clone()?)?;
        let mapping = ours.admit(&locality(0..0), FreeFrames::Fetch)?;
        let check = |n: u32| -> Outcome {
            let mut bytes = [0; FRAME_BYTES];
            mapping.read(n as usize * FRAME_BYTES, &mut bytes)?;
            assert_eq!(bytes, page(n), "frame {n}");
            Ok(())
        };
        if wait == 0 {
            // It puts all of them, and lives on while we do.
            let mut known = 0;
            for n in 0..FRAMES {
                known += u32::from(put(&ours, n) == Put::Known);
                check(n)?;
            }
            println!("{known} of {FRAMES} were there");
            lines.find(|line| line.as_ref().is_ok_and(|line| line == "all")).ok_or("not all")??;
        }
        std::thread::sleep(std::time::Duration::from_millis(wait));
        // What is there at any moment is there as a whole.
        in_file(&file).into_iter().try_for_each(check)?;
        drop(child);
        let left = in_file(&file);
        left.iter().copied().try_for_each(check)?;
        let new = (0..FRAMES).filter(|n| put(&ours, *n) == Put::New).count();
        println!("killed after {} pages", left.len());
        assert_eq!(new + left.len(), FRAMES as usize, "each comes once");
        (0..FRAMES).try_for_each(check)?;
        let why = refusal(freeze(&ours, &[]));
        assert!(why.contains("several processes"), "{why}");
    }
    Ok(())
}

#[test]
fn what_others_can_write_to_is_no_image() -> Outcome {
    // A process that received a cache's file can write to it at any time, also in safe code: no
    // image refers to it.
    let Some(cache) = cache() else { return Ok(()) };
    cache.admit(&locality(0..0), FreeFrames::Fetch)?;
    (0..FRAMES).for_each(|n| assert_eq!(put(&cache, n), Put::New));
    let given = cache.file()?.try_clone_to_owned()?;
    let joined = SharedPageCache::join(layout(), given.try_clone()?)?;
    joined.admit(&locality(0..0), FreeFrames::Fetch)?;
    (0..FRAMES).for_each(|n| assert_eq!(put(&joined, n), Put::Known));
    for cache in [&cache, &joined] {
        assert!(refusal(freeze(cache, &[])).contains("several processes"));
    }
    std::os::unix::fs::FileExt::write_all_at(&std::fs::File::from(given), &[1], 0)?;
    Ok(())
}

#[test]
fn only_the_memory_of_a_stage_is_joined() -> Outcome {
    let Some(cache) = cache() else { return Ok(()) };
    let why = |file: OwnedFd| refusal(SharedPageCache::join(layout(), file));
    let small = MemoryFile::new(FRAME_BYTES)?;
    assert!(why(small.as_fd().try_clone_to_owned()?).contains("it has 4096 bytes"));
    let read_only = format!("/proc/self/fd/{}", cache.file()?.as_raw_fd());
    assert!(why(open(read_only, OFlags::RDONLY, Mode::empty())?).contains("not open for reading"));
    assert!(
        why(open("/proc/self/exe", OFlags::RDONLY, Mode::empty())?).contains("not a memory file")
    );
    let sealed = MemoryFile::new(bytes(&layout()))?;
    fcntl_add_seals(&sealed, SealFlags::FUTURE_WRITE)?;
    assert!(why(sealed.as_fd().try_clone_to_owned()?).contains("must be sealed"));

    // A cache that became an image cannot be given away.
    let alone = SharedPageCache::new(layout())?;
    alone.admit(&locality(0..0), FreeFrames::Fetch)?;
    (0..FRAMES).for_each(|n| assert_eq!(put(&alone, n), Put::New));
    let before = Mapping::of_file(alone.file.as_fd(), alone.file.len(), Sharing::Private)?;
    let image = freeze(&alone, &[])?;
    assert!(refusal(alone.file()).contains("was snapshotted"));
    let mut seen = vec![0; bytes(&layout())];
    before.read(0, &mut seen)?;
    assert_eq!(Some(seen.as_slice()), image.bytes());
    Ok(())
}
