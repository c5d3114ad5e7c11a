//! Serving the userfaultfds of a VM that another program runs.

use super::memory::{End, UserfaultMemory};
use super::region::{Region, frames_of};
use super::running::{OnDemand, Running};
use super::shard::Shard;
use crate::error::KvmError;
use crate::memory::PageSize;
use crate::sys::Descriptor;
use kaleidoscope_core::alloc::Reservation;
use kaleidoscope_core::clone::ports::{LocalCache, PageSource};
use kaleidoscope_core::clone::{Engine, EngineOptions, Stopped};
use kaleidoscope_core::prefetch::{self, LocalityOrder, PrefetchPolicy};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A VM whose memory comes from a [source](PageSource), through userfaultfds that its own program
/// opened: Firecracker, cloud-hypervisor, or yours. The memory need not be mapped in this process,
/// and `/dev/kvm` is not used.
///
/// The session answers faults on threads of its own until the VM ends ([`wait`](Self::wait)). When
/// it fails, and when it is dropped while the VM runs, vCPUs that touch a missing page keep
/// waiting: the descriptors stay open until this process exits, because the kernel fills missing
/// pages with zeros once the last copy of a descriptor is closed. End the VM then.
///
/// ```no_run
/// use kaleidoscope_core::clone::LocalSource;
/// use kaleidoscope_core::coloring::{ColoringOptions, color};
/// use kaleidoscope_core::image::{Format, MemoryImage};
/// use kaleidoscope_kvm::uffd::{Region, Session, receive};
/// use std::{error::Error, os::unix::net::UnixListener, sync::Arc};
///
/// fn main() -> Result<(), Box<dyn Error>> {
///     let image = Arc::new(MemoryImage::open("mem.bin", &Format::Auto)?);
///     let map = color(&*image, &ColoringOptions::default())?.map;
///     let (vmm, _) = UnixListener::bind("uffd.sock")?.accept()?;
///     let hello = receive(&vmm)?; // A message, and descriptors by SCM_RIGHTS.
///     let address = *hello.message.first_chunk().ok_or("no address")?; // Your own protocol.
///     let ram = Region::at_offset(u64::from_le_bytes(address), map.layout().bytes(), 0);
///     let mut vm = Session::builder(map, LocalSource::new(image)); // The policy is `predicted`.
///     for userfaultfd in hello.descriptors {
///         vm = vm.userfaultfd(userfaultfd, [ram]);
///     }
///     vm.until_exit(hello.process).start()?.wait()?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Session {
    running: Running,
    memory: Arc<UserfaultMemory>,
}

/// What a [`Session`] is made of.
#[must_use]
pub struct SessionBuilder {
    parts: OnDemand,
    userfaultfds: Vec<(OwnedFd, Vec<Region>)>,
    ends: Vec<End>,
    threads: usize,
}

impl Session {
    /// A session that fills a VM's memory with the pages of `source`, which are colored by `map` (a
    /// [color map](kaleidoscope_core::color::ColorMap), or its [`LocalityOrder`] where several
    /// sessions share one). Unless told otherwise, the [predicted](prefetch::predicted) policy
    /// prefetches.
    pub fn builder(
        map: impl Into<Arc<LocalityOrder>>,
        source: impl PageSource + 'static,
    ) -> SessionBuilder {
        let locality = map.into();
        let parts = OnDemand {
            policy: prefetch::predicted(&locality),
            locality,
            source: Arc::new(source),
            options: EngineOptions::default(),
            reservation: None,
            local_cache: None,
            cache: None,
            pages: PageSize::Small,
        };
        SessionBuilder { parts, userfaultfds: Vec::new(), ends: Vec::new(), threads: 1 }
    }

    /// Returns when the VM has ended.
    ///
    /// # Errors
    /// [`Stopped`] when pages cease to come before. The VM has to be ended then: vCPUs that touch
    /// missing pages wait.
    pub fn wait(&self) -> Result<(), Stopped> {
        self.running.join();
        let engine = self.running.engine();
        match engine.stopped() {
            Some(why) if !engine.has_ended() => Err(why),
            Some(_) | None => Ok(()),
        }
    }

    /// The engine: for statistics, and for giving memory back.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        self.running.engine()
    }

    /// Ends the session. [`wait`](Self::wait) returns [`Stopped::Cancelled`] unless the VM has
    /// ended.
    pub fn stop(&self) {
        self.running.engine().stop();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let engine = self.running.engine();
        if !engine.has_ended() && !engine.is_whole() {
            self.memory.leak_descriptors();
        }
    }
}

impl SessionBuilder {
    /// Serves a userfaultfd, on which UFFDIO_API and UFFDIO_REGISTER for these regions were called.
    /// A VM may have several; their regions together are all of its RAM.
    pub fn userfaultfd(
        mut self,
        descriptor: OwnedFd,
        regions: impl IntoIterator<Item = Region>,
    ) -> Self {
        self.userfaultfds.push((descriptor, regions.into_iter().collect()));
        self
    }

    /// The VM has ended when the process of this pidfd has exited.
    pub fn until_exit(mut self, process: OwnedFd) -> Self {
        self.ends.push(End::Exited(process));
        self
    }

    /// The VM has ended when the other end of this connection is closed.
    pub fn until_closed(mut self, connection: impl Into<OwnedFd>) -> Self {
        self.ends.push(End::Closed(connection.into()));
        self
    }

    /// Decides what is fetched before it is touched.
    pub fn policy(mut self, policy: Box<dyn PrefetchPolicy>) -> Self {
        self.parts.policy = policy;
        self
    }

    /// How the engine behaves. The granule follows from the page size.
    pub fn options(mut self, options: EngineOptions) -> Self {
        self.parts.options = options;
        self
    }

    /// The page size of the VM's memory: 4 KiB unless it is of hugetlb pages.
    pub fn page_size(mut self, pages: PageSize) -> Self {
        self.parts.pages = pages;
        self
    }

    /// Threads that answer faults, at least one: about as many as the VM's vCPUs, and not more than
    /// processors.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// The VM's share of the host's memory.
    pub fn reservation(mut self, reservation: Reservation) -> Self {
        self.parts.reservation = Some(reservation);
        self
    }

    /// Pages that are on this host already.
    pub fn local_cache(mut self, cache: Arc<dyn LocalCache>) -> Self {
        self.parts.local_cache = Some(cache);
        self
    }

    /// Starts to answer faults.
    ///
    /// # Errors
    /// [`KvmError::State`] when the regions are not the guest's RAM, or a descriptor is no
    /// userfaultfd; [`KvmError::Refused`] when the system gives no thread.
    pub fn start(self) -> Result<Session, KvmError> {
        let layout = self.parts.locality.map().layout();
        let pages = self.parts.pages;
        let all: Vec<Region> = self.userfaultfds.iter().flat_map(|(_, r)| r).copied().collect();
        let mut frames = frames_of(&all, layout, pages)?.into_iter();
        let mut shards = Vec::with_capacity(all.len());
        for (n, (descriptor, regions)) in self.userfaultfds.into_iter().enumerate() {
            let descriptor = Descriptor::adopt(descriptor).map_err(|error| {
                KvmError::State(format!("descriptor {n} is no userfaultfd ({error})"))
            })?;
            let descriptor = Arc::new(descriptor);
            for (region, frames) in regions.iter().zip(frames.by_ref()) {
                let descriptor = Arc::clone(&descriptor);
                shards.push(Shard::foreign(descriptor, region.address(), frames, pages));
            }
        }
        let memory = Arc::new(UserfaultMemory::foreign(shards, pages, self.ends));
        let threads = self.threads.max(1);
        let running = Running::start(self.parts, Arc::clone(&memory), threads, |_, _| {})?;
        Ok(Session { running, memory })
    }
}

impl std::fmt::Debug for SessionBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { parts, userfaultfds, ends, threads } = self;
        f.debug_struct("SessionBuilder")
            .field("parts", parts)
            .field("userfaultfds", userfaultfds)
            .field("ends", ends)
            .field("threads", threads)
            .finish()
    }
}
