//! A session serves a VM of another process: one that maps memory, opens a userfaultfd, sends it
//! over a Unix socket, reads every byte, and gives memory back.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests, which clippy does not see as tests"
)]
#![expect(unsafe_code, reason = "the VM's process maps memory and reads it")]

use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE, Gpa};
use kaleidoscope_core::clone::{Background, EngineOptions, LocalSource};
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use kaleidoscope_core::prefetch::{self, Blind, Demand, LocalityOrder, PrefetchPolicy};
use kaleidoscope_kvm::ErrorKind;
use kaleidoscope_kvm::memory::PageSize;
use kaleidoscope_kvm::uffd::{Handoff, Region, Session, SessionBuilder, receive, send};
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;
use userfaultfd::{FeatureFlags, UffdBuilder};

/// The variable that makes a test's process the VM: socket, bytes of each region (regions after a
/// `/` have a userfaultfd of their own), and what is special about the VM.
///
/// - `huge`: its pages are huge
/// - `events`: the kernel reports what it gives back
/// - `waits`: after it has read its memory, it waits for a byte from the socket
/// - `keeps`: it keeps its userfaultfds open
/// - `outside`: it touches watched memory that is in none of the regions that it sends
/// - `forks`: it forks
/// - `blocks`: it makes its userfaultfd blocking, again and again
const VM: &str = "KALEIDOSCOPE_TEST_VM";

/// The word at an offset of the memory, in every test.
fn word(offset: u64) -> u64 {
    // Every seventh frame is zeros. Knuth's MMIX multiplier.
    let is_zero = (offset / FRAME_SIZE) % 7 == 3;
    if is_zero { 0 } else { (offset + 8).wrapping_mul(6_364_136_223_846_793_005) }
}

fn memory(layout: &MemoryLayout) -> VecMemory {
    let mut memory = VecMemory::zeroed(layout.clone());
    for (index, gfn) in layout.iter() {
        let start = u64::from(index.0) * FRAME_SIZE;
        let words = (0..FRAME_SIZE / 8).flat_map(|n| word(start + n * 8).to_le_bytes());
        memory.write(gfn.gpa(), &words.collect::<Vec<u8>>()).unwrap();
    }
    memory
}

/// Memory of the VM.
fn map(len: usize, is_huge: bool) -> *mut u64 {
    let huge = if is_huge { MapFlags::HUGETLB | MapFlags::HUGE_2MB } else { MapFlags::empty() };
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | huge;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
    unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, flags) }.unwrap().cast()
}

/// What the other process does.
#[test]
fn vm() {
    let Ok(what) = std::env::var(VM) else { return };
    let mut words = what.split(' ');
    let stream = UnixStream::connect(words.next().unwrap()).unwrap();
    let groups = words.next().unwrap().split('/');
    let special: Vec<&str> = words.collect();
    let is = |word: &str| special.contains(&word);
    let mut features = FeatureFlags::empty();
    features.set(FeatureFlags::MISSING_HUGETLBFS, is("huge"));
    features.set(FeatureFlags::EVENT_REMOVE, is("events"));
    features.set(FeatureFlags::EVENT_FORK, is("forks"));
    let (mut message, mut regions, mut descriptors) = (Vec::new(), Vec::new(), Vec::new());
    for sizes in groups {
        let mut builder = UffdBuilder::new();
        let uffd = builder.user_mode_only(false).require_features(features).create().unwrap();
        for bytes in sizes.split(',') {
            let len: usize = bytes.parse().unwrap();
            // With `outside`, a page more than it tells.
            let mapped = if is("outside") { len + FRAME_BYTES } else { len };
            let start = map(mapped, is("huge"));
            uffd.register(start.cast(), mapped).unwrap();
            message.extend((start.addr() as u64).to_le_bytes());
            regions.push((start, len));
        }
        descriptors.push(uffd);
    }
    let sent: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    send(&stream, &message, &sent).unwrap();
    if is("blocks") {
        let uffd = descriptors[0].as_fd().try_clone_to_owned().unwrap();
        std::thread::spawn(move || {
            loop {
                let blocking = fcntl_getfl(&uffd).unwrap() - OFlags::NONBLOCK;
                fcntl_setfl(&uffd, blocking).unwrap();
            }
        });
    }
    let _kept = is("keeps").then_some(descriptors);
    if is("forks") {
        // SAFETY: the child calls nothing but _exit.
        match unsafe { libc::fork() } {
            // SAFETY: the call does not return.
            0 => unsafe { libc::_exit(0) },
            child => assert!(child > 0),
        }
    }
    let read = |start: *mut u64, n: usize| {
        let word = start.wrapping_add(n);
        // SAFETY: the word lies in a mapping of this process, which nothing else refers to.
        unsafe { word.read_volatile() }
    };
    let mut offset = 0;
    for (start, len) in &regions {
        // Not in order, so that most pages are faults under any policy.
        let extra = usize::from(is("outside"));
        for page in (0..len / FRAME_BYTES + extra).rev() {
            for n in page * FRAME_BYTES / 8..(page + 1) * FRAME_BYTES / 8 {
                assert_eq!(read(*start, n), word(offset + n as u64 * 8), "word {n}");
            }
        }
        offset += *len as u64;
    }
    if is("waits") {
        (&stream).read_exact(&mut [0]).unwrap();
    }
    // What is given back is zeros, the second time, too; what is not keeps its bytes.
    let (start, len) = regions[0];
    for _ in 0..2 {
        // SAFETY: the first half of a mapping that nothing refers to.
        unsafe { madvise(start.cast(), len / 2, Advice::LinuxDontNeed) }.unwrap();
        assert!((0..len / 16).all(|n| read(start, n) == 0), "given back");
        assert!((len / 16..len / 8).all(|n| read(start, n) == word(n as u64 * 8)), "kept");
    }
}

/// A VM in another process, and what it sent. It is killed on drop.
struct Vm {
    child: Child,
    stream: UnixStream,
    handoff: Handoff,
    _directory: tempfile::TempDir,
}

impl Vm {
    /// A VM with these regions, all of one userfaultfd.
    fn start(sizes: &[u64], special: &str) -> Self {
        let sizes: Vec<String> = sizes.iter().map(u64::to_string).collect();
        Self::of(&sizes.join(","), special)
    }

    fn of(sizes: &str, special: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let what = format!("{} {sizes} {special}", path.display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        let child = command.args(["--exact", "vm", "--nocapture"]).env(VM, what).spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let handoff = receive(&stream).unwrap();
        Self { child, stream, handoff, _directory: directory }
    }

    fn addresses(&self) -> Vec<u64> {
        let (words, _) = self.handoff.message.as_chunks();
        words.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }

    /// A session of all regions and the first userfaultfd.
    fn session(&mut self, builder: SessionBuilder, regions: &[Region]) -> Session {
        let descriptor = self.handoff.descriptors.remove(0);
        let process = self.handoff.process.try_clone().unwrap();
        let builder = builder.userfaultfd(descriptor, regions.to_vec()).until_exit(process);
        builder.start().unwrap()
    }

    /// Serves it, and returns the number of faults. The VM has to find every byte right.
    fn serve(mut self, builder: SessionBuilder, regions: &[Region]) -> u64 {
        let session = self.session(builder, regions);
        session.wait().unwrap();
        assert!(self.child.wait().unwrap().success());
        session.engine().statistics().total().faults
    }

    /// Whether this process has the first userfaultfd open, which has this inode.
    fn is_open(inode: u64) -> bool {
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        // Some are closed meanwhile.
        let mut inodes = open.filter_map(|entry| std::fs::metadata(entry.path()).ok());
        inodes.any(|status| status.ino() == inode)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn can_watch() -> bool {
    let made = UffdBuilder::new().user_mode_only(false).create();
    if let Err(error) = &made {
        println!("******** SKIPPED: no userfaultfd for another process here ({error}) ********");
    }
    made.is_ok()
}

const LOW: u64 = 4 << 20;
const HIGH: u64 = 2 << 20;

fn layout() -> MemoryLayout {
    MemoryLayout::new(&[(Gpa(0), LOW), (Gpa(1 << 32), HIGH)]).unwrap()
}

fn plain(layout: &MemoryLayout) -> Arc<LocalityOrder> {
    let map = kaleidoscope_core::color::ColorMap::unknown(layout.clone());
    map.into()
}

#[test]
fn a_vm_of_another_process_sees_its_bytes() {
    if !can_watch() {
        return;
    }
    let layout = layout();
    let source = Arc::new(memory(&layout));
    let locality = plain(&layout);
    type MakePolicy = fn(&Arc<LocalityOrder>) -> Box<dyn PrefetchPolicy>;
    let policies: [MakePolicy; 3] =
        [|_| Box::new(Demand), |_| Box::new(Blind::aligned(16)), prefetch::predicted];
    for policy in policies {
        for events in ["events", "-"] {
            let vm = Vm::start(&[LOW, HIGH], events);
            let [low, high] = vm.addresses()[..] else { panic!("two regions") };
            let regions =
                [Region::at_gpa(high, HIGH, Gpa(1 << 32)), Region::at_offset(low, LOW, 0)];
            let source = LocalSource::new(Arc::clone(&source) as _);
            let builder = Session::builder(Arc::clone(&locality), source);
            let faults = vm.serve(builder.policy(policy(&locality)).threads(2), &regions);
            assert!(faults > 0);
        }
    }
}

/// A session with the plain map that fetches a page only when it is touched.
fn on_demand() -> SessionBuilder {
    let layout = layout();
    let source = LocalSource::new(Arc::new(memory(&layout)) as _);
    Session::builder(plain(&layout), source).policy(Box::new(Demand))
}

#[test]
fn a_vm_may_have_several_userfaultfds() {
    if !can_watch() {
        return;
    }
    for events in ["events", "-"] {
        let mut vm = Vm::of(&format!("{LOW}/{HIGH}"), events);
        let [low, high] = vm.addresses()[..] else { panic!("two regions") };
        assert_eq!(vm.handoff.descriptors.len(), 2);
        let second = vm.handoff.descriptors.pop().unwrap();
        let builder = on_demand().threads(2);
        let builder = builder.userfaultfd(second, [Region::at_offset(high, HIGH, LOW)]);
        let faults = vm.serve(builder, &[Region::at_offset(low, LOW, 0)]);
        assert!(faults > 0);
    }
}

fn inode(vm: &Vm) -> u64 {
    rustix::fs::fstat(&vm.handoff.descriptors[0]).unwrap().st_ino
}

fn regions(vm: &Vm) -> [Region; 2] {
    let [low, high] = vm.addresses()[..] else { panic!("two regions") };
    [Region::at_offset(low, LOW, 0), Region::at_offset(high, HIGH, LOW)]
}

#[test]
fn a_session_ends_when_its_vm_is_killed() {
    if !can_watch() {
        return;
    }
    let mut vm = Vm::start(&[LOW, HIGH], "events keeps waits");
    let (regions, inode) = (regions(&vm), inode(&vm));
    let session = vm.session(on_demand(), &regions);
    while session.engine().statistics().total().faults < 20 {
        std::thread::yield_now();
    }
    vm.child.kill().unwrap();
    session.wait().unwrap();
    assert!(session.engine().has_ended());
    drop(session);
    assert!(!Vm::is_open(inode), "nothing is kept for a VM that has ended");
}

#[test]
fn a_vm_without_its_session_waits() {
    if !can_watch() {
        return;
    }
    let mut vm = Vm::start(&[LOW, HIGH], "-");
    let (regions, inode) = (regions(&vm), inode(&vm));
    drop(vm.session(on_demand(), &regions));
    assert!(Vm::is_open(inode));
    std::thread::sleep(Duration::from_millis(50));
    assert!(vm.child.try_wait().unwrap().is_none(), "it reads no zeros, and does not end");
    vm.child.kill().unwrap();
    vm.child.wait().unwrap();
    // The next session that starts looks for VMs that have ended; this one has no memory.
    on_demand().start().unwrap_err();
    assert!(!Vm::is_open(inode));
}

#[test]
fn a_vm_with_all_pages_goes_on_alone() {
    if !can_watch() {
        return;
    }
    for special in ["events keeps waits", "events waits", "keeps waits"] {
        let mut vm = Vm::start(&[LOW, HIGH], special);
        let (regions, inode) = (regions(&vm), inode(&vm));
        let options = EngineOptions::default().background(Background::Full);
        let session = vm.session(on_demand().options(options), &regions);
        while !session.engine().is_whole() {
            std::thread::yield_now();
        }
        drop(session);
        assert!(!Vm::is_open(inode));
        vm.stream.write_all(&[1]).unwrap();
        assert!(vm.child.wait().unwrap().success(), "{special}");
    }
}

#[test]
fn what_a_vm_may_not_do_ends_its_session() {
    if !can_watch() {
        return;
    }
    for (special, expected) in [
        ("outside", "which is in none of its regions"),
        ("forks", "the VM's process forked, which cannot be served"),
        ("blocks", "another process made it blocking"),
    ] {
        let mut vm = Vm::start(&[LOW, HIGH], special);
        let regions = regions(&vm);
        let session = vm.session(on_demand(), &regions);
        let error = session.wait().unwrap_err().to_string();
        assert!(error.contains(expected), "{special}: {error}");
        let outside = format!("{:#x}", regions[0].address() + LOW);
        assert!(special != "outside" || error.contains(&outside), "{error}");
        assert!(!session.engine().has_ended());
    }
}

#[test]
fn a_userfaultfd_is_served_once() {
    if !can_watch() {
        return;
    }
    let mut vm = Vm::start(&[LOW, HIGH], "-");
    let second = vm.handoff.descriptors[0].try_clone().unwrap();
    let third = second.try_clone().unwrap();
    let regions = regions(&vm);
    let session = vm.session(on_demand(), &regions);
    let error = on_demand().userfaultfd(second, regions).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
    assert!(error.to_string().contains("one session at a time"), "{error}");
    session.wait().unwrap();
    assert!(vm.child.wait().unwrap().success());
    drop((session, third));
}

/// A descriptor that is no userfaultfd, and RAM that is in no region.
#[test]
fn what_is_not_the_vms_ram_is_refused() {
    let layout = layout();
    let source = || LocalSource::new(Arc::new(memory(&layout)) as _);
    let not_one = std::fs::File::open("/dev/null").unwrap();
    let builder = Session::builder(plain(&layout), source());
    let whole = [Region::at_offset(0x1000, LOW + HIGH, 0)];
    let error = builder.userfaultfd(not_one.into(), whole).start().unwrap_err();
    assert!(error.to_string().contains("descriptor 0 is no userfaultfd"), "{error}");
    let error = Session::builder(plain(&layout), source()).start().unwrap_err();
    assert!(error.to_string().contains("no region has the guest's RAM at"), "{error}");
}

/// Colors and the policy that follows them, on a guest with a kernel.
#[test]
fn a_colored_guest_takes_fewer_faults() {
    if !can_watch() {
        return;
    }
    let guest = GuestBuilder::new(KernelStyle::V6_12).ram_bytes(32 << 20).build().unwrap();
    let map = color(&guest.memory, &ColoringOptions::default()).unwrap().map;
    assert_eq!(map.layout().bytes(), 32 << 20);
    let layout = map.layout().clone();
    let locality: Arc<LocalityOrder> = map.into();
    let bytes = layout.bytes();
    let source = Arc::new(memory(&layout));
    let mut faults = Vec::new();
    for policy in [Box::new(Demand) as Box<dyn PrefetchPolicy>, prefetch::predicted(&locality)] {
        let vm = Vm::start(&[bytes], "events");
        let region = Region::at_offset(vm.addresses()[0], bytes, 0);
        let builder =
            Session::builder(Arc::clone(&locality), LocalSource::new(Arc::clone(&source) as _));
        faults.push(vm.serve(builder.policy(policy), &[region]));
    }
    assert!(faults[1] < faults[0], "{faults:?}");
}

#[test]
fn huge_pages_are_filled_whole() {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free: u64 = free.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if !can_watch() || free < 3 {
        println!("******** SKIPPED: the system's pool has {free} free huge pages of 3 ********");
        return;
    }
    let layout = layout();
    for special in ["huge events", "huge -"] {
        let vm = Vm::start(&[LOW, HIGH], special);
        let source = LocalSource::new(Arc::new(memory(&layout)) as _);
        let builder = Session::builder(plain(&layout), source).page_size(PageSize::Huge);
        let regions = regions(&vm);
        let faults = vm.serve(builder.options(EngineOptions::default()), &regions);
        assert!((1..=6).contains(&faults), "{special}: {faults}");
    }
}
