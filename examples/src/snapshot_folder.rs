//! A folder with a captured VM of cloud-hypervisor: what `capture` writes and `serve` reads.

use crate::failure::Failure;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Most bytes of a configuration or a state.
const MAX_BYTES: u64 = 64 << 20;

/// Names of the files in a folder.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFolder {
    /// All RAM, in the order of guest-physical addresses.
    pub(crate) memory: PathBuf,
    /// Where the RAM is.
    pub(crate) layout: PathBuf,
    /// The VM's configuration.
    pub(crate) config: PathBuf,
    /// The state of devices and vCPUs.
    pub(crate) state: PathBuf,
}

impl SnapshotFolder {
    pub(crate) fn new(folder: &Path) -> Self {
        let [memory, layout, config, state] =
            ["ram.bin", "layout.txt", "config.json", "state.json"].map(|name| folder.join(name));
        Self { memory, layout, config, state }
    }

    /// All files.
    pub(crate) fn all(&self) -> [&PathBuf; 4] {
        let Self { memory, layout, config, state } = self;
        [memory, layout, config, state]
    }
}

/// Reads a configuration or a state.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error| {
        Failure::at(path, error).hint(
            "the folder is one that `kaleidoscope capture cloud-hypervisor` has written to its end",
        )
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_BYTES.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Failure::at(path, format_args!("it has more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}
