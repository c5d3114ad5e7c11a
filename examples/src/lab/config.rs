//! The configuration of a guest's machine, and QEMU's arguments for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the RAM's memory region in QEMU's `info mtree`.
pub(crate) const RAM: &str = "guest-ram";

/// A raw disk image, and the serial number by which the guest identifies it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// virtio-blk serial number.
    pub(crate) serial: String,
    /// The image.
    pub(crate) path: PathBuf,
}

/// How a guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// By booting. The guest writes to its RAM file and its disks.
    PowerOn,
    /// As a clone of a saved guest. QEMU waits for the devices' state, and writes neither to the
    /// RAM file nor to the disks.
    Clone,
}

/// The configuration of a guest.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// How the guest starts.
    pub(crate) origin: Origin,
    /// QEMU machine type.
    pub(crate) machine: String,
    /// QEMU CPU model with features.
    pub(crate) cpu: String,
    /// Number of vCPUs.
    pub(crate) cpus: u32,
    /// RAM in MiB.
    pub(crate) memory_mib: u64,
    /// Kernel image.
    pub(crate) kernel: PathBuf,
    /// Initramfs.
    pub(crate) initramfs: PathBuf,
    /// Kernel command line.
    pub(crate) command_line: String,
    /// Disks in order.
    pub(crate) disks: Vec<Disk>,
    /// Whether to add a balloon device.
    pub(crate) balloon: bool,
    /// The file that backs the guest's RAM.
    pub(crate) ram: PathBuf,
    /// The file for the output of the guest's console.
    pub(crate) console: PathBuf,
    /// How long to wait for each of the guest's messages.
    pub(crate) timeout: Duration,
}

impl Config {
    /// QEMU's arguments; it will listen on the sockets `qmp` and `control`.
    pub(crate) fn arguments(&self, qmp: &Path, control: &Path) -> Vec<String> {
        let Self { machine, cpu, cpus, memory_mib, .. } = self;
        let (ram, console) = (escape(&self.ram), self.console.display());
        let (qmp, control) = (qmp.display(), control.display());
        let (share, snapshot) = match self.origin {
            Origin::PowerOn => ("on", "off"),
            Origin::Clone => ("off", "on"),
        };
        let mut words: Vec<String> =
            ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
                .map(str::to_owned)
                .to_vec();
        let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
        option("-machine", format!("{machine},memory-backend={RAM}"));
        option("-accel", "tcg,thread=multi".to_owned());
        option("-cpu", cpu.clone());
        option("-smp", cpus.to_string());
        option("-m", format!("{memory_mib}M"));
        option(
            "-object",
            format!("memory-backend-file,id={RAM},size={memory_mib}M,mem-path={ram},share={share}"),
        );
        option("-kernel", self.kernel.display().to_string());
        option("-initrd", self.initramfs.display().to_string());
        option("-append", self.command_line.clone());
        option("-serial", format!("file:{console}"));
        option("-chardev", format!("socket,id=control,path={control},server=on,wait=off"));
        option("-serial", "chardev:control".to_owned());
        option("-qmp", format!("unix:{qmp},server=on,wait=off"));
        for Disk { serial, path } in &self.disks {
            let path = escape(path);
            option(
                "-drive",
                format!(
                    "file={path},if=none,id={serial},format=raw,cache=unsafe,snapshot={snapshot}"
                ),
            );
            option("-device", format!("virtio-blk-pci,drive={serial},serial={serial}"));
        }
        if self.balloon {
            option("-device", "virtio-balloon-pci".to_owned());
        }
        if self.origin == Origin::Clone {
            option("-incoming", "defer".to_owned());
            // Stays paused after the state has been loaded.
            words.push("-S".to_owned());
        }
        words
    }
}

/// Doubles commas, as required in values of QEMU's option lists.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_writes_neither_into_ram_nor_disks() {
        let config = Config {
            origin: Origin::Clone,
            machine: "pc".to_owned(),
            cpu: "max".to_owned(),
            cpus: 1,
            memory_mib: 256,
            kernel: "k".into(),
            initramfs: "i".into(),
            command_line: String::new(),
            disks: vec![Disk { serial: "root".to_owned(), path: "a,b".into() }],
            balloon: false,
            ram: "ram".into(),
            console: "console".into(),
            timeout: Duration::ZERO,
        };
        let sockets = (Path::new("qmp"), Path::new("control"));
        let words = config.arguments(sockets.0, sockets.1).join(" ");
        assert!(words.contains("share=off") && words.contains("-incoming defer -S"), "{words}");
        assert!(words.contains("file=a,,b,") && words.contains("snapshot=on"), "{words}");
        let words = Config { origin: Origin::PowerOn, ..config };
        let words = words.arguments(sockets.0, sockets.1).join(" ");
        assert!(words.contains("share=on") && words.contains("snapshot=off"), "{words}");
        assert!(!words.contains("-incoming"), "{words}");
    }
}
