//! A folder with a captured VM: its memory, its devices' state and its command line.

use crate::args::{ImageFormat, LayoutArgs};
use crate::failure::Failure;
use crate::outfile::{Output, write};
use kaleidoscope_core::image::MemoryImage;
use kaleidoscope_kvm::qemu::SavedVm;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// The RAM, as it is in the memory backend.
pub(crate) const RAM: &str = "ram.bin";
/// Where the RAM's bytes belong.
pub(crate) const LAYOUT: &str = "layout.txt";
/// The vCPUs' registers.
pub(crate) const REGISTERS: &str = "regs.txt";
/// The state of all else, as a migration stream.
pub(crate) const STATE: &str = "state";
/// What the RAM's pages are.
pub(crate) const COLORS: &str = "colors.kscope";
/// The machine, with its command line and disks.
pub(crate) const MACHINE: &str = "machine.json";

/// All of them.
pub(crate) const ALL: [&str; 6] = [RAM, LAYOUT, REGISTERS, STATE, COLORS, MACHINE];

/// The format of `machine.json`.
const VERSION: u32 = 1;

/// Longest `machine.json` in bytes.
const LONGEST: u64 = 16 << 20;

/// A disk of a captured VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Disk {
    /// QEMU's name of the device, or empty.
    pub(crate) device: String,
    /// QEMU's name of the topmost node.
    pub(crate) node: String,
    /// The image at the instant of the capture. Nothing writes to it any more.
    pub(crate) image: PathBuf,
    /// The image's format.
    pub(crate) format: String,
    /// The image, and those below it.
    pub(crate) chain: Vec<PathBuf>,
}

/// A captured VM's machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    version: u32,
    /// QEMU's version. Another version may not load the state.
    pub(crate) emulator: String,
    /// QEMU's program.
    pub(crate) program: PathBuf,
    /// The folder that it was started in.
    pub(crate) folder: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// The name of the RAM's memory backend.
    pub(crate) backend: String,
    /// The name of the RAM in migration streams.
    pub(crate) ram_block: String,
    /// RAM in bytes.
    pub(crate) ram_bytes: u64,
    /// Disks that the guest may write to.
    pub(crate) disks: Vec<Disk>,
}

impl Machine {
    /// A machine without disks.
    pub(crate) fn new(emulator: String, program: PathBuf, folder: PathBuf) -> Self {
        Self {
            version: VERSION,
            emulator,
            program,
            folder,
            arguments: Vec::new(),
            backend: String::new(),
            ram_block: String::new(),
            ram_bytes: 0,
            disks: Vec::new(),
        }
    }

    /// Writes `machine.json`.
    pub(crate) fn save(&self, folder: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).map_err(Failure::new)? + "\n";
        Output::lasting(&folder.join(MACHINE))?.write(|out| out.write_all(text.as_bytes()))
    }
}

/// A captured VM.
#[derive(Debug)]
pub(crate) struct Captured {
    /// Its folder, as an absolute path.
    pub(crate) folder: PathBuf,
    /// Its machine.
    pub(crate) machine: Machine,
}

impl Captured {
    /// Opens a folder, and checks that its files belong together.
    pub(crate) fn open(folder: &Path) -> Result<Self, Failure> {
        let folder = std::path::absolute(folder).map_err(|error| Failure::at(folder, error))?;
        let path = folder.join(MACHINE);
        let hint = "`kaleidoscope clone qemu --qmp SOCKET -o DIR` makes such a folder";
        let file = File::open(&path).map_err(|error| Failure::at(&path, error).hint(hint))?;
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text).map_err(|error| Failure::at(&path, error))?;
        let machine: Machine =
            serde_json::from_slice(&text).map_err(|error| Failure::at(&path, error).hint(hint))?;
        if machine.version != VERSION {
            let what = format!("version {} is not known", machine.version);
            return Err(Failure::at(&path, what));
        }
        let ram = folder.join(RAM);
        let found = fs::metadata(&ram).map_err(|error| Failure::at(&ram, error))?;
        if !found.is_file() || found.len() != machine.ram_bytes {
            let what = format!("{} bytes, not {}", found.len(), machine.ram_bytes);
            return Err(
                Failure::at(&ram, what).hint("the folder is not whole: capture the VM again")
            );
        }
        Ok(Self { folder, machine })
    }

    /// The path of one of its files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The memory image.
    pub(crate) fn image(&self) -> Result<MemoryImage, Failure> {
        let layout = Some(self.path(LAYOUT));
        LayoutArgs { layout, format: ImageFormat::Auto }.open(&self.path(RAM))
    }

    /// The state of all else but the RAM.
    pub(crate) fn saved(&self) -> Result<SavedVm, Failure> {
        let path = self.path(STATE);
        let file = File::open(&path).map_err(|error| Failure::at(&path, error))?;
        let mut stream = BufReader::with_capacity(1 << 16, file);
        SavedVm::read(&mut stream, &self.machine.ram_block, &mut |_, _| Ok(()))
            .map_err(|error| Failure::at(&path, error))
    }
}

/// Writes a captured VM's state.
pub(crate) fn save_state(saved: &SavedVm, folder: &Path) -> Result<(), Failure> {
    let bytes = saved.without_ram();
    Output::secret(&folder.join(STATE))?.write(|out| out.write_all(&bytes))
}

/// Writes a text of a captured VM.
pub(crate) fn save_text(folder: &Path, name: &str, text: &str) -> Result<(), Failure> {
    write(&folder.join(name), |out| out.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_are_not_whole_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Captured::open(folder.path()).map(|found| found.machine);
        let error = open().unwrap_err().to_string();
        assert!(error.contains("hint: `kaleidoscope clone qemu"), "{error}");
        let mut machine = Machine::new("7.2".into(), "/qemu".into(), "/".into());
        machine.ram_bytes = 3;
        machine.save(folder.path()).unwrap();
        assert!(open().unwrap_err().to_string().contains("ram.bin"));
        fs::write(folder.path().join(RAM), "12").unwrap();
        assert!(open().unwrap_err().to_string().contains("2 bytes, not 3"));
        fs::write(folder.path().join(RAM), "123").unwrap();
        assert_eq!(open().unwrap(), machine);
        fs::write(folder.path().join(MACHINE), "{\"version\":").unwrap();
        assert!(open().is_err());
    }
}
