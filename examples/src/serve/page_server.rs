//! `kaleidoscope serve IMAGE`: a page server for a snapshot image.

use super::parent::Parent;
use super::report::{self, Serving};
use super::watched::{Tell, Watched};
use crate::args::{ColoringArgs, ImageArgs};
use crate::failure::Failure;
use crate::interrupt::{Armed, Stop, Undo, arm_after};
use crate::outfile::{Files, Output};
use crate::stdio::{Sayer, print};
use crate::tls::TlsArgs;
use crate::verify::Verify;
use kaleidoscope_core::clone::ServerAddress;
use kaleidoscope_core::wire::server::{ServedImage, Server, ServerOptions};
use kaleidoscope_core::wire::transport::{ListenError, ListenOptions, Listener};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Serve a snapshot image's pages to clones, or a VMM's memory.
///
/// Colors the image, and hands clones what they start from and every page that they ask for, over
/// Unix sockets and TCP, until it is told to stop (Ctrl-C). The image must not change meanwhile:
/// its file's size and time stamps are watched, and when they change, clients get errors instead of
/// pages. With --verify all, each page is compared before it is sent.
///
/// TCP reaches no further than this host unless there are certificates on both sides.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope serve ram.bin --layout layout.txt --listen unix:/run/parent.sock
      to clones on this host that run as the same user
  kaleidoscope serve mem.snap --format firecracker \\
          --listen unix:/run/parent.sock --listen tcp:127.0.0.1:7411
      at two addresses
  kaleidoscope serve ram.bin --map-from guest.kscope --listen tcp:[::]:7411 \\
          --cert me.pem --key me.key --ca ca.pem
      colored before; to other hosts that have a certificate of the same authority
  kaleidoscope serve ram.bin --listen unix:/run/a.sock --replica tcp:other:7411 \\
          --descriptor-to guest.kclone
      clones switch to another server of the same image if this one fails; what they start from is
      also in a file
  kaleidoscope serve ram.bin --regs regs.txt --page-tables --listen unix:/run/parent.sock
      a guest whose kernel is not known, colored by its page tables
  kaleidoscope serve firecracker --socket uffd.sock --memory snapshot.mem
      a Firecracker VM's memory, through its userfaultfd
  kaleidoscope serve qemu --from snapshot --to in.sock
      a QEMU VM's memory, by a postcopy migration
  kaleidoscope serve cloud-hypervisor parent --socket clone.sock
      a clone of a captured VM of cloud-hypervisor, as a migration")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) image: ImageArgs,
    #[command(flatten)]
    pub(super) coloring: ColoringArgs,
    /// The image's colors, from `kaleidoscope color -o`, instead of coloring it now
    #[arg(long, value_name = "FILE.kscope", conflicts_with_all = ["regs", "page_tables"])]
    pub(super) map_from: Option<PathBuf>,
    /// Serve without colors: a guest that is not Linux, for example
    #[arg(long, conflicts_with_all = ["map_from", "regs", "page_tables"])]
    pub(super) no_colors: bool,
    /// Where to listen: unix:PATH or tcp:HOST:PORT; may be given several times. Port 0 is any free
    /// one
    #[arg(long, value_name = "ADDRESS", required = true)]
    listen: Vec<ServerAddress>,
    /// Another server with the same image, for clones to go on with; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    replica: Vec<ServerAddress>,
    /// State of vCPUs and devices to hand to clones, in whatever form the VMM has it
    #[arg(long, value_name = "FILE")]
    pub(super) state: Option<PathBuf>,
    /// Have clones fetch free frames, too, whatever those hold
    #[arg(long)]
    pub(super) fetch_free: bool,
    /// What to compare with what it was when the server started. `all` reads the whole image
    /// first, notices each changed byte, and lets clients check all that they pulled; in place
    /// of a manifest's fingerprints
    #[arg(long, value_enum, value_name = "FRAMES", default_value_t = Verify::Sample)]
    pub(super) verify: Verify,
    /// Write what clones start from to a file
    #[arg(long, value_name = "FILE.kclone")]
    descriptor_to: Option<PathBuf>,
    /// Another user whose processes may connect to Unix sockets, by number; may be given several
    /// times
    #[arg(long, value_name = "UID")]
    user: Vec<u32>,
    /// DNS name of a client that may connect over TLS; may be given several times. All of the
    /// authority's unless given
    #[arg(long, value_name = "NAME", requires = "cert")]
    allow: Vec<String>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Print a JSON object when it serves, and one when it has stopped, each on a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What is read and written.
    pub(super) fn files(&self) -> Files {
        let reads = self.image.inputs().reads(&self.map_from).reads(&self.state);
        reads.reads(self.tls.inputs()).writes(&self.descriptor_to)
    }

    /// Serves until a signal comes.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let options = self.options()?;
        let kept = self.descriptor_to.as_deref().map(Output::lasting).transpose()?;
        let mut parent = Parent::open(self)?;

        // From here on there are sockets to remove.
        let stop = Stop::take();
        let listeners: Vec<_> = self.listen.iter().map(|at| bind(at, &options)).collect();
        let listeners = listeners.into_iter().collect::<Result<Vec<_>, _>>()?;
        let listening: Vec<_> = listeners.iter().map(Listener::local_address).collect();
        // For a second signal: at the first one the listeners remove their sockets themselves.
        let sockets = sockets(&listening)?;
        parent.describe(&listening, &self.replica)?;
        let descriptor: Arc<[u8]> = parent.descriptor.to_bytes().map_err(Failure::new)?.into();
        if let Some(output) = kept {
            output.write(|out| out.write_all(&descriptor))?;
        }
        let serving = Serving::new(self.image.path(), &parent, listening, descriptor.len());
        let sayer = Sayer::start()?;
        let tell: Tell = Box::new(move |text| sayer.say(text));
        let memory = Arc::new(Watched::new(parent.memory, parent.whole, tell));
        let image = ServedImage {
            colors: parent.descriptor.map().cloned().map(Arc::new),
            descriptor,
            ..ServedImage::new(memory, parent.descriptor.identity().digest)
        };
        let server = Server::start(vec![image], listeners, ServerOptions::default())
            .map_err(|e| Failure::new(format_args!("cannot serve: {e}")))?;
        let is_tls = self.tls.is_given();
        print(&if self.json { serving.json() } else { serving.text(is_tls) })?;

        let ended = wait(&stop, &server);
        server.stop();
        sockets.into_iter().for_each(Armed::disarm);
        let statistics = server.statistics();
        print(&if self.json { report::json(&statistics) } else { report::text(&statistics) })?;
        ended
    }

    fn options(&self) -> Result<ListenOptions, Failure> {
        let mut options = ListenOptions::default();
        if !self.user.is_empty() {
            options.users.extend(&self.user);
            // Any user may connect; the kernel tells the user of a peer, and others are refused.
            options.mode = 0o666;
        }
        options = options.tls(self.tls.server(&self.allow)?);
        // Said by another thread: the one that accepts clients must not wait for a reader.
        let sayer = Sayer::start()?;
        options.on_refusal = Some(Arc::new(move |refusal| sayer.say(report::turned_away(refusal))));
        Ok(options)
    }
}

/// Returns when a signal comes, or with an error when the server has ended by itself.
fn wait(stop: &Stop, server: &Server) -> Result<(), Failure> {
    while !stop.comes_within(Duration::from_millis(250)) {
        if let Some(panicked) = server.failure() {
            return Err(Failure::new(format_args!("the server ended: {panicked}")));
        }
    }
    Ok(())
}

/// Has a signal that ends the process at once remove its sockets.
fn sockets(listening: &[ServerAddress]) -> Result<Vec<Armed>, Failure> {
    let mut armed = Vec::new();
    for address in listening {
        if let ServerAddress::Unix(path) = address {
            let path = std::path::absolute(path).map_err(|e| Failure::at(path, e))?;
            let undo = || Ok::<_, Failure>(((), Undo::Remove(path)));
            armed.push(arm_after(undo)?.1);
        }
    }
    Ok(armed)
}

fn bind(address: &ServerAddress, options: &ListenOptions) -> Result<Listener, Failure> {
    Listener::bind(address, options.clone()).map_err(|error| {
        let hint = hint(&error);
        Failure::new(error).maybe_hint(hint)
    })
}

/// What to do where an address cannot be listened at.
fn hint(error: &ListenError) -> Option<&'static str> {
    Some(match error {
        ListenError::NotLoopback { .. } => {
            "`kaleidoscope keys -o DIR --server-name NAME` makes certificates for a server that clients reach by this name: \
             give it --cert DIR/server.pem --key DIR/server-key.pem --ca DIR/ca.pem"
        }
        ListenError::Unresolved { .. } => {
            "give an address of this host, or [::] for all of them: tcp:192.0.2.7:7411"
        }
        ListenError::InUse { .. } => "stop that server, or choose another path",
        ListenError::Io { source, .. } => return hint_of_system(source.kind()),
        ListenError::NotASocket { .. } | _ => return None,
    })
}

fn hint_of_system(error: ErrorKind) -> Option<&'static str> {
    let hints = [
        (
            ErrorKind::AddrInUse,
            "another program listens there: choose another port; port 0 is any free one",
        ),
        (
            ErrorKind::AddrNotAvailable,
            "the address is none of this host's: `ip address` lists them",
        ),
        (ErrorKind::NotFound, "the socket's folder has to exist"),
        (
            ErrorKind::PermissionDenied,
            "a socket needs a folder in which this user may create files; ports below 1024 are root's",
        ),
    ];
    hints.into_iter().find_map(|(kind, hint)| (kind == error).then_some(hint))
}
