//! Real guests with traces of their clones, for tests that are skipped without them.
//!
//! `KALEIDOSCOPE_GUESTS` names a folder of guest folders, each with `ram.bin`, `layout.txt`,
//! `regs.txt` and a folder `traces` of CSV files; a program's trace has the same name in each.

use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::image::{Format, LayoutFile, MemoryImage, RawLayout};
use kaleidoscope_core::manifest::ImageIdentity;
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_core::recording::Recording;
use kaleidoscope_core::registers::{VcpuRegisters, parse_qemu_text};
use kaleidoscope_core::replay::Trace;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A colored guest.
pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) locality: Arc<LocalityOrder>,
    pub(crate) identity: ImageIdentity,
    pub(crate) traces: BTreeMap<String, Trace>,
}

/// Opens the guest's memory and its vCPUs' registers.
pub(crate) fn open(folder: &Path) -> (MemoryImage, Vec<VcpuRegisters>) {
    let layout = LayoutFile::open(&folder.join("layout.txt")).unwrap();
    let format = Format::Raw(RawLayout::File(layout));
    let image = MemoryImage::open(folder.join("ram.bin"), &format).unwrap();
    let registers = fs::read_to_string(folder.join("regs.txt")).unwrap();
    (image, parse_qemu_text(&registers).unwrap())
}

impl Guest {
    fn read(folder: &Path) -> Self {
        let (image, registers) = open(folder);
        let map = color(&image, &ColoringOptions::default().registers(registers)).unwrap().map;
        let identity = ImageIdentity::of(&image, &map).unwrap();
        let locality = Arc::new(LocalityOrder::new(map));
        let traces = entries(&folder.join("traces")).into_iter().map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, Trace::from_csv(File::open(&path).unwrap(), locality.layout()).unwrap())
        });
        let traces = traces.collect();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        Self { name, locality, identity, traces }
    }

    pub(crate) fn recording(&self, trace: &str) -> Recording {
        Recording::from_trace(&self.traces[trace], &self.locality, self.identity)
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// The guests; empty, with a visible notice, if there are none.
pub(crate) fn guests() -> Vec<Guest> {
    let Some(root) = std::env::var_os("KALEIDOSCOPE_GUESTS") else {
        println!(
            "******** SKIPPED: KALEIDOSCOPE_GUESTS is not set: no real guests to record ********"
        );
        return Vec::new();
    };
    let folders = entries(Path::new(&root));
    let guests: Vec<Guest> =
        folders.iter().filter(|f| f.join("traces").is_dir()).map(|f| Guest::read(f)).collect();
    if guests.is_empty() {
        println!("******** SKIPPED: no guest in KALEIDOSCOPE_GUESTS has traces ********");
    }
    guests
}
