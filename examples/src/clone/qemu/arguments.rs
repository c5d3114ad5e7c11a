//! The command line of a clone, derived from its parent's.
//!
//! A clone has the same machine, so that it can load the parent's state. What two VMs of one host
//! cannot share is replaced: memory, disks, sockets, files that QEMU writes, host ports, MAC
//! addresses. What cannot be replaced is refused.

use super::devices::{device, net, object};
use super::nodes::{Node, Nodes, Replacement};
use crate::failure::Failure;
use crate::qemu::folder::Captured;
use crate::qemu::options::Options;
use std::path::{Path, PathBuf};

/// What a clone has of its own.
#[derive(Clone, Debug)]
pub(super) struct Own {
    /// Its folder, for sockets and files.
    pub(super) folder: PathBuf,
    /// The memory image, which all clones map privately.
    pub(super) image: PathBuf,
    /// The overlays of its disks.
    pub(super) overlays: Vec<PathBuf>,
    /// The last three bytes of its first MAC address; the next address is the next number.
    pub(super) mac: u32,
    /// Its generation, a UUID.
    pub(super) generation: String,
}

/// Options without a value.
const FLAGS: [&str; 27] = [
    "S",
    "daemonize",
    "nodefaults",
    "no-user-config",
    "nographic",
    "snapshot",
    "no-reboot",
    "no-shutdown",
    "enable-kvm",
    "no-acpi",
    "no-hpet",
    "no-fd-bootchk",
    "s",
    "singlestep",
    "usb",
    "full-screen",
    "portrait",
    "win2k-hack",
    "only-migratable",
    "preconfig",
    "mem-prealloc",
    "semihosting",
    "no-kvm",
    "old-param",
    "enable-fips",
    "xen-attach",
    "xen-domid-restrict",
];

/// Options that a clone does not have: they are of a process, not of its machine.
const DROPPED: [&str; 15] = [
    "S",
    "daemonize",
    "s",
    "qmp",
    "qmp-pretty",
    "monitor",
    "incoming",
    "gdb",
    "trace",
    "loadvm",
    "spice",
    "D",
    "d",
    "pidfile",
    "mem-prealloc",
];

/// Options that cannot be followed, and why.
const REFUSED: [(&str, &str); 6] = [
    ("snapshot", "its disks are temporary files"),
    ("chroot", "its files are elsewhere"),
    ("add-fd", "it has descriptors from another process"),
    ("readconfig", "its devices are in another file"),
    ("mem-path", "its memory is not in a backend of its own (-object)"),
    ("numa", "its memory may be in several backends"),
];

/// A derivation under way.
struct Derivation<'d> {
    captured: &'d Captured,
    own: &'d Own,
    nodes: Nodes,
    /// How many arguments were replaced for each disk.
    replaced: Vec<u32>,
    words: Vec<String>,
    macs: u32,
    serials: u32,
}

/// The arguments of a clone, whose QMP socket is `qmp` and which waits for its state.
pub(super) fn derive(captured: &Captured, own: &Own, qmp: &Path) -> Result<Vec<String>, Failure> {
    let machine = &captured.machine;
    let mut derivation = Derivation {
        captured,
        own,
        nodes: Nodes::of(&machine.arguments),
        replaced: vec![0; machine.disks.len()],
        words: Vec::new(),
        macs: own.mac,
        serials: 0,
    };
    let mut words = machine.arguments.iter();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            derivation.image("media=disk", 0, word)?;
            continue;
        };
        if let Some((_, why)) = REFUSED.iter().find(|(name, _)| *name == option) {
            return Err(refused(word, why));
        }
        let value = match FLAGS.contains(&option) {
            true => None,
            false => Some(words.next().ok_or_else(|| refused(word, "it has no value"))?),
        };
        derivation.option(option, value.map(String::as_str))?;
    }
    derivation.check_disks()?;
    let mut words = derivation.words;
    let qmp = escape(qmp)?;
    for word in ["-qmp", &format!("unix:{qmp},server=on,wait=off"), "-incoming", "defer", "-S"] {
        words.push(word.to_owned());
    }
    Ok(words)
}

/// The failure for an option that a clone cannot have.
pub(super) fn refused(word: &str, why: &str) -> Failure {
    Failure::new(format_args!("a VM with `{word}` cannot be cloned on one host: {why}"))
}

/// Doubles commas, as in values of lists.
fn escape(path: &Path) -> Result<String, Failure> {
    Ok(text(path)?.replace(',', ",,"))
}

pub(super) fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| Failure::at(path, "the path is not UTF-8"))
}

impl Derivation<'_> {
    fn push(&mut self, option: &str, value: &str) {
        self.words.extend([format!("-{option}"), value.to_owned()]);
    }

    fn option(&mut self, option: &str, value: Option<&str>) -> Result<(), Failure> {
        if DROPPED.contains(&option) {
            return Ok(());
        }
        let Some(value) = value else {
            match option {
                "nographic" => self.push("display", "none"),
                _ => self.words.push(format!("-{option}")),
            }
            return Ok(());
        };
        match option {
            "hda" => self.image("media=disk", 0, value)?,
            "hdb" => self.image("media=disk", 1, value)?,
            "hdc" => self.image("media=disk", 2, value)?,
            "hdd" => self.image("media=disk", 3, value)?,
            "fda" => self.image("if=floppy", 0, value)?,
            "fdb" => self.image("if=floppy", 1, value)?,
            "sd" => self.image("if=sd", 0, value)?,
            "mtdblock" => self.image("if=mtd", 0, value)?,
            "drive" => {
                let drive = self.drive(value)?;
                self.push(option, &drive);
            }
            "pflash" => {
                let mut drive = Options::parse("if=pflash");
                drive.set("file", value);
                let drive = self.drive(&drive.to_string())?;
                self.push("drive", &drive);
            }
            "blockdev" => self.blockdev(value)?,
            "object" => {
                let object = object(value, self.captured, self.own)?;
                self.push(option, &object);
            }
            "device" => {
                let device = device(value, &mut self.macs, &self.own.generation)?;
                self.push(option, &device);
            }
            "netdev" | "nic" | "net" => {
                let net = net(option, value, &mut self.macs)?;
                self.push(option, &net);
            }
            "chardev" => {
                let chardev = self.chardev(value)?;
                self.push(option, &chardev);
            }
            "serial" | "parallel" | "debugcon" => {
                let name = format!("{option}{}", self.serials);
                self.serials += 1;
                let port = self.port(&name, value)?;
                self.push(option, &port);
            }
            "display" => self.push(option, "none"),
            "vnc" => {
                let path = escape(&self.own.folder.join("vnc.sock"))?;
                self.push(option, &format!("unix:{path}"));
            }
            _ => self.push(option, value),
        }
        Ok(())
    }

    /// An image that is named without `-drive`.
    fn image(&mut self, kind: &str, index: u32, file: &str) -> Result<(), Failure> {
        let mut drive = Options::parse(kind);
        drive.set("index", &index.to_string());
        drive.set("file", file);
        let drive = self.drive(&drive.to_string())?;
        self.push("drive", &drive);
        Ok(())
    }

    /// The overlay for a disk's node, which is counted.
    fn overlay(&mut self, number: usize) -> Result<String, Failure> {
        if let Some(count) = self.replaced.get_mut(number) {
            *count += 1;
        }
        let overlay = self.own.overlays.get(number);
        overlay
            .map_or_else(|| Err(Failure::new("a disk has no overlay")), |path| text(path))
            .map(str::to_owned)
    }

    fn drive(&mut self, value: &str) -> Result<String, Failure> {
        let mut options = Options::parse(value);
        let machine = &self.captured.machine;
        let node = Node::drive(&options);
        let replacement = self.nodes.replacement(&node, &machine.disks, &machine.folder);
        let Replacement::Overlay(number) = replacement else {
            // The guest only reads it, or there is no medium.
            return Ok(value.to_owned());
        };
        let overlay = self.overlay(number)?;
        let below: Vec<_> = options
            .keys()
            .filter(|key| key.starts_with("file.") || key.starts_with("backing"))
            .map(str::to_owned)
            .collect();
        options.remove(&below.iter().map(String::as_str).collect::<Vec<_>>());
        options.remove(&["driver", "snapshot", "offset", "size"]);
        options.set("file", &overlay);
        options.set("format", "qcow2");
        Ok(options.to_string())
    }

    /// A node of a disk becomes one with the clone's overlay; nodes below it are left out.
    fn blockdev(&mut self, value: &str) -> Result<(), Failure> {
        let node = Node::blockdev(value);
        let machine = &self.captured.machine;
        let number = match self.nodes.replacement(&node, &machine.disks, &machine.folder) {
            Replacement::Same => {
                self.push("blockdev", value);
                return Ok(());
            }
            Replacement::Nothing => return Ok(()),
            Replacement::Overlay(number) => number,
        };
        let mut options = Options::parse("driver=qcow2");
        options.set("node-name", node.name());
        options.set("file.driver", "file");
        options.set("file.filename", &self.overlay(number)?);
        self.push("blockdev", &options.to_string());
        Ok(())
    }

    /// Fails unless each disk was replaced, and once.
    fn check_disks(&self) -> Result<(), Failure> {
        for (disk, count) in self.captured.machine.disks.iter().zip(&self.replaced) {
            let name = if disk.device.is_empty() { &disk.node } else { &disk.device };
            let why = match count {
                1 => continue,
                0 => "no argument of QEMU names it: was it added later?",
                _ => "several arguments of QEMU name its images",
            };
            return Err(refused(&format!("disk {name}"), why));
        }
        Ok(())
    }

    fn chardev(&self, value: &str) -> Result<String, Failure> {
        let options = Options::parse(value);
        let id = options.get("id").unwrap_or("chardev");
        if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return Err(refused(&format!("-chardev {value}"), "its name is no file's"));
        }
        let mut own = match options.first() {
            Some("socket" | "udp") => {
                let mut own = Options::parse("socket");
                own.set("id", id);
                own.set("path", text(&self.own.folder.join(format!("{id}.sock")))?);
                own.set("server", "on");
                own.set("wait", "off");
                own
            }
            Some("file") => {
                let mut own = Options::parse("file");
                own.set("id", id);
                own.set("path", text(&self.own.folder.join(format!("{id}.log")))?);
                own
            }
            Some("pipe" | "stdio" | "serial" | "tty" | "parallel" | "parport") => {
                let mut own = Options::parse("null");
                own.set("id", id);
                own
            }
            _ => return Ok(value.to_owned()),
        };
        if let Some(mux) = options.get("mux") {
            own.set("mux", mux);
        }
        Ok(own.to_string())
    }

    /// A serial or parallel port in its short form.
    fn port(&self, name: &str, value: &str) -> Result<String, Failure> {
        let kind = value.split(':').next().unwrap_or_default();
        let at = |suffix: &str| self.own.folder.join(format!("{name}.{suffix}"));
        Ok(match kind {
            "unix" | "tcp" | "telnet" | "websocket" | "udp" => {
                format!("unix:{},server=on,wait=off", escape(&at("sock"))?)
            }
            "file" => format!("file:{}", text(&at("log"))?),
            "none" | "null" | "pty" | "vc" | "chardev" => value.to_owned(),
            // Standard input and output, pipes and the host's ports are the parent's.
            _ => "null".to_owned(),
        })
    }
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
