//! Runs the kernel's own page merging (KSM) on the same memory.
//!
//! Frames that are not free are copied into mergeable anonymous memory, so that the kernel looks
//! for the same pages as the strategies. A second run has only the frames that the adaptive
//! selector hashes. The scanner is a kernel thread, whose CPU time is in `/proc`.

use super::guests::Guest;
use super::strategies::{Strategy, StrategyResult};
use crate::failure::Failure;
use crate::interrupt::{Armed, Undo, arm_with};
use crate::progress;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex};
use kaleidoscope_core::memory::{GuestMemory, data_frames};
use memmap2::{Advice, MmapMut};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The folder of KSM's counters and settings.
const FOLDER: &str = "/sys/kernel/mm/ksm";

/// Settings during the measurement: scan without pauses, count zero pages separately, and skip no
/// pages.
const SETTINGS: [(&str, &str); 4] = [
    ("sleep_millisecs", "0"),
    ("pages_to_scan", "4096"),
    ("use_zero_pages", "1"),
    ("smart_scan", "0"),
];

/// Polling interval, and most time in total.
const POLL: Duration = Duration::from_millis(20);
const TIMEOUT: Duration = Duration::from_secs(600);

/// Time without a change after which the counters are final.
const SETTLED: Duration = Duration::from_millis(300);

/// Number of full scans. KSM merges a page when it sees it for the second time, so that the third
/// scan finds nothing new.
const SCANS: u64 = 3;

/// Clock ticks per second in `/proc/PID/stat` (`USER_HZ`): 100 on every Linux that Rust supports.
const TICKS: u64 = 100;

/// KSM's results for all frames, and for the selected ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct KsmResults {
    pub(super) all: KsmResult,
    pub(super) selected: KsmResult,
}

/// KSM's results.
#[derive(Clone, Copy, Debug)]
pub(super) struct KsmResult {
    /// Frames of mergeable memory.
    pub(super) frames: u64,
    /// Contiguous ranges of these frames in guest memory: the number of `madvise` calls that a VMM
    /// would need.
    pub(super) ranges: u64,
    /// Saved pages other than zero pages.
    pub(super) shared: u64,
    /// Saved zero pages.
    pub(super) zero: u64,
    /// CPU time of the scanner until it had found 99 % of the final `shared`.
    pub(super) cpu: Duration,
    pub(super) time: Duration,
    pub(super) full_scans: u64,
}

/// Changed settings. They are restored on drop, or when the command ends for any reason.
#[derive(Default)]
struct Settings(Vec<Armed>);

impl Settings {
    /// Changes a setting. Settings that this kernel lacks are skipped.
    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let path = Path::new(FOLDER).join(name);
        let Ok(before) = fs::read_to_string(&path) else { return Ok(()) };
        let undo = Undo::Restore { path: path.clone(), value: before.trim().to_owned() };
        let ((), armed) = arm_with(undo, || write_setting(&path, value)).map_err(|e| {
            Failure::at(&path, e)
                .hint("--ksm changes the kernel's settings temporarily: run it as root")
        })?;
        self.0.push(armed);
        Ok(())
    }
}

/// Writes a setting in place, because files in sysfs cannot be replaced.
#[expect(clippy::disallowed_methods, reason = "a setting of the kernel's is written as it is")]
fn write_setting(path: &Path, value: &str) -> std::io::Result<()> {
    fs::write(path, value)
}

impl Drop for Settings {
    fn drop(&mut self) {
        // Restore in reverse order.
        while let Some(armed) = self.0.pop() {
            drop(armed);
        }
    }
}

/// Runs KSM on the guests' memory: on all frames that are not free, and on the frames that the
/// adaptive selector hashed.
pub(super) fn run(guests: &[Guest], results: &[StrategyResult]) -> Result<KsmResults, Failure> {
    let all: Vec<Vec<_>> = guests
        .iter()
        .map(|guest| {
            let frames = data_frames(&guest.image);
            frames.filter(|frame| !guest.locality.is_free(*frame)).collect()
        })
        .collect();
    let adaptive = results.iter().find(|result| result.strategy == Strategy::Adaptive(None));
    let mut selected = adaptive.map_or_else(Vec::new, |result| result.hashed.clone());
    // By address, the order in which the kernel scans.
    selected.iter_mut().for_each(|frames| frames.sort_unstable());
    Ok(KsmResults { all: merge(guests, &all)?, selected: merge(guests, &selected)? })
}

fn merge(guests: &[Guest], chosen: &[Vec<FrameIndex>]) -> Result<KsmResult, Failure> {
    let missing = |what: &str| Failure::new(what).hint("--ksm needs a kernel with CONFIG_KSM");
    if !Path::new(FOLDER).is_dir() {
        return Err(missing("this kernel has no KSM: /sys/kernel/mm/ksm does not exist"));
    }
    let thread =
        thread().ok_or_else(|| missing("the kernel thread ksmd is not visible in /proc"))?;
    let (memory, frames) = copy(guests, chosen)?;
    let mut restore = Settings::default();
    for (name, value) in SETTINGS {
        restore.set(name, value)?;
    }
    restore.set("run", "1")?;
    settle()?;
    let (sharing, zero) = (figure("pages_sharing")?, figure("ksm_zero_pages").unwrap_or(0));
    let (start, scans, ticks) = (Instant::now(), figure("full_scans")?, cpu_ticks(&thread)?);
    for part in &memory {
        part.advise(Advice::Mergeable)
            .map_err(|e| Failure::new(format_args!("cannot make memory mergeable: {e}")))?;
    }
    let found = progress::during("merging", |status| {
        status.set("the kernel scans");
        let mut samples = Vec::new();
        while start.elapsed() < TIMEOUT {
            std::thread::sleep(POLL);
            let shared = figure("pages_sharing")?.saturating_sub(sharing);
            samples.push((shared, cpu_ticks(&thread)?.saturating_sub(ticks), start.elapsed()));
            // The scan that was running at the start does not count.
            if figure("full_scans")?.saturating_sub(scans) > SCANS {
                break;
            }
        }
        Ok::<_, Failure>(samples)
    })?;
    let shared = found.last().map_or(0, |last| last.0);
    let settled = found.iter().find(|sample| sample.0 >= shared - shared / 100);
    let (_, ticks, time) = settled.copied().unwrap_or((0, 0, Duration::ZERO));
    let merged = KsmResult {
        frames,
        ranges: chosen.iter().map(|frames| ranges(frames)).sum(),
        shared,
        zero: figure("ksm_zero_pages").unwrap_or(0).saturating_sub(zero),
        cpu: Duration::from_millis(ticks.saturating_mul(1000) / TICKS),
        time,
        full_scans: figure("full_scans")?.saturating_sub(scans),
    };
    // Dropped only now, because the counters above must include this memory.
    drop(memory);
    settle()?;
    drop(restore);
    Ok(merged)
}

/// Waits until the kernel has dropped pages of memory that was unmapped, which it notices while
/// scanning: until nothing is merged, or the counters are stable after two scans.
fn settle() -> Result<(), Failure> {
    let (start, scans) = (Instant::now(), figure("full_scans")?);
    let (mut before, mut since) = (None, Instant::now());
    while start.elapsed() < TIMEOUT {
        let now = (figure("pages_sharing")?, figure("pages_shared")?);
        if before != Some(now) {
            (before, since) = (Some(now), Instant::now());
        }
        let has_scanned = figure("full_scans")?.saturating_sub(scans) >= 2;
        if now == (0, 0) || (has_scanned && since.elapsed() >= SETTLED) {
            break;
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Copies the chosen frames into a mapping for each guest. Returns the mappings and the number of
/// frames.
fn copy(guests: &[Guest], chosen: &[Vec<FrameIndex>]) -> Result<(Vec<MmapMut>, u64), Failure> {
    let mut all = Vec::with_capacity(guests.len());
    let mut count = 0u64;
    for (guest, frames) in guests.iter().zip(chosen) {
        let bytes = frames.len().saturating_mul(FRAME_BYTES).max(FRAME_BYTES);
        let mut memory = MmapMut::map_anon(bytes)
            .map_err(|e| Failure::new(format_args!("{bytes} bytes of memory: {e}")))?;
        for (frame, page) in frames.iter().zip(memory.chunks_mut(FRAME_BYTES)) {
            let Some(gfn) = guest.locality.layout().gfn_of(*frame) else { continue };
            // A frame that cannot be read stays zero, and is not counted.
            if guest.image.read(gfn.gpa(), page).is_ok() {
                count += 1;
            }
        }
        all.push(memory);
    }
    Ok((all, count))
}

/// The number of runs of consecutive frames.
fn ranges(frames: &[FrameIndex]) -> u64 {
    let breaks = frames.windows(2).filter(|two| match two {
        [before, frame] => before.0.checked_add(1) != Some(frame.0),
        _ => false,
    });
    u64::try_from(breaks.count() + usize::from(!frames.is_empty())).unwrap_or(u64::MAX)
}

/// One of KSM's counters.
fn figure(name: &str) -> Result<u64, Failure> {
    let path = Path::new(FOLDER).join(name);
    let text = fs::read_to_string(&path).map_err(|e| Failure::at(&path, e))?;
    text.trim()
        .parse()
        .map_err(|_| Failure::at(&path, format_args!("`{}` is no number", text.trim())))
}

/// The folder of the kernel thread ksmd in `/proc`.
fn thread() -> Option<PathBuf> {
    let folders = fs::read_dir("/proc").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut folders = folders.filter(|path| path.join("comm").is_file());
    folders.find(|path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == "ksmd\n"))
}

/// CPU time of a thread, in clock ticks.
fn cpu_ticks(folder: &Path) -> Result<u64, Failure> {
    let path = folder.join("stat");
    let text = fs::read_to_string(&path).map_err(|e| Failure::at(&path, e))?;
    ticks(&text).ok_or_else(|| Failure::at(&path, "no CPU time in it"))
}

/// User plus system time in a line of `/proc/PID/stat`, in clock ticks.
fn ticks(stat: &str) -> Option<u64> {
    // The name may contain blanks and parentheses. Field 3 follows it; the times are fields 14 and
    // 15.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()?.saturating_add(next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_odd_names() {
        let stat = "37 (k (s) md) S 2 0 0 0 -1 2097216 0 0 0 0 12 345 0 0 25 5 1 0 90";
        assert_eq!(ticks(stat), Some(357));
        assert_eq!(ticks("37 (ksmd) S 2"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn frames_that_follow_each_other_are_one_range() {
        assert_eq!(ranges(&[]), 0);
        assert_eq!(ranges(&[3, 4, 5, 7, 9, 10].map(FrameIndex)), 3);
    }

    #[test]
    fn settings_come_back_also_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        fs::write(&path, "0").unwrap();
        let undo = Undo::Restore { path: path.clone(), value: "0".to_owned() };
        let ((), armed) = arm_with(undo, || fs::write(&path, "1")).unwrap();
        let settings = Settings(vec![armed]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
        let result = std::panic::catch_unwind(move || {
            let _settings = settings;
            panic!("on purpose");
        });
        assert!(result.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "0");
    }
}
