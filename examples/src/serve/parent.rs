//! What is served: an image, and what its clones start from.

use super::page_server::Args;
use crate::analysis::color_image_with;
use crate::failure::Failure;
use crate::map::explained;
use crate::verify::{Verify, threads};
use kaleidoscope_core::clone::{
    Descriptor, DescriptorError, FreeFrames, MAX_SERVERS, MAX_STATE, ServerAddress, Trust, trust,
};
use kaleidoscope_core::coloring::Rules;
use kaleidoscope_core::fingerprint::{Fingerprints, WholeImage};
use kaleidoscope_core::image::MemoryImage;
use kaleidoscope_core::manifest::{ImageIdentity, Limits, Manifest};
use kaleidoscope_core::memory::GuestMemory;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// What is served.
pub(super) struct Parent {
    pub(super) memory: Arc<MemoryImage>,
    pub(super) descriptor: Descriptor,
    /// What free frames hold; `None` without colors.
    pub(super) trust: Option<Trust>,
    /// What every page was, if all are to be compared.
    pub(super) whole: Option<WholeImage>,
}

impl Parent {
    /// Opens the image and finds out its colors.
    pub(super) fn open(args: &Args) -> Result<Self, Failure> {
        let image = args.image.open()?;
        // What clones start from has a limit; it is said before the work, not after it.
        let fits = Limits::default().admit_frames(image.layout().frames());
        fits.map_err(|e| Failure::at(args.image.path(), e))?;
        let descriptor = describe(args, &image)?;
        let trust = descriptor.map().map(|map| trust(&image, map)).transpose();
        let trust = trust.map_err(|e| Failure::at(args.image.path(), e))?;
        let free_frames = match trust {
            Some(trust) if !args.fetch_free => trust.free_frames(),
            _ => FreeFrames::Fetch,
        };
        let mut descriptor = descriptor.with_free_frames(free_frames).with_holes_of(&image);
        if let Some(path) = &args.state {
            let state = read_state(path)?;
            descriptor = descriptor.with_state(state).map_err(|e| Failure::at(path, e))?;
        }
        let whole = match args.verify {
            Verify::Sample => None,
            Verify::All => {
                let digest = descriptor.identity().digest;
                let whole = WholeImage::of(&image, &digest, threads());
                let whole = whole.map_err(|e| Failure::at(args.image.path(), e))?;
                let table = Fingerprints::clone(whole.table());
                descriptor = descriptor.with_fingerprints(table).map_err(Failure::new)?;
                Some(whole)
            }
        };
        // What was found in a file that changed meanwhile may be of two times.
        image.check_unchanged().map_err(Failure::new)?;
        Ok(Self { memory: Arc::new(image), descriptor, trust, whole })
    }

    /// Puts the servers into the descriptor: those that this one is known by elsewhere, and its
    /// replicas.
    pub(super) fn describe(
        &mut self,
        listening: &[ServerAddress],
        replicas: &[ServerAddress],
    ) -> Result<(), Failure> {
        let own = listening.iter().filter_map(reachable);
        let servers: Vec<_> = own.chain(replicas.iter().cloned()).take(MAX_SERVERS).collect();
        self.descriptor = self.descriptor.clone().with_servers(servers).map_err(Failure::new)?;
        Ok(())
    }
}

fn describe(args: &Args, image: &MemoryImage) -> Result<Descriptor, Failure> {
    let failed = |error: DescriptorError| Failure::at(args.image.path(), error);
    if args.no_colors {
        return Descriptor::of(image, None).map_err(failed);
    }
    let manifest = match &args.map_from {
        Some(path) => {
            let limits = Limits::for_frames(image.layout().frames());
            let mut manifest =
                Manifest::read_file(path, &limits).map_err(|error| explained(path, &error))?;
            manifest.verify(image).map_err(|e| {
                Failure::at(path, e).hint("the manifest is of another image: color this one anew")
            })?;
            manifest
        }
        None => {
            let registers = args.image.registers(image)?;
            let analysis = color_image_with(args.coloring, image, registers, Rules::default())?;
            let map = analysis.coloring.map;
            let identity =
                ImageIdentity::of(image, &map).map_err(|e| Failure::at(args.image.path(), e))?;
            let mut manifest = Manifest::new(map, identity);
            manifest.notes = analysis.notes;
            manifest
        }
    };
    Descriptor::of_manifest(manifest).map_err(failed)
}

fn read_state(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut state = Vec::new();
    let most = u64::try_from(MAX_STATE).unwrap_or(u64::MAX);
    let file = File::open(path).map_err(|e| Failure::at(path, e))?;
    // One byte more than allowed, to see whether there is more.
    let read = file.take(most.saturating_add(1)).read_to_end(&mut state);
    read.map_err(|e| Failure::at(path, e))?;
    Ok(state)
}

/// The address as clones use it: an absolute path, and no address that stands for all of a host's.
fn reachable(address: &ServerAddress) -> Option<ServerAddress> {
    match address {
        ServerAddress::Unix(path) => std::path::absolute(path).ok().map(ServerAddress::Unix),
        ServerAddress::Tcp(at) => {
            let is_any = |ip: IpAddr| ip.is_unspecified();
            let known = at.parse::<SocketAddr>().ok();
            (!known.is_some_and(|at| is_any(at.ip()))).then(|| address.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_get_addresses_that_lead_here() {
        let reachable = |text: &str| reachable(&text.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(reachable("tcp:127.0.0.1:1"), Some("tcp:127.0.0.1:1".into()));
        assert_eq!(reachable("tcp:parent:1"), Some("tcp:parent:1".into()));
        assert_eq!(reachable("tcp:0.0.0.0:1"), None);
        assert_eq!(reachable("tcp:[::]:1"), None);
        assert_eq!(reachable("unix:/run/k"), Some("unix:/run/k".into()));
        assert!(reachable("unix:k").unwrap().starts_with("unix:/"));
    }
}
