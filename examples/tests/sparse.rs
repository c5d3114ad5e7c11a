//! Every command that reads an image, on 64 GiB of address space with 32 MiB of data: what a
//! command reads into memory grows with the data.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const RAM: u64 = 32 << 20;
const SPACE: u64 = 64 << 30;

/// Where the guest could have plugged in more memory.
const ABOVE: u64 = 1 << 40;

/// Most memory of a command, in KiB: some 100 bytes for each of 16 million frames, and a tenth of
/// the address space.
const MOST: u64 = 6 << 20;

/// A folder with a sparse image.
struct Files(TempDir);

impl Files {
    fn sparse() -> Self {
        let builder = GuestBuilder::new(KernelStyle::V6_12).seed(5).ram_bytes(RAM);
        let guest = builder.pci_hole_at(16 << 20).build().unwrap();
        let files = Self(tempfile::tempdir().unwrap());
        fs::write(files.path("ram.bin"), guest.memory.bytes()).unwrap();
        let file = OpenOptions::new().write(true).open(files.path("ram.bin")).unwrap();
        file.set_len(SPACE).unwrap();
        let mut layout = String::new();
        for region in guest.truth.layout().regions() {
            let (offset, bytes) = (region.first_index.0 * 4096, u64::from(region.frames) * 4096);
            writeln!(layout, "{offset:#x} {:#x} {bytes:#x}", region.start.gpa().0).unwrap();
        }
        writeln!(layout, "{RAM:#x} {ABOVE:#x} {:#x}", SPACE - RAM).unwrap();
        fs::write(files.path("layout.txt"), layout).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A command in this folder.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kaleidoscope"));
        command.args(arguments).current_dir(self.0.path()).stdout(Stdio::piped());
        command
    }

    /// What a command prints, which must succeed within the bound.
    fn run(&self, arguments: &[&str]) -> String {
        let child = self.command(arguments).spawn().unwrap();
        let watch = Watch::of(&child);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        watch.end(arguments);
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Looks how much memory a process has had at most, until it ends.
struct Watch(std::thread::JoinHandle<u64>);

impl Watch {
    fn of(child: &Child) -> Self {
        let status = format!("/proc/{}/status", child.id());
        let most = move || {
            let kib = || {
                let status = fs::read_to_string(&status).ok()?;
                let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
                line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
            };
            let mut most = 0;
            while let Some(kib) = kib() {
                most = kib.max(most);
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        };
        Self(std::thread::spawn(most))
    }

    fn end(self, what: &[&str]) {
        let most = self.0.join().unwrap();
        assert!(most < MOST, "{what:?} had {most} KiB of memory");
    }
}

#[test]
fn commands_on_64_gib_of_holes_cost_what_the_data_costs() {
    let files = Files::sparse();
    let layout = ["--layout", "layout.txt"];
    let color = ["color", "ram.bin", "--json", "-o", "ram.kscope"];
    let colored: Value = serde_json::from_str(&files.run(&[&color[..], &layout].concat())).unwrap();
    let frames = |value: &Value| {
        let colors = value["colors"].as_array().unwrap().iter();
        colors.map(|color| color["frames"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(frames(&colored), SPACE / 4096);

    let map = ["map", "ram.kscope", "--json", "--verify", "ram.bin", "--plot", "ram.png"];
    let shown: Value = serde_json::from_str(&files.run(&[&map[..], &layout].concat())).unwrap();
    assert_eq!(shown["colors"], colored["colors"]);

    let serve = ["serve", "ram.bin", "--map-from", "ram.kscope", "--json", "--listen", "unix:k"];
    let mut server = files.command(&[&serve[..], &layout].concat()).spawn().unwrap();
    let watch = Watch::of(&server);
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("serving"), "{line}");
    let pull = ["pull", "unix:k", "-o", "copy.bin", "--json", "--policy", "demand"];
    let pulled: Value = serde_json::from_str(&files.run(&pull)).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    watch.end(&serve);
    assert_eq!(pulled["verified"], "sample", "{pulled}");

    let copy = fs::metadata(files.path("copy.bin")).unwrap();
    assert_eq!(copy.len(), SPACE);
    assert!(copy.blocks() * 512 < 2 * RAM, "the copy is as sparse as the image");
    let compare = ["-n", &RAM.to_string(), "ram.bin", "copy.bin"].map(ToOwned::to_owned);
    let compared = Command::new("cmp").args(compare).current_dir(files.0.path()).status();
    assert!(compared.unwrap().success(), "the data is there");
}
