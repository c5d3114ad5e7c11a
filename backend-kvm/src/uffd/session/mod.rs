//! Serving the userfaultfds of a VM that another program runs.

mod claim;
mod handoff;
mod orphans;
mod region;

pub use handoff::{Handoff, peer, receive, send};
pub(in crate::uffd) use orphans::Orphan;
pub use region::Region;
pub(crate) use region::frames_of;

use super::journal::Journal;
use super::memory::{End, UserfaultMemory};
use super::running::{OnDemand, Running};
use super::shard::Shard;
use crate::error::{Error, ErrorKind};
use crate::memory::PageSize;
use crate::sys::Descriptor;
use claim::Claim;
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::alloc::Reservation;
use kaleidoscope_core::clone::ports::{LocalCache, PageSource};
use kaleidoscope_core::clone::{Engine, EngineOptions, Stopped};
use kaleidoscope_core::prefetch::{self, Access, LocalityOrder, PrefetchPolicy};
use region::check_apart;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A VM whose memory comes from a [source](PageSource), through userfaultfds that its own program
/// opened: Firecracker, cloud-hypervisor, or yours. The memory need not be mapped in this process,
/// and `/dev/kvm` is not used.
///
/// The session answers faults on threads of its own until the VM ends ([`wait`](Self::wait)). When
/// it fails, and when it is dropped while the VM runs and pages are missing, vCPUs that touch a
/// missing page keep waiting, because the kernel fills missing pages with zeros once the last copy
/// of a descriptor is closed. The descriptors therefore stay open until a later session of this
/// process finds that the VM has ended, or until this process exits. End the VM then. A session
/// that is dropped when all pages are resident leaves the VM to run on its own.
///
/// A VM without UFFD_FEATURE_EVENT_REMOVE may give back only pages that it has touched: what is
/// given back before its first touch reads as the parent's bytes, since nothing reports it.
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
    /// Whether all pages were resident when the session was stopped.
    was_whole: AtomicBool,
    _claims: Vec<Claim>,
}

/// What a [`Session`] is made of.
#[must_use]
pub struct SessionBuilder {
    parts: OnDemand,
    userfaultfds: Vec<(OwnedFd, Vec<Region>)>,
    ends: Vec<End>,
    threads: usize,
    journal: Option<Journal>,
}

impl Session {
    /// A session that fills a VM's memory with the pages of `source`, which are colored by `map` (a
    /// [color map](kaleidoscope_core::color::ColorMap), or its [`LocalityOrder`] where several
    /// sessions share one). Unless told otherwise, the [predicted](prefetch::predicted) policy
    /// prefetches, and free frames are filled with zeros if the map proves that safe for the very
    /// snapshot that `source` has; see
    /// [`FreeFrames::Auto`](kaleidoscope_core::clone::FreeFrames::Auto). A map of another snapshot
    /// costs time, and no wrong page.
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
        SessionBuilder {
            parts,
            userfaultfds: Vec::new(),
            ends: Vec::new(),
            threads: 1,
            journal: None,
        }
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

    /// Installs all missing pages, one after the other, while faults are answered. Afterwards the
    /// session can be [stopped](Self::stop) and dropped, and the VM runs on its own.
    ///
    /// # Errors
    /// [`Stopped`] when the session has ended, or a page cannot be fetched.
    pub fn fill(&self) -> Result<(), Stopped> {
        let engine = self.running.engine();
        let frames = engine.statistics().frames;
        (0..frames).try_for_each(|frame| engine.fault(FrameIndex(frame), Access::Read))
    }

    /// Ends the session. [`wait`](Self::wait) returns [`Stopped::Cancelled`] unless the VM has
    /// ended.
    pub fn stop(&self) {
        if self.running.engine().is_whole() {
            self.was_whole.store(true, Ordering::Relaxed);
        }
        self.running.engine().stop();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A stopped engine does not tell.
        let is_whole = *self.was_whole.get_mut() || self.running.engine().is_whole();
        self.running.stop();
        self.running.join();
        if self.running.engine().has_ended() {
            orphans::sweep();
        } else if !is_whole || self.memory.unwatch().is_err() {
            self.memory.orphan().keep();
        } else {
            self.memory.drain();
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

    /// Keeps the session's state where another process finds it. With the [`Journal`] of a session
    /// that began before, in a process that has died, this one goes on serving its VM: give it the
    /// same userfaultfd, regions and image.
    pub fn journal(mut self, journal: Journal) -> Self {
        self.journal = Some(journal);
        self
    }

    /// Starts to answer faults.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] when the regions are not the guest's RAM, or a descriptor is
    ///   no userfaultfd
    /// - [`ErrorKind::InvalidState`] when a session of this process serves a descriptor already
    /// - [`ErrorKind::Unsupported`] when a session with a journal has several userfaultfds, or one
    ///   without UFFD_FEATURE_EVENT_REMOVE
    /// - [`ErrorKind::Refused`] when the system has no resources for a thread
    ///
    /// The VM's userfaultfds then stay open as after a failed session, so that its vCPUs wait.
    pub fn start(self) -> Result<Session, Error> {
        orphans::sweep();
        let Self { parts, userfaultfds, ends, threads, journal } = self;
        let (mut descriptors, mut refused) = (Vec::new(), None);
        for (n, (descriptor, regions)) in userfaultfds.into_iter().enumerate() {
            match Descriptor::adopt(descriptor) {
                Ok(descriptor) => descriptors.push((Arc::new(descriptor), regions)),
                Err((_, error)) => refused = refused.or(Some((n, error))),
            }
        }
        let orphan = Orphan {
            descriptors: descriptors.iter().map(|(d, _)| Arc::clone(d)).collect(),
            forked: Vec::new(),
            ends: Arc::new(ends),
        };
        let started = match refused {
            Some((n, error)) => {
                let what = format!("descriptor {n} is no userfaultfd");
                let error = std::io::Error::from(error);
                Err(Error::caused_by(ErrorKind::InvalidInput, what, error))
            }
            None => serve(parts, descriptors, &orphan.ends, threads.max(1), journal),
        };
        started.inspect_err(|_| orphan.keep())
    }
}

fn serve(
    parts: OnDemand,
    descriptors: Vec<(Arc<Descriptor>, Vec<Region>)>,
    ends: &Arc<Vec<End>>,
    threads: usize,
    journal: Option<Journal>,
) -> Result<Session, Error> {
    let pages = parts.pages;
    let all: Vec<Region> = descriptors.iter().flat_map(|(_, regions)| regions).copied().collect();
    let mut frames = frames_of(&all, parts.locality.map().layout(), pages)?.into_iter();
    let (mut shards, mut claims) = (Vec::with_capacity(all.len()), Vec::new());
    for (n, (descriptor, regions)) in descriptors.into_iter().enumerate() {
        check_apart(&regions)?;
        claims.push(Claim::of(&*descriptor).map_err(|error| {
            let what = format!(
                "descriptor {n} cannot be served (one session at a time serves a userfaultfd, with \
                 all of its regions)"
            );
            Error::caused_by(ErrorKind::InvalidState, what, std::io::Error::from(error))
        })?);
        for (region, frames) in regions.iter().zip(frames.by_ref()) {
            let descriptor = Arc::clone(&descriptor);
            shards.push(Shard::foreign(descriptor, region.address(), frames, pages));
        }
    }
    let mut memory = UserfaultMemory::foreign(shards, pages, Arc::clone(ends));
    if let Some(journal) = journal {
        memory.keep_in(journal)?;
    }
    let memory = Arc::new(memory);
    let running = Running::start(parts, Arc::clone(&memory), threads, |_, _| {})?;
    Ok(Session { running, memory, was_whole: AtomicBool::new(false), _claims: claims })
}

impl std::fmt::Debug for SessionBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { parts, userfaultfds, ends, threads, journal } = self;
        f.debug_struct("SessionBuilder")
            .field("parts", parts)
            .field("userfaultfds", userfaultfds)
            .field("ends", ends)
            .field("threads", threads)
            .field("journal", journal)
            .finish()
    }
}
