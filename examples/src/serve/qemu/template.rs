//! What all clones start from: the captured VM and its colors.

use super::Args;
use crate::failure::Failure;
use crate::qemu::folder::{COLORS, Captured};
use crate::replay::policies::{Guest, Prepared};
use kaleidoscope_core::clone::{FreeFrames, trust};
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::image::MemoryImage;
use kaleidoscope_core::manifest::{ImageIdentity, Limits, Manifest};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_kvm::qemu::SavedVm;
use std::sync::Arc;

/// What all clones start from.
pub(super) struct Template {
    pub(super) image: Arc<MemoryImage>,
    pub(super) saved: SavedVm,
    /// The name of the RAM in migration streams.
    pub(super) ram: String,
    pub(super) guest: Guest,
    pub(super) policy: Prepared,
    pub(super) free_frames: FreeFrames,
    pub(super) is_colored: bool,
}

impl Template {
    pub(super) fn open(args: &Args) -> Result<Self, Failure> {
        let captured = Captured::open(&args.from)?;
        let saved = captured.saved()?;
        let image = captured.image()?;
        let machine = &captured.machine;
        let block = saved.block(&machine.ram_block).map_or(0, |block| block.bytes);
        let bytes = image.layout().bytes();
        if block != machine.ram_bytes || bytes != block {
            let what = format!("{bytes} bytes of memory, and {block} in the state");
            return Err(Failure::at(&args.from, what)
                .hint("the folder's files are not of one VM: capture it again"));
        }
        let path = captured.path(COLORS);
        let limits = Limits::for_frames(image.layout().frames());
        let manifest = Manifest::read_file(&path, &limits).ok();
        let manifest = manifest.and_then(|mut manifest| {
            let is_of_image = manifest.verify(&image).is_ok();
            is_of_image.then_some(manifest)
        });
        let is_colored = manifest.is_some();
        let failed = |error: &dyn std::fmt::Display| Failure::at(&args.from, error);
        let (map, identity) = match manifest {
            Some(manifest) => (manifest.map, manifest.identity),
            None => {
                let map = ColorMap::unknown(image.layout().clone());
                let identity = ImageIdentity::of(&image, &map).map_err(|error| failed(&error))?;
                (map, identity)
            }
        };
        let free_frames = if args.fetch_free || !is_colored {
            FreeFrames::Fetch
        } else {
            trust(&image, &map).map_err(|error| failed(&error))?.free_frames()
        };
        let guest = Guest { locality: Arc::new(LocalityOrder::new(map)), identity };
        Ok(Self {
            policy: args.policy.prepare(&guest)?,
            image: Arc::new(image),
            saved,
            ram: machine.ram_block.clone(),
            guest,
            free_frames,
            is_colored,
        })
    }
}
