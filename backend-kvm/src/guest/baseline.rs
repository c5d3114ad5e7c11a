//! Lower bounds for the cost of starting and filling a clone: KVM's calls alone, and a loop that
//! copies each touched page. Measurements are compared with these.

use crate::error::{Asked, Error};
use crate::machine::{Devices, Host, Machine, Snapshot};
use crate::memory::{GuestRam, PageSize};
use crate::state::create_interrupt_chips;
use crate::sys::{Mapping, Userfault, VmHandle};
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

/// Time that KVM takes to create a VM with this image and state. The VM has no threads or
/// bookkeeping, and is discarded.
///
/// # Errors
/// [`Error`] when KVM or the system refuses a request.
pub fn start(host: &Arc<Host>, snapshot: &Snapshot) -> Result<Duration, Error> {
    let start = Instant::now();
    let vm = VmHandle::new(host.kvm().create_vm().asked("creating a VM")?);
    create_interrupt_chips(&vm)?;
    let ram = GuestRam::of_image(Arc::clone(&snapshot.image))?;
    ram.install(&vm)?;
    let mut vcpus = Vec::new();
    for id in 0u64..snapshot.state.vcpus() as u64 {
        vcpus.push(vm.create_vcpu(id).asked("creating a vCPU")?);
    }
    snapshot.state.load(&vm, vcpus.iter())?;
    let time = start.elapsed();
    Ok(time)
}

/// Time for which inserting a page is retried.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The thread that copies every touched page into a clone. Drop it after the machine.
#[derive(Debug)]
pub struct Served {
    stop: Arc<AtomicBool>,
    faults: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// A clone of `snapshot` whose pages a minimal loop copies in on demand.
///
/// # Errors
/// [`Error`] when KVM or the system refuses a request.
pub fn served(
    host: &Arc<Host>,
    snapshot: &Snapshot,
    devices: Arc<dyn Devices>,
) -> Result<(Machine, Served), Error> {
    let len = snapshot.image.bytes().map(<[u8]>::len);
    let len = len.ok_or_else(|| Error::input("the image shares pages"))?;
    let mapping =
        Arc::new(Mapping::anonymous(len, PageSize::Small).asked("mapping a clone's memory")?);
    let userfault = Userfault::new(Arc::clone(&mapping), UFFD_FEATURE_MISSING_SHMEM.into());
    let userfault = userfault.asked("watching a clone's memory")?;
    let watched = userfault.register(&(0..len));
    watched.asked("watching a clone's memory")?;
    let (stop, faults) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&faults));
    let image = Arc::clone(&snapshot.image);
    let thread = std::thread::Builder::new().name("baseline".into()).spawn(move || {
        let clock = SystemClock::new();
        let interval = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        while !stopped.load(Ordering::Relaxed) {
            match poll(&mut [PollFd::new(&userfault, PollFlags::IN)], Some(&interval)) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            while let Ok(Some(offset)) = userfault.read_fault() {
                let start = offset / FRAME_BYTES * FRAME_BYTES;
                let page = image.bytes().and_then(|bytes| bytes.get(start..start + FRAME_BYTES));
                let page = page.unwrap_or_default();
                let mut retry = Retry::new(TIMEOUT);
                // No thread gives this memory back, but UFFDIO_COPY can still return EAGAIN.
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
    /// Number of pages copied.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The panic has been reported.
            let _ = thread.join();
        }
    }
}
