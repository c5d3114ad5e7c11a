//! Clones on a shared page cache that become parents.

use crate::common::{
    TestResult, has_userfaultfd, host, verify_image, verify_machine, wait_for_rounds,
};
use crate::store::{count, domain, snapshot};
use crate::store_stage::{after_another, filled};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::clone::{Background, EngineOptions, FreeFrames, LocalSource};
use kaleidoscope_core::color::{Color, ColorMap, Frame, FrameKind, KernelIdentity};
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use kaleidoscope_core::prefetch::{Blind, Demand, LocalityOrder, PrefetchPolicy};
use kaleidoscope_core::store::PageStore;
use kaleidoscope_kvm::guest::{CheckPort, Plan, boot};
use kaleidoscope_kvm::machine::{Host, Machine, Snapshot};
use kaleidoscope_kvm::memory::PageSize;
use kaleidoscope_kvm::state::MachineState;
use kaleidoscope_kvm::uffd::{OnDemand, SharedPageCache};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::io::{BufRead, BufReader, Lines};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// On-demand memory for a clone of `snapshot`; free frames are zeroed.
fn on_demand(
    snapshot: &Snapshot,
    locality: &Arc<LocalityOrder>,
    policy: Box<dyn PrefetchPolicy>,
    cache: &Arc<SharedPageCache>,
    background: Background,
) -> OnDemand {
    OnDemand {
        locality: Arc::clone(locality),
        policy,
        source: Arc::new(LocalSource::new(Arc::clone(&snapshot.image) as _)),
        options: EngineOptions::default().background(background).free_frames(FreeFrames::Zero),
        reservation: None,
        local_cache: None,
        cache: Some(Arc::clone(cache)),
        pages: PageSize::Small,
    }
}

fn until_whole(clone: &Machine) {
    let start = Instant::now();
    while !clone.engine().expect("its pages come").is_whole() {
        assert_eq!(clone.ended(), None);
        assert!(start.elapsed() < Duration::from_secs(180));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Freezes a clone five times, and verifies a clone of each snapshot while the first clone runs.
fn generations(
    host: &Arc<Host>,
    plan: &Plan,
    clone: &Machine,
    checks: &CheckPort,
) -> TestResult<Vec<Snapshot>> {
    let mut all = Vec::new();
    for generation in 0..5 {
        let again = clone.freeze()?;
        verify_image(plan, &again);
        let grandchild_checks = Arc::new(CheckPort::default());
        let mut grandchild = Machine::clone_of(host, &again, Arc::clone(&grandchild_checks) as _)?;
        grandchild.resume()?;
        wait_for_rounds(plan, clone, checks, 20);
        wait_for_rounds(plan, &grandchild, &grandchild_checks, 20);
        verify_machine(plan, &grandchild);
        println!("generation {generation}: paused for {:?}", again.pause);
        all.push(again);
    }
    all.iter().for_each(|snapshot| verify_image(plan, snapshot));
    Ok(all)
}

#[test]
fn a_staged_clone_becomes_a_parent_among_its_siblings() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    let plan = Plan::new(32, 2, 4, 256, 256, 2)?;
    let (mut parent, check_port) = boot(&host, &plan)?;
    // Free frames hold old data.
    let end = plan.layout()?.bytes();
    for at in (plan.end().0..end).step_by(4096) {
        parent.write(Gpa(at), &[0xee; 4096])?;
    }
    parent.resume()?;
    wait_for_rounds(&plan, &parent, &check_port, 200);
    let snapshot = parent.freeze()?;
    drop(parent);
    let used = u32::try_from(plan.end().0 >> 12)?;
    let frames = (0..plan.layout()?.frames()).map(|n| match n < used {
        true => Frame::default(),
        false => Frame { kind: FrameKind::Free, color: Color::Free, ..Frame::default() },
    });
    let map = ColorMap::new(plan.layout()?, KernelIdentity::default(), frames, Vec::new())?;
    let locality = Arc::new(LocalityOrder::new(map));

    let cache = SharedPageCache::new(plan.layout()?)?;
    let make = |policy: Box<dyn PrefetchPolicy>, background| -> TestResult<_> {
        let checks = Arc::new(CheckPort::default());
        let on_demand = on_demand(&snapshot, &locality, policy, &cache, background);
        let mut clone =
            Machine::on_demand_clone(&host, &snapshot.state, on_demand, Arc::clone(&checks) as _)?;
        clone.resume()?;
        Ok((clone, checks))
    };
    let (sibling, sibling_checks) = make(Box::new(Blind::aligned(16)), Background::Off)?;
    let why = sibling.freeze().unwrap_err().to_string();
    assert!(why.contains("Background::Full"), "{why}");
    // Memory that a guest gives back reads as zeros for that guest, not for its siblings.
    let (generous, _) = make(Box::new(Demand), Background::Full)?;
    until_whole(&generous);
    generous.pause()?;
    generous.engine().ok_or("no engine")?.removed(used..used + 1)?;
    let why = generous.freeze().unwrap_err().to_string();
    assert!(why.contains("gave memory back"), "{why}");
    drop(generous);
    let (clone, checks) = make(Box::new(Demand), Background::Full)?;
    until_whole(&clone);
    let snapshots = generations(&host, &plan, &clone, &checks)?;
    // Pages in the cache were not copied, and free frames take no memory.
    let written: usize = clone.written()?.iter().map(|run| run.len()).sum();
    let taken = snapshots.last().ok_or("no generation")?.image.taken()?;
    println!("{written} frames written, image {} KiB of {} KiB used", taken >> 10, used << 2);
    assert!(taken < u64::from(used) * 4096 + 5 * (written as u64 + 64) * 4096);
    // Clones that started before the cache became an image, and those that start later, are not
    // affected.
    let (late, late_checks) = make(Box::new(Blind::aligned(64)), Background::Full)?;
    wait_for_rounds(&plan, &sibling, &sibling_checks, 100);
    wait_for_rounds(&plan, &late, &late_checks, 100);
    until_whole(&late);
    generations(&host, &plan, &late, &late_checks)?;
    drop((clone, cache));
    generations(&host, &plan, &late, &late_checks)?;
    wait_for_rounds(&plan, &sibling, &sibling_checks, 50);
    verify_machine(&plan, &sibling);
    verify_machine(&plan, &late);
    Ok(())
}

#[test]
fn pages_of_the_store_stay_pinned_for_the_image_of_a_staged_clone() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    let plan = Plan::new(32, 1, 4, 256, 1024, 2)?;
    let (store, parent, known) = after_another(&host, &plan)?;
    let cache = SharedPageCache::sharing(plan.layout()?, &store, &known, Some(&domain()))?;
    let shown = count(&cache.shared());
    assert!(shown > 1000);
    let (_, _, mut clone, checks) = filled(&host, &parent, &cache)?;
    clone.resume()?;
    drop(cache);
    let snapshots = generations(&host, &plan, &clone, &checks)?;
    drop(clone);
    assert!(store.statistics().pins > 0, "the images map them");
    let image = &snapshots.first().ok_or("no generation")?.image;
    assert!(count(&image.shared()) > 500, "{:?}", image.shared());
    snapshots.iter().for_each(|snapshot| verify_image(&plan, snapshot));
    drop(snapshots);
    assert_eq!(store.statistics().pins, 0);
    Ok(())
}

/// Environment variable that makes the test below act as another process; holds its directory.
const ROLE: &str = "KALEIDOSCOPE_STAGED_ELSEWHERE";

/// The guest that both processes run.
fn plan_of_both() -> TestResult<Plan> {
    Ok(Plan::new(32, 2, 4, 256, 256, 2)?)
}

/// A locality order without information on frames.
fn plain(layout: MemoryLayout) -> TestResult<Arc<LocalityOrder>> {
    let frames = (0..layout.frames()).map(|_| Frame::default());
    let map = ColorMap::new(layout, KernelIdentity::default(), frames, Vec::new())?;
    Ok(Arc::new(LocalityOrder::new(map)))
}

/// Does nothing unless [`a_shared_cache_serves_several_processes`] starts it in another process.
/// There it runs a clone on the first process's cache.
#[test]
fn runs_elsewhere() -> TestResult<()> {
    let Some(dir) = std::env::var_os(ROLE) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let dir = PathBuf::from(dir);
    let host = host().ok_or("no KVM")?;
    let plan = plan_of_both()?;
    let fd = open(std::fs::read_to_string(dir.join("cache"))?, OFlags::RDWR, Mode::empty())?;
    let cache = SharedPageCache::join(plan.layout()?, fd)?;
    let state = MachineState::from_bytes(&std::fs::read(dir.join("state"))?)?;
    let ram = VecMemory::from_bytes(plan.layout()?, std::fs::read(dir.join("ram"))?);
    let on_demand = OnDemand {
        locality: plain(plan.layout()?)?,
        policy: Box::new(Demand),
        source: Arc::new(LocalSource::new(Arc::new(ram))),
        options: EngineOptions::default(),
        reservation: None,
        local_cache: None,
        cache: Some(cache),
        pages: PageSize::Small,
    };
    let checks = Arc::new(CheckPort::default());
    let mut clone = Machine::on_demand_clone(&host, &state, on_demand, Arc::clone(&checks) as _)?;
    clone.resume()?;
    wait_for_rounds(&plan, &clone, &checks, 100);
    println!("\nfaults {}", clone.engine().ok_or("no engine")?.statistics().total().faults);
    wait_for_rounds(&plan, &clone, &checks, 100);
    verify_machine(&plan, &clone);
    println!("\nright");
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}

/// A child process, killed and reaped on drop.
struct ChildProcess {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl ChildProcess {
    fn start(dir: &Path) -> TestResult<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "staged::runs_elsewhere", "--nocapture"])
            .env(ROLE, dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        Ok(Self { child, lines })
    }

    /// The rest of the next line that starts with `word`.
    fn line_after(&mut self, word: &str) -> TestResult<String> {
        let mut found = self.lines.by_ref().map_while(Result::ok);
        let said = found.find_map(|line| line.strip_prefix(word).map(str::to_owned));
        Ok(said.ok_or_else(|| format!("it does not say {word:?}"))?)
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_shared_cache_serves_several_processes() -> TestResult<()> {
    let Some(host) = host().filter(|_| has_userfaultfd()) else { return Ok(()) };
    let plan = plan_of_both()?;
    let snapshot = snapshot(&host, &plan, 200)?;
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("state"), snapshot.state.to_bytes()?)?;
    std::fs::write(dir.path().join("ram"), snapshot.image.bytes().ok_or("shared")?)?;
    let cache = SharedPageCache::new(plan.layout()?)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), cache.file()?.as_raw_fd());
    std::fs::write(dir.path().join("cache"), path)?;

    let empty = cache.taken()?;
    let mut first = ChildProcess::start(dir.path())?;
    let alone: u64 = first.line_after("faults ")?.parse()?;
    let by_first = cache.taken()?;
    assert!(alone > 100 && by_first > empty, "{alone} faults, {by_first} bytes");
    // Pages fetched by one process are in the cache for the others, and stay when it is killed.
    let checks = Arc::new(CheckPort::default());
    let mut on_demand =
        on_demand(&snapshot, &plain(plan.layout()?)?, Box::new(Demand), &cache, Background::Off);
    on_demand.options.free_frames = FreeFrames::Fetch;
    let mut clone =
        Machine::on_demand_clone(&host, &snapshot.state, on_demand, Arc::clone(&checks) as _)?;
    clone.resume()?;
    wait_for_rounds(&plan, &clone, &checks, 100);
    let ours = clone.engine().ok_or("no engine")?.statistics().total().faults;
    first.line_after("right")?;
    drop(first);
    wait_for_rounds(&plan, &clone, &checks, 100);
    for _ in 0..5 {
        drop(ChildProcess::start(dir.path())?.line_after("faults ")?);
    }
    let mut last = ChildProcess::start(dir.path())?;
    let theirs: u64 = last.line_after("faults ")?.parse()?;
    last.line_after("right")?;
    println!("faults: the first {alone}, ours {ours}, the last {theirs}");
    assert!(ours < alone / 4 && theirs < alone / 4, "{alone} {ours} {theirs}");
    wait_for_rounds(&plan, &clone, &checks, 100);
    verify_machine(&plan, &clone);
    Ok(())
}
