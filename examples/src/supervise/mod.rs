//! Two processes, each of which starts the other again: a handler that serves VMs, and a supervisor
//! that holds copies of its descriptors.
//!
//! While a copy of a VM's userfaultfd is open, its vCPUs wait for missing pages. When the handler
//! dies, the supervisor starts another one, which gets the descriptors and goes on. When the
//! supervisor dies, the handler starts another one. When both are dead, the [guard] ends the VMMs:
//! it is a third process, which waits until all ends of its pipe are closed, and both hold one.
//!
//! The handler talks to its supervisor as to systemd (sd_notify(3), sd_listen_fds(3)): it stores
//! descriptors with `FDSTORE=1` at `NOTIFY_SOCKET`, and gets those that its predecessor stored with
//! `LISTEN_FDS`. So systemd can be the supervisor, too.
//!
//! [guard]: crate::interrupt::guard

mod inherited;
mod process;
mod store;
mod supervisor;

pub(crate) use store::Store;

use crate::failure::Failure;
use process::ROLE;
use std::path::{Path, PathBuf};
use supervisor::Supervisor;

/// Names of descriptors that are not the command's: the guard's pipe, and the socket at which a
/// supervisor receives.
const GUARD: &str = "guard";
const NOTIFY: &str = "notify";

/// Name of the pidfd of the process that started this one.
const STARTER: &str = "starter";

/// Names of descriptors that are no VM's.
const SHARED: [&str; 4] = [GUARD, NOTIFY, SOCKET, MEMORY];

/// Names under which a handler stores the socket at which VMMs connect, and the memory file.
pub(crate) const SOCKET: &str = "socket";
pub(crate) const MEMORY: &str = "memory";

/// Which process holds copies of a handler's descriptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Holder {
    /// A process that this command starts
    Own,
    /// systemd: its file descriptor store
    Systemd,
    /// None: the VMMs end when the handler dies
    None,
}

/// Runs `serve` as the handler that `holder` supervises. `socket` is the handler's; the supervisor
/// listens beside it.
pub(crate) fn run(
    holder: Holder,
    socket: &Path,
    serve: impl FnOnce(Store) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let role = std::env::var(ROLE).ok();
    match (holder, role.as_deref()) {
        (Holder::None, _) => serve(Store::none()),
        (Holder::Systemd, _) => serve(Store::of_systemd(inherited::take()?)?),
        (Holder::Own, Some("handler")) => serve(Store::of_supervisor(inherited::take()?)?),
        (Holder::Own, Some("supervisor")) => Supervisor::adopt(inherited::take()?)?.run(),
        (Holder::Own, _) => Supervisor::start(&address(socket)?)?.run(),
    }
}

/// Where the supervisor listens.
fn address(socket: &Path) -> Result<PathBuf, Failure> {
    let mut name = std::path::absolute(socket).map_err(Failure::new)?.into_os_string();
    name.push(".notify");
    Ok(name.into())
}
