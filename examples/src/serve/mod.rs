//! `kaleidoscope serve`: a page server for a frozen image.

mod parent;
mod report;
mod signals;
mod watched;

use crate::analysis::LayoutArgs;
use crate::failure::{Failure, print};
use crate::tls::TlsArgs;
use crate::verify::Verify;
use kaleidoscope_core::clone::ServerAddress;
use kaleidoscope_core::wire::server::{ServedImage, Server, ServerOptions};
use kaleidoscope_core::wire::transport::{ListenError, ListenOptions, Listener};
use parent::Parent;
use report::Serving;
use signals::Signals;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use watched::{Tell, Watched};

/// Serve a frozen image's pages to clones.
///
/// Colors the image, and hands clones what they start from and every page that they ask for, over Unix sockets and TCP,
/// until it is told to stop (Ctrl-C). The image must not change meanwhile: its file's size and time stamps are watched, and
/// when they change, clients get errors instead of pages. With --verify all, each page is compared before it is sent.
///
/// TCP reaches no further than this host unless there are certificates on both sides.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope serve ram.bin --layout layout.txt --listen unix:/run/parent.sock
      to clones on this host that run as the same user
  kaleidoscope serve mem.snap --format firecracker --listen unix:/run/parent.sock --listen tcp:127.0.0.1:7411
      at two addresses
  kaleidoscope serve ram.bin --manifest guest.kscope --listen tcp:[::]:7411 --cert me.pem --key me.key --ca ca.pem
      colored before; to other hosts that have a certificate of the same authority
  kaleidoscope serve ram.bin --listen unix:/run/a.sock --replica tcp:other:7411 --descriptor guest.kclone
      clones go on with another server of the same image when this one is gone; what they start from is in a file, too")]
pub(crate) struct Args {
    /// Memory image: raw, ELF core, or a VMM's memory file
    image: PathBuf,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Registers of the vCPUs, as `info registers -a` of QEMU's monitor prints them
    #[arg(long, value_name = "FILE", conflicts_with = "manifest")]
    regs: Option<PathBuf>,
    /// The image's colors, from `kaleidoscope color -o`, instead of coloring it now
    #[arg(long, value_name = "FILE.kscope")]
    manifest: Option<PathBuf>,
    /// Serve without colors: a guest that is not Linux, for example
    #[arg(long, conflicts_with_all = ["manifest", "regs"])]
    no_colors: bool,
    /// Where to listen: unix:PATH or tcp:HOST:PORT; may be given several times. Port 0 is any free one
    #[arg(long, value_name = "ADDRESS", required = true)]
    listen: Vec<ServerAddress>,
    /// Another server with the same image, for clones to go on with; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    replica: Vec<ServerAddress>,
    /// State of vCPUs and devices to hand to clones, in whatever form the VMM has it
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Have clones fetch free frames, too, whatever those hold
    #[arg(long)]
    fetch_free: bool,
    /// What to compare with what it was when the server started. `all` reads the whole image first, notices each changed
    /// byte, and lets clients check all that they pulled; in place of a manifest's fingerprints
    #[arg(long, value_enum, value_name = "FRAMES", default_value_t = Verify::Sample)]
    verify: Verify,
    /// Keep what clones start from in a file
    #[arg(long, value_name = "FILE.kclone")]
    descriptor: Option<PathBuf>,
    /// Another user whose processes may connect to Unix sockets, by number; may be given several times
    #[arg(long, value_name = "UID")]
    user: Vec<u32>,
    /// DNS name of a client that may connect over TLS; may be given several times. All of the authority's unless given
    #[arg(long, value_name = "NAME", requires = "cert")]
    allow: Vec<String>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Print a JSON object when it serves, and one when it has stopped, each on a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Serves until a signal comes.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let options = self.options()?;
        let mut parent = Parent::open(self)?;

        // Blocked in every thread that is started from here on.
        let signals = Signals::block()?;
        let listeners: Vec<_> = self.listen.iter().map(|at| bind(at, &options)).collect();
        let listeners = listeners.into_iter().collect::<Result<Vec<_>, _>>()?;
        let listening: Vec<_> = listeners.iter().map(Listener::local_address).collect();
        parent.describe(&listening, &self.replica)?;
        if let Some(path) = &self.descriptor {
            parent.descriptor.write_file(path).map_err(|e| Failure::at(path, e))?;
        }
        let descriptor: Arc<[u8]> = parent.descriptor.to_bytes().map_err(Failure::new)?.into();
        let serving = Serving::new(&self.image, &parent, &listening, descriptor.len());
        let tell: Tell = Box::new(|text| {
            // There may be nobody to hear of it any more.
            let _ = writeln!(std::io::stderr(), "{text}");
        });
        let memory = Arc::new(Watched::new(parent.memory, parent.whole, tell));
        let image = ServedImage {
            colors: parent.descriptor.map().cloned().map(Arc::new),
            descriptor,
            ..ServedImage::new(memory, parent.descriptor.identity().digest)
        };
        let server = Server::start(vec![image], listeners, ServerOptions::default())
            .map_err(|e| Failure::new(format_args!("cannot serve: {e}")))?;
        print(&if self.json { serving.json() } else { serving.text() })?;

        signals.wait()?;
        server.stop();
        let statistics = server.statistics();
        print(&if self.json { report::json(&statistics) } else { report::text(&statistics) })
    }

    fn options(&self) -> Result<ListenOptions, Failure> {
        let mut options = ListenOptions::default();
        if !self.user.is_empty() {
            options.users.extend(&self.user);
            // The file lets everybody in; the kernel says who came, and others are turned away.
            options.mode = 0o666;
        }
        options.tls = self.tls.server(&self.allow)?;
        options.on_refusal = Some(Arc::new(|refusal| eprintln!("turned away: {refusal}")));
        Ok(options)
    }
}

fn bind(address: &ServerAddress, options: &ListenOptions) -> Result<Listener, Failure> {
    Listener::bind(address, options.clone()).map_err(|error| {
        let needs_tls = matches!(error, ListenError::NotLoopback { .. });
        let failure = Failure::new(error);
        if needs_tls {
            failure.hint(
                "--cert, --key and --ca take them; `openssl` and every other CA tool make them",
            )
        } else {
            failure
        }
    })
}
