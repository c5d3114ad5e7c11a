//! A clone of a captured VM, in a cloud-hypervisor that receives it.

use super::channel::Channel;
use super::codec::{Command, Request, SLOT};
use super::connection::Connection;
use super::faults::Ended;
use super::guest_ram::GuestRam;
use super::memory_files::MemoryFiles;
use super::pages::Pages;
use crate::error::{Error, ErrorKind};
use crate::memory::PageSize;
use crate::uffd::{OnDemand, send};
use kaleidoscope_core::alloc::Reservation;
use kaleidoscope_core::clone::ports::{LocalCache, PageSource};
use kaleidoscope_core::clone::{Engine, EngineOptions};
use kaleidoscope_core::prefetch::{self, LocalityOrder, PrefetchPolicy};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for an answer, unless another one is given. A VMM builds a whole VM meanwhile.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where the pages of a clone go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Backing {
    /// Memory files that the VMM maps. Pages that the policy prefetches are in the guest's memory
    /// before the guest touches them.
    Files,
    /// The answers to the VMM's requests. Prefetched pages wait in this process until they are
    /// asked for.
    Answers,
}

/// A VM of cloud-hypervisor that runs while its memory arrives from a [source](PageSource).
///
/// The VMM was told `receive-migration receiver_url=unix:SOCKET,memory_mode=postcopy`, and the
/// session plays the VM's old host: it hands over memory files without pages, the configuration and
/// the state, and then answers requests for pages. Needs userfaultfd, and no `/dev/kvm`.
///
/// If the session fails or is dropped before the VM has all of its memory, it ends the VMM
/// ([`SessionBuilder::end_vmm`]). If this process is killed, cloud-hypervisor notices, closes its
/// userfaultfd, and then ends the VM: for that instant the guest may read zeros.
///
/// cloud-hypervisor asks for all of RAM in the background, lowest address first, and does not tell
/// these requests from its guest's. The policy sees both. Pages that the guest gives back (balloon)
/// before they have arrived read as the parent's bytes later.
///
/// ```no_run
/// use kaleidoscope_core::clone::LocalSource;
/// use kaleidoscope_core::coloring::{ColoringOptions, color};
/// use kaleidoscope_core::image::{Format, MemoryImage};
/// use kaleidoscope_kvm::cloud_hypervisor::Session;
/// use std::sync::Arc;
///
/// let image = Arc::new(MemoryImage::open("memory.bin", &Format::Auto)?);
/// let map = color(&*image, &ColoringOptions::default())?.map;
/// let (config, state) = (std::fs::read("config.json")?, std::fs::read("state.json")?);
/// let vm = Session::builder(map, LocalSource::new(image), config, state).connect("vm.sock")?;
/// vm.wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Session {
    engine: Arc<Engine>,
    connection: Connection,
}

/// What a [`Session`] is made of.
#[must_use]
pub struct SessionBuilder {
    parts: OnDemand,
    config: Vec<u8>,
    state: Vec<u8>,
    backing: Option<Backing>,
    is_paused: bool,
    ends_vmm: bool,
    before_run: Option<BeforeRun>,
    timeout: Duration,
}

/// Called before the guest runs, with the VMM's number and pidfd.
type BeforeRun = Box<dyn FnOnce(u32, BorrowedFd<'_>) + Send>;

impl Session {
    /// A clone of a [captured](super::capture) VM, with its configuration and state as
    /// cloud-hypervisor sent them. Its memory is filled with the pages of `source`, which are
    /// colored by `map` (a [color map](kaleidoscope_core::color::ColorMap), or its
    /// [`LocalityOrder`] where several sessions share one). Unless told otherwise, the
    /// [predicted](prefetch::predicted) policy prefetches.
    pub fn builder(
        map: impl Into<Arc<LocalityOrder>>,
        source: impl PageSource + 'static,
        config: Vec<u8>,
        state: Vec<u8>,
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
            config,
            state,
            backing: None,
            is_paused: false,
            ends_vmm: true,
            before_run: None,
            timeout: TIMEOUT,
        }
    }

    /// Returns when the VM has all of its memory, or has ended.
    ///
    /// # Errors
    /// - [`ErrorKind::Ended`] when pages cease to come, or [`stop`](Self::stop) was called
    /// - [`ErrorKind::InvalidInput`] or [`ErrorKind::Unsupported`] when the VMM sends what is no
    ///   request for pages of the guest
    /// - [`ErrorKind::Timeout`] when it sends half of a message, or takes no answer
    ///
    /// The VMM has been ended, unless the VM has all of its memory
    /// ([`SessionBuilder::end_vmm`]).
    pub fn wait(&self) -> Result<Ended, Error> {
        self.connection.wait()
    }

    /// The number of the VMM's process, for messages; 0 when this process cannot see it (another PID namespace).
    #[must_use]
    pub fn process(&self) -> u32 {
        self.connection.process()
    }

    /// The engine: for statistics.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Ends the session, and the VMM unless the VM has all of its memory.
    pub fn stop(&self) {
        self.connection.stop();
    }
}

impl SessionBuilder {
    /// Decides what is fetched before it is touched.
    pub fn policy(mut self, policy: Box<dyn PrefetchPolicy>) -> Self {
        self.parts.policy = policy;
        self
    }

    /// How the engine behaves. [`EngineOptions::timeout`] limits the wait for one page.
    pub fn options(mut self, options: EngineOptions) -> Self {
        self.parts.options = options;
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

    /// Where pages go. Unless told otherwise, to [`Backing::Files`] if all memory is configured
    /// with `shared=on` and without huge pages, and to [`Backing::Answers`] if not.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = Some(backing);
        self
    }

    /// Leaves the VM paused. Otherwise it runs once the session has started.
    pub fn paused(mut self, is_paused: bool) -> Self {
        self.is_paused = is_paused;
        self
    }

    /// Whether to end the VMM's process (SIGKILL) when pages of its VM cannot be delivered, which is
    /// what happens unless told otherwise. A VMM that this process may not end keeps waiting, with
    /// the connection open, until this process exits. With `false`, cloud-hypervisor is told of the
    /// failure, and closes its userfaultfd when its guest next needs a page, before it ends the VM:
    /// for that instant the guest may read zeros.
    pub fn end_vmm(mut self, ends_vmm: bool) -> Self {
        self.ends_vmm = ends_vmm;
        self
    }

    /// Calls a function before the guest runs, with the number of the VMM's process (0 when this
    /// process cannot see it) and its pidfd: to have the VMM end with this process, for example.
    pub fn before_run(mut self, call: impl FnOnce(u32, BorrowedFd<'_>) + Send + 'static) -> Self {
        self.before_run = Some(Box::new(call));
        self
    }

    /// The longest wait for the VMM: for its socket, for each answer, and for the rest of a message
    /// that has begun. 30 s unless given.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Connects to the socket at which a VMM waits, and hands the VM over. Waits until the VMM
    /// listens.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] when the configuration is none, or its RAM is not the color
    ///   map's; when the VMM breaks the protocol
    /// - [`ErrorKind::Unsupported`] when the VM is configured with `prefault=on` or pages of 1 GiB,
    ///   with memory or devices that nothing watches (virtio-mem, vhost-user, `file=` without memory
    ///   files), or the VMM is not in postcopy mode: its guest would run on zeros
    /// - [`ErrorKind::Unavailable`] without the right to use userfaultfd
    /// - [`ErrorKind::Refused`] when the VMM refuses a step, whose reason is in its log; when the
    ///   system has no resources
    /// - [`ErrorKind::Timeout`] when the VMM does not answer, and [`ErrorKind::Ended`] when it
    ///   closes the connection
    ///
    /// The guest has not run then; if only the last answer is missing, the VMM has been ended.
    pub fn connect(self, path: impl AsRef<Path>) -> Result<Session, Error> {
        let Self { parts, config, state, backing, is_paused, ends_vmm, before_run, timeout } = self;
        let path = path.as_ref();
        let ram = GuestRam::parse(&config)?;
        if ram.is_prefaulted() {
            let what = "a clone of a VM with prefault=on: cloud-hypervisor fills its memory with \
                 zeros before it asks for pages";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let (files, memory) = MemoryFiles::new(&ram, parts.locality.map().layout())?;
        let backing = backing.unwrap_or(match ram.takes_files() {
            true => Backing::Files,
            false => Backing::Answers,
        });
        if backing == Backing::Answers && ram.has_file() {
            // The same file for the parent and for all clones.
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the VM's memory is configured with file=, and cloud-hypervisor would map that \
                 file, with whatever it holds, in place of the clone's memory",
            ));
        }
        let control = Channel::connect(path, timeout)?;

        let start = Request::new(Command::Start, 0);
        control.request(start, &[], "starting a migration")?;
        if backing == Backing::Files {
            files.slots().try_for_each(|(slot, file)| {
                let what = "handing over a memory file";
                let request = Request::new(Command::MemoryFd, SLOT as u64);
                control.send(&request.to_bytes(), what)?;
                send(control.stream(), &slot.to_le_bytes(), &[file])?;
                control.answered(what)
            })?;
        }
        let request = Request::new(Command::Config, config.len() as u64);
        control.request(request, &config, "handing over the configuration")?;

        // The VMM touches memory as it loads the state.
        let (channel, pages) = (Channel::connect(path, timeout)?, Pages::new(parts, memory));
        let sends_pages = backing == Backing::Answers;
        let connection = Connection::start(channel, pages, files, sends_pages, ends_vmm)?;
        let progress = connection.progress();

        let loading = "handing over the state";
        let request = Request::new(Command::State, state.len() as u64);
        let loaded = control.request(request, &state, loading);
        // A page that did not come is why the state was not loaded.
        loaded.map_err(|error| match progress.outcome() {
            Some(Err(cause)) => cause,
            Some(Ok(_)) | None => error,
        })?;
        if let Err(error) = progress.wait_for_request(control.deadline()) {
            // Without an answer: the VMM finds the connection closed.
            let _ = control.send(&Request::new(Command::Abandon, 0).to_bytes(), loading);
            return Err(error);
        }
        let (last, what) = match is_paused {
            true => (Command::CompletePaused, "leaving the VM paused"),
            false => (Command::Complete, "resuming the VM"),
        };
        if let Some(call) = before_run {
            call(connection.process(), connection.pidfd());
        }
        progress.guest_runs();
        control.request(Request::new(last, 0), &[], what)?;
        let engine = Arc::clone(connection.pages().start()?);
        Ok(Session { engine, connection })
    }
}

impl std::fmt::Debug for SessionBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { parts, config, state, backing, is_paused, ends_vmm, before_run, timeout } = self;
        f.debug_struct("SessionBuilder")
            .field("parts", parts)
            .field("config_bytes", &config.len())
            .field("state_bytes", &state.len())
            .field("backing", backing)
            .field("is_paused", is_paused)
            .field("ends_vmm", ends_vmm)
            .field("before_run", &before_run.is_some())
            .field("timeout", timeout)
            .finish()
    }
}
