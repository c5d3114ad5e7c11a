//! What outlives the handler: a VM's descriptors, and what its VMM has sent.

use crate::failure::Failure;
use crate::supervise::Store;
use kaleidoscope_kvm::uffd::Journal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Names: a VM's descriptors, and a connection whose message may not have come yet.
const VM: &str = "vm-";
const STREAM: &str = "stream-";

/// What a VMM has sent.
pub(super) struct Hello {
    pub(super) pid: u32,
    pub(super) uid: u32,
    /// The regions, as JSON.
    pub(super) message: String,
    pub(super) userfaultfd: OwnedFd,
    /// pidfd.
    pub(super) process: OwnedFd,
    pub(super) stream: Option<UnixStream>,
    /// Of the handler that has served the VM before.
    pub(super) journal: Option<Journal>,
}

/// A VM to serve.
pub(super) enum Connection {
    /// Its VMM has connected.
    New(UnixStream),
    /// Its VMM has connected to the former handler, which may have received the message.
    Begun(UnixStream),
    /// A former handler has served it.
    Stored(Vec<OwnedFd>),
}

/// The notes in a journal.
#[derive(Serialize, Deserialize)]
struct Notes {
    pid: u32,
    uid: u32,
    message: String,
    /// Of the memory file.
    identity: String,
}

/// What a descriptor is, as the kernel names it.
enum Kind {
    Userfaultfd,
    Process,
    Journal,
    Stream,
}

impl Kind {
    fn of(descriptor: &OwnedFd) -> Option<Self> {
        let target = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let target = std::fs::read_link(target).ok()?;
        let target = target.to_string_lossy();
        Some(match target.split([':', '[']).next()? {
            "anon_inode" if target.contains("userfaultfd") => Self::Userfaultfd,
            "anon_inode" | "pidfd" => Self::Process,
            "socket" => Self::Stream,
            "/memfd" => Self::Journal,
            _ => return None,
        })
    }
}

impl Connection {
    /// All that a handler left which has died.
    ///
    /// Also whether that is all: copies of descriptors may not be possible. Those that are missing
    /// stay stored, and the VMM remains the guard's.
    pub(super) fn stored(store: &Store) -> (BTreeMap<u64, Self>, bool) {
        let (mut found, mut is_all) = (BTreeMap::new(), true);
        for name in store.names() {
            let number = |prefix| name.strip_prefix(prefix)?.parse::<u64>().ok();
            if let Some(vm) = number(VM) {
                match store.take_on(&name) {
                    Ok(descriptors) => {
                        found.insert(vm, Self::Stored(descriptors));
                    }
                    Err(_) => is_all = false,
                }
            } else if let Some(vm) = number(STREAM) {
                let stream = store.take_on(&name).ok().and_then(|mut all| all.pop());
                is_all &= stream.is_some();
                // A VM that was served later than its connection was stored goes first.
                if let Some(stream) = stream {
                    found.entry(vm).or_insert_with(|| Self::Begun(stream.into()));
                }
            }
        }
        (found, is_all)
    }
}

impl Hello {
    /// What a VMM has sent to the handler that has died. With the error, the process to end.
    pub(super) fn of(
        descriptors: Vec<OwnedFd>,
        identity: &str,
    ) -> Result<Self, (Failure, Option<OwnedFd>)> {
        let (mut userfaultfd, mut process, mut journal, mut stream) = (None, None, None, None);
        for descriptor in descriptors {
            match Kind::of(&descriptor) {
                Some(Kind::Userfaultfd) => userfaultfd = Some(descriptor),
                Some(Kind::Process) => process = Some(descriptor),
                Some(Kind::Journal) => journal = Some(descriptor),
                Some(Kind::Stream) => stream = Some(UnixStream::from(descriptor)),
                None => {}
            }
        }
        let (Some(userfaultfd), Some(process), Some(journal)) = (userfaultfd, process, journal)
        else {
            return Err((Failure::new("descriptors of the former handler are missing"), None));
        };
        let opened = || {
            let journal = Journal::open(journal).map_err(Failure::new)?;
            let notes: Notes = serde_json::from_slice(journal.notes()).map_err(Failure::new)?;
            if notes.identity != identity {
                return Err(Failure::new("the memory file is not the one that the VM began with"));
            }
            Ok((journal, notes))
        };
        match opened() {
            Ok((journal, Notes { pid, uid, message, .. })) => {
                let journal = Some(journal);
                Ok(Self { pid, uid, message, userfaultfd, process, stream, journal })
            }
            Err(failure) => Err((failure, Some(process))),
        }
    }
}

/// Stores a connection, before its message is received.
pub(super) fn put_stream(store: &Store, vm: u64, stream: &UnixStream) -> Result<(), Failure> {
    let copy = stream.try_clone().map_err(Failure::new)?;
    store.put(&format!("{STREAM}{vm}"), vec![copy.into()])
}

/// Stores a VM, before it is served.
pub(super) fn put(
    store: &Store,
    vm: u64,
    hello: &Hello,
    identity: &str,
    frames: u32,
) -> Result<Journal, Failure> {
    let notes = Notes {
        pid: hello.pid,
        uid: hello.uid,
        message: hello.message.clone(),
        identity: identity.to_owned(),
    };
    let notes = serde_json::to_vec(&notes).map_err(Failure::new)?;
    let journal = Journal::create(&notes, frames).map_err(Failure::new)?;
    let descriptors = [hello.userfaultfd.as_fd(), hello.process.as_fd(), journal.as_fd()];
    let stream = hello.stream.as_ref().map(AsFd::as_fd);
    let copies = descriptors.into_iter().chain(stream).map(|fd| fd.try_clone_to_owned());
    let copies = copies.collect::<Result<_, _>>().map_err(Failure::new)?;
    store.put(&format!("{VM}{vm}"), copies)?;
    store.remove(&format!("{STREAM}{vm}"));
    Ok(journal)
}

/// Removes a VM that is no longer served.
pub(super) fn forget(store: &Store, vm: u64) {
    store.remove(&format!("{VM}{vm}"));
    store.remove(&format!("{STREAM}{vm}"));
}
