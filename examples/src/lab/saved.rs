//! The folder `clone` of a guest's folder, which has what clones need besides memory.
//!
//! `machine.json` describes the machine. `devices` is the state of vCPUs and devices at the pause.
//! `disks` has the disks at the pause. `kernel` and `initramfs` are copies, because QEMU needs them
//! to start a clone.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "the guest's folder is renamed when it is whole")
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::agent;
use super::build::disks;
use super::config::{Config, Disk, Origin};
use super::error::{Error, Result};
use super::machine::Machine;
use super::sparse;
use super::truth;

const FOLDER: &str = "clone";
const MACHINE: &str = "machine.json";
const DEVICES: &str = "devices";
const KERNEL: &str = "kernel";
const INITRAMFS: &str = "initramfs";
const DISKS: &str = "disks";

/// A saved guest's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedMachine {
    /// QEMU's version. Another version may not be able to load the devices' state.
    pub(crate) emulator: String,
    machine: String,
    cpu: String,
    /// Number of vCPUs.
    pub(crate) cpus: u32,
    /// RAM in MiB.
    pub(crate) memory_mib: u64,
    command_line: String,
    /// The disks' serial numbers, in order; also the names of their images.
    disks: Vec<String>,
    balloon: bool,
}

impl SavedMachine {
    /// Saves the paused guest, without its memory, into its folder.
    ///
    /// # Errors
    /// If QEMU refuses or a file cannot be written.
    pub(crate) fn save(
        machine: &mut Machine,
        config: &Config,
        emulator: &str,
        guest: &Path,
    ) -> Result<()> {
        let folder = guest.join(FOLDER);
        let images = folder.join(DISKS);
        fs::create_dir_all(&images).map_err(Error::io("create", &images))?;
        machine.save_devices(&folder.join(DEVICES))?;
        for Disk { serial, path } in &config.disks {
            let image = images.join(serial);
            if serial == agent::TRUTH_DISK {
                // Left empty: the guest never reads it, and a clone does not write to it.
                disks::empty(&image, truth::DISK_SIZE)?;
            } else {
                sparse::copy(path, &image)?;
            }
        }
        for (file, name) in [(&config.kernel, KERNEL), (&config.initramfs, INITRAMFS)] {
            let copy = folder.join(name);
            fs::copy(file, &copy).map_err(Error::io("copy to", &copy))?;
        }
        let saved = Self {
            emulator: emulator.to_owned(),
            machine: config.machine.clone(),
            cpu: config.cpu.clone(),
            cpus: config.cpus,
            memory_mib: config.memory_mib,
            command_line: config.command_line.clone(),
            disks: config.disks.iter().map(|disk| disk.serial.clone()).collect(),
            balloon: config.balloon,
        };
        let path = folder.join(MACHINE);
        let json = serde_json::to_string_pretty(&saved)
            .map_err(|error| Error::Trace(format!("{}: {error}", path.display())))?;
        fs::write(&path, json).map_err(Error::io("write", &path))
    }

    /// Reads `machine.json` of the guest in this folder.
    ///
    /// # Errors
    /// If the guest was made with `--no-clones`, or its description is damaged.
    pub(crate) fn open(guest: &Path) -> Result<Self> {
        let path = guest.join(FOLDER).join(MACHINE);
        let json = fs::read_to_string(&path).map_err(|error| {
            Error::Trace(format!(
                "{} cannot be cloned: cannot read {} ({error}); make the guest again with \
                 `kaleidoscope lab run`",
                guest.display(),
                path.display()
            ))
        })?;
        let saved: Self = serde_json::from_str(&json)
            .map_err(|error| Error::Trace(format!("{}: {error}", path.display())))?;
        // The names become paths and values of QEMU's options.
        let plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        match saved.disks.iter().find(|name| !plain(name)) {
            Some(name) => {
                Err(Error::Trace(format!("{}: a disk is called {name:?}", path.display())))
            }
            None => Ok(saved),
        }
    }

    /// The configuration of a clone with `ram` as the file of its memory.
    pub(crate) fn config(
        &self,
        guest: &Path,
        ram: PathBuf,
        console: PathBuf,
        timeout: Duration,
    ) -> Config {
        let folder = guest.join(FOLDER);
        let disk = |serial: &String| Disk {
            serial: serial.clone(),
            path: folder.join(DISKS).join(serial),
        };
        Config {
            origin: Origin::Clone,
            machine: self.machine.clone(),
            cpu: self.cpu.clone(),
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            kernel: folder.join(KERNEL),
            initramfs: folder.join(INITRAMFS),
            command_line: self.command_line.clone(),
            disks: self.disks.iter().map(disk).collect(),
            balloon: self.balloon,
            ram,
            console,
            timeout,
        }
    }

    /// The file with the state of the guest's vCPUs and devices.
    pub(crate) fn devices(guest: &Path) -> PathBuf {
        guest.join(FOLDER).join(DEVICES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(disk: &str) -> SavedMachine {
        SavedMachine {
            emulator: "QEMU emulator version 7.2".to_owned(),
            machine: "pc".to_owned(),
            cpu: "max".to_owned(),
            cpus: 2,
            memory_mib: 256,
            command_line: "quiet".to_owned(),
            disks: vec![disk.to_owned()],
            balloon: true,
        }
    }

    fn opened(saved: &SavedMachine) -> Result<SavedMachine> {
        let guest = tempfile::tempdir().unwrap();
        fs::create_dir(guest.path().join(FOLDER)).unwrap();
        let path = guest.path().join(FOLDER).join(MACHINE);
        fs::write(path, serde_json::to_string(saved).unwrap()).unwrap();
        SavedMachine::open(guest.path())
    }

    #[test]
    fn a_machine_is_described_and_read_again() {
        let root = saved("root");
        assert_eq!(opened(&root).unwrap(), root);
        let config = root.config(Path::new("/g"), "ram".into(), "con".into(), Duration::ZERO);
        assert_eq!(config.disks[0].path, Path::new("/g/clone/disks/root"));
        assert_eq!(config.origin, Origin::Clone);
    }

    #[test]
    fn strange_and_missing_descriptions_are_refused() {
        assert!(opened(&saved("../../etc/passwd")).is_err());
        let message = SavedMachine::open(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(message.contains("lab run"), "{message}");
    }
}
