//! The VMs of a handler: from a connection to the end of a session.

use super::report::Event;
use super::stored::{self, Connection, Hello};
use super::{Args, TICK};
use crate::failure::Failure;
use crate::interrupt::{Armed, Undo, arm_end};
use crate::serve::event::{Work, json};
use crate::serve::template::Template;
use crate::stdio::{Sayer, print_line};
use crate::supervise::Store;
use kaleidoscope_core::clone::{EngineOptions, LocalSource, Statistics, Stopped};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::replay::Trace;
use kaleidoscope_kvm::firecracker::Handshake;
use kaleidoscope_kvm::uffd::{Handoff, Session, peer, receive};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a VMM may take to send its message after it has connected.
const HANDSHAKE: Duration = Duration::from_secs(1);

/// Most VMs and connections at a time. Each has a few threads and descriptors.
const MAX_VMS: usize = 1024;

/// What the VMs of a process share.
pub(super) struct Handler {
    template: Template,
    /// Of the memory file.
    identity: String,
    users: Vec<u32>,
    threads: usize,
    keeps_vmm: bool,
    is_json: bool,
    sayer: Sayer,
    vms: Arc<Vms>,
    store: Store,
}

/// The VMs and connections of a process.
#[derive(Default)]
pub(super) struct Vms(Mutex<State>);

#[derive(Default)]
struct State {
    accepted: u64,
    active: BTreeMap<u64, Active>,
}

/// A connection, from its handshake on a VM.
#[derive(Default)]
struct Active {
    process: Option<u32>,
    session: Option<Arc<Session>>,
    /// The statistics before all missing pages were installed; `None` until they are.
    filled: Option<Statistics>,
}

/// Why a connection is not served, and the VMM to end.
struct Refused {
    failure: Failure,
    vmm: Option<Arc<OwnedFd>>,
}

impl<T: Into<Failure>> From<T> for Refused {
    fn from(failure: T) -> Self {
        Self { failure: failure.into(), vmm: None }
    }
}

/// A VM whose faults are answered.
struct Served {
    session: Arc<Session>,
    process: u32,
    /// The VMM (pidfd).
    vmm: Arc<OwnedFd>,
    start: Instant,
    /// Ends the VMM.
    armed: Option<Armed>,
    /// Firecracker keeps its end open, too.
    _stream: Option<UnixStream>,
}

impl Handler {
    pub(super) fn new(
        args: &Args,
        template: Template,
        identity: String,
        store: Store,
        sayer: Sayer,
    ) -> Self {
        let mut users = args.user.clone();
        users.push(rustix::process::geteuid().as_raw());
        Self {
            template,
            identity,
            users,
            threads: usize::from(args.threads),
            keeps_vmm: args.keep_vmm,
            is_json: args.json,
            sayer,
            vms: Arc::default(),
            store,
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn vms(&self) -> Arc<Vms> {
        Arc::clone(&self.vms)
    }

    /// Looks after the supervisor, on a thread of its own: the others may wait for it.
    pub(super) fn tend(handler: &Arc<Self>) -> Result<(), Failure> {
        let handler = Arc::downgrade(handler);
        let tend = move || {
            while let Some(handler) = handler.upgrade() {
                if handler.store.tend() {
                    handler.say(&Event::SupervisorReplaced {});
                }
                drop(handler);
                std::thread::sleep(TICK);
            }
        };
        let thread = std::thread::Builder::new().name("supervisor".to_owned()).spawn(tend);
        let failed = |error| Failure::new(format_args!("the system gives no thread: {error}"));
        thread.map(drop).map_err(failed)
    }

    /// Prints an event: as a result for programs, as a message for people.
    pub(super) fn say(&self, event: &Event) {
        if self.is_json {
            // A reader that went away must not end the VMs.
            let _ = print_line(json(event));
        } else {
            self.sayer.say(event.text());
        }
    }

    /// Serves a connection on a thread of its own.
    pub(super) fn serve(handler: &Arc<Self>, stream: UnixStream) {
        let Some(vm) = handler.vms.add() else {
            handler.say(&Event::Refused {
                vm: 0,
                error: format!("refused: there are {MAX_VMS} VMs"),
                vmm_ended: false,
            });
            return;
        };
        Self::spawn(handler, vm, Connection::New(stream));
    }

    /// Goes on with what a handler served that has died. Returns the last VM's number, unless some
    /// remain the former handler's.
    pub(super) fn take_over(handler: &Arc<Self>) -> Option<u64> {
        let (stored, is_all) = Connection::stored(&handler.store);
        let last = stored.keys().next_back().copied().unwrap_or(0);
        for (vm, connection) in stored {
            handler.vms.add_as(vm);
            Self::spawn(handler, vm, connection);
        }
        is_all.then_some(last)
    }

    fn spawn(handler: &Arc<Self>, vm: u64, connection: Connection) {
        let own = Arc::clone(handler);
        let thread = std::thread::Builder::new().name(format!("vm{vm}"));
        let spawned = thread.spawn(move || own.run(vm, connection));
        if let Err(error) = spawned {
            handler.vms.remove(vm);
            handler.say(&Event::Refused {
                vm,
                error: format!("refused: the system gives no thread: {error}"),
                vmm_ended: false,
            });
        }
    }

    fn run(&self, vm: u64, connection: Connection) {
        /// Also after a panic, the VM is no longer waited for.
        struct Last<'a>(&'a Handler, u64);
        impl Drop for Last<'_> {
            fn drop(&mut self) {
                stored::forget(&self.0.store, self.1);
                self.0.vms.remove(self.1);
            }
        }
        let _last = Last(self, vm);
        match self.start(vm, connection) {
            Ok(served) => self.wait(vm, served),
            Err(Refused { failure, vmm }) => {
                let vmm = vmm.filter(|_| !self.keeps_vmm);
                if let Some(vmm) = &vmm {
                    // Fails only for a process that has ended.
                    let _ = Undo::Kill(Arc::clone(vmm)).perform();
                }
                let error = failure.to_string();
                self.say(&Event::Refused { vm, error, vmm_ended: vmm.is_some() });
            }
        }
    }

    /// From a connection to a session.
    fn start(&self, vm: u64, connection: Connection) -> Result<Served, Refused> {
        let start = Instant::now();
        let taken_over = matches!(connection, Connection::Stored(_));
        let hello = match connection {
            Connection::New(stream) => self.receive(vm, stream)?,
            Connection::Begun(stream) => {
                // If the message is gone, the userfaultfd is, too.
                let peer = peer(&stream).ok().filter(|peer| self.users.contains(&peer.uid));
                let peer = peer.map(|peer| Arc::new(peer.process));
                self.receive(vm, stream)
                    .map_err(|Refused { failure, vmm }| Refused { failure, vmm: vmm.or(peer) })?
            }
            Connection::Stored(stored) => Hello::of(stored, &self.identity)
                .map_err(|(failure, process)| Refused { failure, vmm: process.map(Arc::new) })?,
        };
        let Hello { pid, uid, .. } = hello;
        // Its guest will wait for its pages, and nothing else would tell the VMM.
        let vmm = hello.process.try_clone().map_err(Failure::new)?;
        let vmm = Arc::new(vmm);
        let refused = |failure: Failure| Refused { failure, vmm: Some(Arc::clone(&vmm)) };
        if !self.vms.claim(vm, pid) {
            // The VM that it has is served on.
            let why = format!("refused: process {pid} has a VM here already");
            return Err(Failure::new(why).into());
        }
        let handshake = Handshake::parse(hello.message.as_bytes())
            .map_err(|error| refused(Failure::new(format!("process {pid}: {error}"))))?;
        let layout = self.template.image.layout();
        handshake.check_layout(layout).map_err(|error| {
            refused(
                Failure::new(format!("process {pid}: {error}"))
                    .hint("--memory has to be the snapshot's that the VM loads; see also --format"),
            )
        })?;
        let armed = match self.keeps_vmm {
            true => None,
            false => {
                arm_end(pid, hello.process.as_fd()).map_err(|error| refused(Failure::new(error)))?
            }
        };
        let journal = match hello.journal {
            Some(journal) => journal,
            None => stored::put(&self.store, vm, &hello, &self.identity, layout.frames())
                .map_err(&refused)?,
        };
        let Template { image, guest, policy, free_frames, .. } = &self.template;
        let source = LocalSource::new(image.clone());
        let session = Session::builder(Arc::clone(&guest.locality), source)
            .userfaultfd(hello.userfaultfd, handshake.regions().iter().copied())
            .page_size(handshake.page_size())
            .policy(policy.build(&guest.locality, &Trace::default()))
            .options(EngineOptions::default().free_frames(*free_frames))
            .threads(self.threads)
            .until_exit(hello.process)
            .journal(journal)
            .start()
            .map_err(|error| refused(Failure::new(format!("process {pid}: {error}"))))?;
        let session = Arc::new(session);
        self.vms.began(vm, &session);
        let took = start.elapsed();
        self.say(&Event::started(vm, (pid, uid), &handshake, took, taken_over));
        Ok(Served { session, process: pid, vmm, start, armed, _stream: hello.stream })
    }

    /// What a VMM sends.
    fn receive(&self, vm: u64, stream: UnixStream) -> Result<Hello, Refused> {
        stored::put_stream(&self.store, vm, &stream)?;
        stream.set_read_timeout(Some(HANDSHAKE)).map_err(Failure::new)?;
        let hello = receive(&stream).map_err(Failure::new)?;
        let Handoff { uid, pid, message, descriptors, process, .. } = hello;
        if !self.users.contains(&uid) {
            let failure = format!("refused: process {pid} is of user {uid}");
            let hint = format!("--user {uid} allows this user's processes to connect");
            return Err(Failure::new(failure).hint(hint).into());
        }
        let has_sent = !descriptors.is_empty();
        let [userfaultfd] = match <[OwnedFd; 1]>::try_from(descriptors) {
            Ok(one) => one,
            Err(all) => {
                let count = all.len();
                let failure = format!("process {pid} sent {count} descriptors, not one");
                let vmm = has_sent.then(|| Arc::new(process));
                return Err(Refused { failure: Failure::new(failure), vmm });
            }
        };
        // What is no text is no handshake either, and refused as such.
        let message = String::from_utf8_lossy(&message).into_owned();
        let stream = Some(stream);
        Ok(Hello { pid, uid, message, userfaultfd, process, stream, journal: None })
    }

    /// Waits for the end of a session, and says how it came.
    fn wait(&self, vm: u64, served: Served) {
        let Served { session, process, vmm, start, armed, .. } = served;
        let ended = session.wait();
        let filled = self.vms.forget_session(vm);
        let statistics = filled.clone().unwrap_or_else(|| session.engine().statistics());
        let error = match ended {
            Ok(()) => None,
            Err(Stopped::Cancelled) if filled.is_some() => None,
            Err(why) => Some(why.to_string()),
        };
        let is_armed = armed.is_some();
        let vmm_ended = error.is_some() && is_armed;
        match armed {
            Some(armed) if vmm_ended => drop(armed),
            armed => armed.into_iter().for_each(Armed::disarm),
        }
        if filled.is_some() {
            // Before the VM runs alone: nothing is to be taken over any more.
            stored::forget(&self.store, vm);
        }
        // Lets a VM that has all of its memory run alone; keeps the descriptors of any other.
        drop(session);
        let filled = filled.is_some();
        let work = Work::of(&statistics, start.elapsed());
        let is_left = error.is_some() && !is_armed;
        self.say(&Event::Ended { vm, process, error, vmm_ended, filled, work });
        if is_left {
            // Its guest waits as long as a copy of its userfaultfd is open.
            let _ = poll(&mut [PollFd::new(&*vmm, PollFlags::IN)], None);
        }
    }
}

impl Vms {
    /// Connections that are served.
    pub(super) fn count(&self) -> usize {
        self.0.lock().active.len()
    }

    fn add(&self) -> Option<u64> {
        let mut state = self.0.lock();
        if state.active.len() >= MAX_VMS {
            return None;
        }
        state.accepted += 1;
        let vm = state.accepted;
        state.active.insert(vm, Active::default());
        Some(vm)
    }

    /// Adds a VM that another handler has served.
    fn add_as(&self, vm: u64) {
        let mut state = self.0.lock();
        state.accepted = state.accepted.max(vm);
        state.active.insert(vm, Active::default());
    }

    /// Whether each VM to this number is served, or is no VM any more.
    pub(super) fn have_started(&self, last: u64) -> bool {
        self.0.lock().active.range(..=last).all(|(_, active)| active.session.is_some())
    }

    fn remove(&self, vm: u64) {
        let removed = self.0.lock().active.remove(&vm);
        // Outside of the lock: a session may wait for its threads.
        drop(removed);
    }

    /// Whether the process has no other VM here. Process 0 stands for any that cannot be seen.
    fn claim(&self, vm: u64, process: u32) -> bool {
        let mut state = self.0.lock();
        if process != 0 && state.active.values().any(|a| a.process == Some(process)) {
            return false;
        }
        if let Some(active) = state.active.get_mut(&vm) {
            active.process = Some(process);
        }
        true
    }

    fn began(&self, vm: u64, session: &Arc<Session>) {
        if let Some(active) = self.0.lock().active.get_mut(&vm) {
            active.session = Some(Arc::clone(session));
        }
    }

    fn forget_session(&self, vm: u64) -> Option<Statistics> {
        let mut state = self.0.lock();
        let active = state.active.get_mut(&vm)?;
        let session = active.session.take();
        let filled = active.filled.take();
        drop(state);
        drop(session);
        filled
    }

    /// Installs all missing pages of each VM that has none of them filled, so that it can run
    /// alone, and ends its session.
    pub(super) fn fill(&self) {
        for (vm, session) in self.sessions() {
            let statistics = session.engine().statistics();
            // An error ends the session by itself.
            if session.fill().is_ok() {
                if let Some(active) = self.0.lock().active.get_mut(&vm) {
                    active.filled = Some(statistics);
                }
                session.stop();
            }
        }
    }

    /// Ends all sessions, and with them their VMMs.
    pub(super) fn abandon(&self) {
        self.sessions().iter().for_each(|(_, session)| session.stop());
    }

    fn sessions(&self) -> Vec<(u64, Arc<Session>)> {
        let state = self.0.lock();
        let sessions = state.active.iter().filter(|(_, active)| active.filled.is_none());
        sessions
            .filter_map(|(vm, active)| Some((*vm, Arc::clone(active.session.as_ref()?))))
            .collect()
    }
}
