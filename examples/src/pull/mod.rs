//! `kaleidoscope pull`: a clone's memory from a page server into a file.

mod copy;
mod fetch;
mod reach;
mod report;
mod source;
mod view;

use crate::args::{layout_text, some_seconds};
use crate::failure::Failure;
use crate::outfile::{Files, Output, create_if};
use crate::replay::policies::{Guest, PolicyChoice, for_a_clone};
use crate::stdio::print;
use crate::tls::TlsArgs;
use crate::verify::{Verify, threads};
use copy::Copy;
use kaleidoscope_core::clone::{
    Background, CloneId, Descriptor, DescriptorLimits, FreeFrames, ServerAddress,
};
use kaleidoscope_core::fingerprint::WholeImage;
use kaleidoscope_core::manifest::Manifest;
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_core::replay::Trace;
use kaleidoscope_core::wire::client::{Addresses, Client, ClientOptions};
use kaleidoscope_core::wire::transport::ConnectOptions;
use kaleidoscope_core::wire::{Codecs, Features};
use reach::Reached;
use report::Verified;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Fetch a guest's memory from a page server, as a clone does, into a file.
///
/// The file is the guest's RAM without holes, and equal to the served image byte for byte; it has
/// its name once it is whole and right. Whatever the order in which the policy has pages come, all
/// come.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope pull unix:/run/parent.sock -o copy.bin
      what a clone is likely to need first, then the rest
  kaleidoscope pull tcp:127.0.0.1:7411 unix:/run/other.sock -o copy.bin --compress
      from the second server when the first one is gone; compressed on the way
  kaleidoscope pull tcp:parent:7411 -o copy.bin --cert me.pem --key me.key --ca ca.pem
      from another host, each known by a certificate of the same authority
  kaleidoscope pull unix:/run/parent.sock -o copy.bin --policy recorded=boot.krec --rate 10000
      in the order of a recording, the rest no faster than 10,000 pages a second
  kaleidoscope pull unix:/run/parent.sock -o copy.bin --layout-to layout.txt --map-to copy.kscope
      with its memory layout and colors, for `kaleidoscope color` and `kaleidoscope map`
  kaleidoscope pull unix:/run/parent.sock -o copy.bin --skip-free --json
      zeros for free memory; for programs")]
pub(crate) struct Args {
    /// Where page servers of the same image listen: unix:PATH or tcp:HOST:PORT; the first is asked
    /// first
    #[arg(value_name = "ADDRESS", required = true)]
    servers: Vec<ServerAddress>,
    /// The file to write; it is replaced if it exists
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Which pages come first: a policy of `kaleidoscope replay`, other than the oracle
    #[arg(long, value_name = "NAME", default_value = "predicted", value_parser = for_a_clone)]
    policy: PolicyChoice,
    /// Most pages a second of those that the policy does not ask for
    #[arg(long, value_name = "PAGES", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Leave free frames zero instead of fetching them, where the server says that the guest does
    /// not mind
    #[arg(long)]
    skip_free: bool,
    /// Have pages compressed on the way
    #[arg(long)]
    compress: bool,
    /// Do without the checksum of each page
    #[arg(long)]
    no_checksums: bool,
    /// How long a page may take, whatever servers are tried, before the pull ends with an error
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = some_seconds)]
    timeout: Duration,
    /// What to compare with the image once it is pulled. Every frame unless given, where the
    /// server lets its clients (`serve --verify all`), or else a sample
    #[arg(long, value_enum, value_name = "FRAMES")]
    verify: Option<Verify>,
    /// Write where the file's bytes belong, for `--layout` of other commands
    #[arg(long, value_name = "FILE")]
    layout_to: Option<PathBuf>,
    /// Write the guest's colors, for `kaleidoscope map` and `serve --map-from`
    #[arg(long, value_name = "FILE.kscope")]
    map_to: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Name that the server's certificate is for, where that is not the host's in the address
    #[arg(long, value_name = "NAME", requires = "cert")]
    server_name: Option<String>,
    /// Connect to other hosts without TLS: any host on the way can read and change the guest's
    /// memory
    #[arg(long)]
    insecure: bool,
    /// Print a JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        let reads = Files::new().reads(self.policy.input()).reads(self.tls.inputs());
        reads.writes([&self.output]).writes(&self.layout_to).writes(&self.map_to)
    }

    /// Pulls the image.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let start = Instant::now();
        let id = CloneId::random().map_err(Failure::new)?;
        let servers = Arc::new(self.servers()?);
        let client = self.connect(&servers, id)?;
        let descriptor = read_descriptor(&servers, &client)?.for_clone(id);
        if let (Some(path), None) = (&self.map_to, descriptor.map()) {
            return Err(uncolored(path));
        }
        let free_frames = self.free_frames(&descriptor)?;
        let whole = self.whole(&descriptor)?;
        let locality = descriptor.locality().map_err(Failure::new)?;
        let guest = Guest { locality, identity: descriptor.identity() };
        let order = fetch::Order {
            policy: self.policy.prepare(&guest)?.build(&guest.locality, &Trace::default()),
            background: match self.rate {
                Some(pages_per_second) => Background::Throttled { pages_per_second },
                None => Background::Full,
            },
            free_frames,
            timeout: self.timeout,
        };

        let layout = create_if(self.layout_to.as_ref())?;
        let manifest = self.map_to.as_deref().map(Output::lasting).transpose()?;
        let copy = Arc::new(Copy::create(&self.output, descriptor.layout(), descriptor.holes())?);
        let statistics = fetch::all(&client, &guest.locality, &copy, order)?;
        let verified = match whole {
            Some(whole) => self.verify_all(&copy, &whole, &guest.locality, free_frames)?,
            None => self.verify(&copy, &descriptor, free_frames)?,
        };
        let unavailable = copy.unavailable();
        copy.keep()?;
        if let Some(output) = layout {
            let text = layout_text(descriptor.layout());
            output.write(|out| out.write_all(text.as_bytes()))?;
        }
        if let Some(output) = manifest {
            write_manifest(output, &descriptor)?;
        }
        let pulled = report::Pulled {
            output: &self.output,
            descriptor: &descriptor,
            policy: &self.policy,
            statistics: &statistics,
            client: client.statistics(),
            unavailable,
            verified,
            took: start.elapsed(),
        };
        print(&if self.json { pulled.json() } else { pulled.text() })
    }

    fn servers(&self) -> Result<Reached, Failure> {
        let mut options = ConnectOptions::default();
        options.insecure = self.insecure;
        options = options.tls(self.tls.client(self.server_name.as_deref())?);
        options.timeout = options.timeout.min(self.timeout);
        Ok(Reached::new(Addresses { servers: self.servers.clone(), options }))
    }

    fn connect(&self, servers: &Arc<Reached>, clone: CloneId) -> Result<Arc<Client>, Failure> {
        let codecs = if self.compress { Codecs::ALL } else { Codecs::NONE };
        let defaults = ClientOptions::default();
        let options = defaults
            .clone()
            .clone_id(clone)
            .features(Features { checksums: !self.no_checksums, codecs })
            .deadline(self.timeout)
            .timeout(defaults.timeout.min(self.timeout))
            .handshake(defaults.handshake.min(self.timeout));
        let client = Client::connect(Arc::clone(servers) as _, options);
        client.map(Arc::new).map_err(|error| servers.failure(error))
    }

    fn free_frames(&self, descriptor: &Descriptor) -> Result<FreeFrames, Failure> {
        match (self.skip_free, descriptor.free_frames()) {
            (false, _) => Ok(FreeFrames::Fetch),
            (true, FreeFrames::Zero) => Ok(FreeFrames::Zero),
            (true, FreeFrames::Auto | FreeFrames::Fetch) => {
                Err(Failure::new("the server does not say that free frames may be left out")
                    .hint("pull without --skip-free; `kaleidoscope serve` tells why"))
            }
        }
    }

    /// What all of the image was, if all is to be compared.
    fn whole(&self, descriptor: &Descriptor) -> Result<Option<WholeImage>, Failure> {
        if self.verify == Some(Verify::Sample) {
            return Ok(None);
        }
        let digest = descriptor.identity().digest;
        let table = descriptor.fingerprints();
        let whole = table.and_then(|table| WholeImage::from_table(table, &digest));
        match (whole, self.verify) {
            (None, Some(Verify::All)) => {
                Err(Failure::new("the server does not say what every frame of its image is")
                    .hint("it does with `kaleidoscope serve --verify all`; without --verify, a sample is compared"))
            }
            (whole, _) => Ok(whole),
        }
    }

    /// Compares a sample of the file with the image's identity; it is an error if it differs.
    fn verify(
        &self,
        copy: &Copy,
        descriptor: &Descriptor,
        free_frames: FreeFrames,
    ) -> Result<Verified, Failure> {
        match (descriptor.verify(copy), free_frames) {
            (Ok(()), _) => Ok(Verified::Sample),
            // Free frames are in the sample that is compared.
            (Err(_), FreeFrames::Zero) => Ok(Verified::Nothing),
            (Err(error), FreeFrames::Auto | FreeFrames::Fetch) => Err(self.other_bytes(error)),
        }
    }

    /// Compares each frame of the file with the image's; it is an error if one differs.
    fn verify_all(
        &self,
        copy: &Copy,
        whole: &WholeImage,
        locality: &LocalityOrder,
        free_frames: FreeFrames,
    ) -> Result<Verified, Failure> {
        let is_wanted = |frame| free_frames == FreeFrames::Fetch || !locality.is_free(frame);
        let found = whole.first_difference(copy, &is_wanted, threads());
        match (found.map_err(|e| Failure::at(&self.output, e))?, free_frames) {
            (Some(frame), _) => {
                Err(self
                    .other_bytes(format_args!("frame {frame} has other bytes than the image's")))
            }
            (None, FreeFrames::Auto | FreeFrames::Fetch) => Ok(Verified::All),
            (None, FreeFrames::Zero) => Ok(Verified::AllButFree),
        }
    }

    fn other_bytes(&self, error: impl std::fmt::Display) -> Failure {
        Failure::at(&self.output, error)
            .hint("the server sent other bytes than those of the image that it describes")
            .finding()
    }
}

fn read_descriptor(servers: &Reached, client: &Client) -> Result<Descriptor, Failure> {
    let bytes = client.fetch_descriptor().map_err(|error| servers.lost(error))?;
    if bytes.is_empty() {
        return Err(Failure::new("the server says nothing of its image but its size").hint(
            "`kaleidoscope serve` tells clones what they start from; another server may be told to",
        ));
    }
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::new(format_args!("the server's description of its image: {error}"))
    };
    let limits = DescriptorLimits::for_frames(client.frames());
    let descriptor = Descriptor::from_bytes(&bytes, &limits).map_err(|e| wrong(&e))?;
    if descriptor.layout().frames() != client.frames()
        || descriptor.identity().digest != client.image()
    {
        return Err(wrong(&"it is of another image than the server's"));
    }
    Ok(descriptor)
}

fn uncolored(path: &Path) -> Failure {
    Failure::at(path, "the image was served without colors")
        .hint("serve it without --no-colors, or pull without --map-to")
}

fn write_manifest(output: Output, descriptor: &Descriptor) -> Result<(), Failure> {
    let Some(map) = descriptor.map() else {
        return Err(uncolored(output.path()));
    };
    let mut manifest = Manifest::new(map.clone(), descriptor.identity());
    manifest.notes = descriptor.notes().to_vec();
    let bytes = manifest.to_bytes().map_err(|e| Failure::at(output.path(), e))?;
    output.write(|out| out.write_all(&bytes))
}
