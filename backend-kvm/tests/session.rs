//! A session serves a VM of another process: one that maps memory, opens a userfaultfd, sends it
//! over a Unix socket, reads every byte, and gives memory back.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy does not see as tests")]
#![expect(unsafe_code, reason = "the VM's process maps memory and reads it")]

use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE, Gpa};
use kaleidoscope_core::clone::{EngineOptions, LocalSource};
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::memory::{MemoryLayout, VecMemory};
use kaleidoscope_core::prefetch::{self, Blind, Demand, LocalityOrder, PrefetchPolicy};
use kaleidoscope_kvm::memory::PageSize;
use kaleidoscope_kvm::uffd::{Handoff, Region, Session, SessionBuilder, receive, send};
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::sync::Arc;
use userfaultfd::{FeatureFlags, UffdBuilder};

/// The variable that makes a test's process the VM: socket, bytes of each region, `huge` or `-`,
/// and `events` where the kernel is to report what is given back.
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

/// What the other process does.
#[test]
fn vm() {
    let Ok(what) = std::env::var(VM) else { return };
    let mut words = what.split(' ');
    let stream = UnixStream::connect(words.next().unwrap()).unwrap();
    let sizes: Vec<u64> = words.next().unwrap().split(',').map(|n| n.parse().unwrap()).collect();
    let (is_huge, has_events) = (words.next() == Some("huge"), words.next() == Some("events"));
    let mut features =
        if is_huge { FeatureFlags::MISSING_HUGETLBFS } else { FeatureFlags::empty() };
    if has_events {
        features |= FeatureFlags::EVENT_REMOVE;
    }
    let mut builder = UffdBuilder::new();
    let uffd = builder.user_mode_only(false).require_features(features).create().unwrap();
    let mut message = Vec::new();
    let mut regions = Vec::new();
    for bytes in sizes {
        let huge = if is_huge { MapFlags::HUGETLB | MapFlags::HUGE_2MB } else { MapFlags::empty() };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | huge;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let len = usize::try_from(bytes).unwrap();
        // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, flags) }.unwrap();
        uffd.register(start, len).unwrap();
        message.extend((start.addr() as u64).to_le_bytes());
        regions.push((start.cast::<u64>(), len));
    }
    send(&stream, &message, &[uffd.as_fd()]).unwrap();
    drop(uffd);
    let read = |start: *mut u64, n: usize| {
        // SAFETY: the word lies in a mapping of this process, which nothing else refers to.
        unsafe { start.add(n).read_volatile() }
    };
    let mut offset = 0;
    for (start, len) in &regions {
        // Not in order, so that most pages are faults under any policy.
        for page in (0..len / FRAME_BYTES).rev() {
            for n in page * FRAME_BYTES / 8..(page + 1) * FRAME_BYTES / 8 {
                assert_eq!(read(*start, n), word(offset + n as u64 * 8), "word {n}");
            }
        }
        offset += *len as u64;
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

/// A VM in another process, and what it sent.
struct Vm {
    child: Child,
    handoff: Handoff,
    _directory: tempfile::TempDir,
}

impl Vm {
    fn start(sizes: &[u64], how: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let sizes: Vec<String> = sizes.iter().map(u64::to_string).collect();
        let what = format!("{} {} {how}", path.display(), sizes.join(","));
        let mut command = Command::new(std::env::current_exe().unwrap());
        let child = command.args(["--exact", "vm", "--nocapture"]).env(VM, what).spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let handoff = receive(&stream).unwrap();
        Self { child, handoff, _directory: directory }
    }

    fn addresses(&self) -> Vec<u64> {
        let (words, _) = self.handoff.message.as_chunks();
        words.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }

    /// Serves it, and says how many faults there were. It has to find every byte right.
    fn serve(mut self, builder: SessionBuilder, regions: &[Region]) -> u64 {
        let descriptor = self.handoff.descriptors.pop().unwrap();
        let builder = builder.userfaultfd(descriptor, regions.to_vec());
        let session = builder.until_exit(self.handoff.process).start().unwrap();
        session.wait().unwrap();
        assert!(self.child.wait().unwrap().success());
        session.engine().statistics().total().faults
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
    let policies: [fn(&Arc<LocalityOrder>) -> Box<dyn PrefetchPolicy>; 3] =
        [|_| Box::new(Demand), |_| Box::new(Blind::aligned(16)), prefetch::predicted];
    for policy in policies {
        for events in ["events", "-"] {
            let vm = Vm::start(&[LOW, HIGH], &format!("- {events}"));
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

/// Two userfaultfds of one VM would be two calls; one of a region that begins in the middle of
/// another's RAM is refused.
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
        let vm = Vm::start(&[bytes], "- events");
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
    let vm = Vm::start(&[LOW, HIGH], "huge events");
    let [low, high] = vm.addresses()[..] else { panic!("two regions") };
    let regions = [Region::at_offset(low, LOW, 0), Region::at_offset(high, HIGH, LOW)];
    let source = LocalSource::new(Arc::new(memory(&layout)) as _);
    let builder = Session::builder(plain(&layout), source).page_size(PageSize::Huge);
    let faults = vm.serve(builder.options(EngineOptions::default()), &regions);
    assert!((1..=6).contains(&faults), "{faults}");
}
