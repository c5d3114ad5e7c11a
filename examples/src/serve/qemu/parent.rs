//! What all clones start from: the captured VM and its colors.

use super::Args;
use crate::failure::Failure;
use crate::qemu::folder::{COLORS, Captured, RAM};
use crate::serve::template::{Template, TemplateArgs};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_kvm::qemu::SavedVm;

/// What all clones start from.
pub(super) struct Parent {
    pub(super) memory: Template,
    pub(super) saved: SavedVm,
    /// The name of the RAM in migration streams.
    pub(super) ram: String,
}

impl Parent {
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
        let memory = Template::of(
            image,
            &TemplateArgs {
                memory: &captured.path(RAM),
                kept: captured.path(COLORS),
                colors: None,
                policy: &args.policy,
                fetch_free: args.fetch_free,
            },
        )?;
        Ok(Self { memory, saved, ram: machine.ram_block.clone() })
    }
}
