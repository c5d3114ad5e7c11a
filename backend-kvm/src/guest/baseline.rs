//! The least that starting and filling a clone can cost: KVM's calls alone, and a loop that copies
//! the page that was touched. What we do is measured beside these.

use crate::error::{Asked, KvmError};
use crate::machine::{Devices, Host, Machine, Snapshot};
use crate::memory::{GuestRam, PageSize};
use crate::state::make_board;
use crate::sys::{Mapping, Userfault};
use kaleidoscope_core::addr::FRAME_BYTES;
use kaleidoscope_core::clone::Retry;
use kaleidoscope_core::clone::ports::SystemClock;
use kaleidoscope_core::memory::GuestMemory;
use linux_raw_sys::general::UFFD_FEATURE_MISSING_SHMEM;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long KVM takes to make a VM with this image and in this state, which is then thrown away: no
/// threads, no bookkeeping.
///
/// # Errors
/// [`KvmError`] when KVM or the system refuses.
pub fn start(host: &Arc<Host>, snapshot: &Snapshot) -> Result<Duration, KvmError> {
    let start = Instant::now();
    let vm = host.kvm().create_vm().asked("making a VM")?;
    make_board(&vm)?;
    let ram = GuestRam::of_image(Arc::clone(&snapshot.image))?;
    ram.install(&vm)?;
    let mut vcpus = Vec::new();
    for id in 0u64..snapshot.state.vcpus() as u64 {
        vcpus.push(vm.create_vcpu(id).asked("making a vCPU")?);
    }
    snapshot.state.load(&vm, vcpus.iter())?;
    let time = start.elapsed();
    // Before the memory that they use.
    drop((vcpus, vm));
    Ok(time)
}

/// How long a page is tried to be put in.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A clone whose every touched page is copied in by one thread that does nothing else. It has to be
/// dropped after the machine.
#[derive(Debug)]
pub struct Served {
    stop: Arc<AtomicBool>,
    faults: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// A clone of `snapshot` that a bare loop serves.
///
/// # Errors
/// [`KvmError`] when KVM or the system refuses.
pub fn served(
    host: &Arc<Host>,
    snapshot: &Snapshot,
    devices: Arc<dyn Devices>,
) -> Result<(Machine, Served), KvmError> {
    let len = snapshot.image.bytes().map(<[u8]>::len);
    let len = len.ok_or_else(|| KvmError::State("an image that shares pages".into()))?;
    let mapping =
        Arc::new(Mapping::anonymous(len, PageSize::Small).asked("mapping a clone's memory")?);
    let userfault = Userfault::new(Arc::clone(&mapping), UFFD_FEATURE_MISSING_SHMEM.into());
    let userfault = userfault.asked("watching a clone's memory")?;
    let watched = userfault.register(&(0..len));
    watched.asked("watching a clone's memory")?;
    let (stop, faults) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&faults));
    let image = Arc::clone(&snapshot.image);
    let thread = std::thread::Builder::new().name("bare".into()).spawn(move || {
        let clock = SystemClock::new();
        let second = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        while !stopped.load(Ordering::Relaxed) {
            match poll(&mut [PollFd::new(&userfault, PollFlags::IN)], Some(&second)) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            while let Ok(Some(offset)) = userfault.read_fault() {
                let start = offset / FRAME_BYTES * FRAME_BYTES;
                let page = image.bytes().and_then(|bytes| bytes.get(start..start + FRAME_BYTES));
                let page = page.unwrap_or_default();
                let mut retry = Retry::new(TIMEOUT);
                // No thread gives this memory back; the kernel may still say that it changes.
                while let Err((0, Errno::AGAIN)) = userfault.copy(start, page)
                    && retry.pause(&clock)
                {}
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let thread = Some(thread.asked("starting a thread")?);
    let ram = GuestRam::filled(snapshot.image.layout().clone(), mapping);
    let machine = Machine::restored(host, ram, &snapshot.state, devices)?;
    Ok((machine, Served { stop, faults, thread }))
}

impl Served {
    /// Pages that were copied.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported.
            let _ = thread.join();
        }
    }
}
