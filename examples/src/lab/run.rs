//! `kaleidoscope lab run`: boots a guest, warms it, and saves its memory with the ground truth.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "the guest's folder is renamed when it is whole")
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::agent;
use super::build::disks;
use super::build::initramfs;
use super::build::kernel::Kernel;
use super::build::modules::ModuleTree;
use super::build::rootfs::RootFs;
use super::config::{Config, Disk, Origin};
use super::control::{FromGuest, FromHost};
use super::error::{Error, Result};
use super::feature::{Choice, Feature, Features};
use super::machine::{self, Machine};
use super::report::Report;
use super::saved::SavedMachine;
use super::sparse;
use super::steps::Steps;
use super::truth;
use crate::args::{MemorySize, memory_size, some_seconds};
use crate::interrupt::{Armed, Undo, arm_with};
use crate::stdio::print_line;

/// Modules that every guest needs to find its disks.
const DISK_MODULES: &[&str] = &["virtio_pci", "virtio_blk"];

/// The least memory that the workload runs in.
const LEAST_MEMORY_MIB: u32 = 256;

/// Whether the kernel keeps its page tables apart from user space's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pti {
    /// Kernel page-table isolation.
    On,
    /// One set of page tables.
    Off,
}

/// QEMU's chipsets; they place the hole below 4 GiB differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Chipset {
    /// i440FX: RAM above 3 GiB moves past 4 GiB.
    Pc,
    /// Q35: RAM above 2 GiB does.
    Q35,
}

/// Boot a Debian guest, warm it, and save its memory together with its own account of it.
///
/// The guest's folder has ram.bin, layout.txt and regs.txt as a hypervisor would see them, and
/// truth/gt with what the guest's kernel said: its frames' flags read just before the pause
/// (proc_kpageflags) and just after it (proc_kpageflags_after), page maps of all processes, the
/// resident pages of all files. The truth belongs to the same instant as ram.bin, to which
/// truth/ram.bin is a hard link.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope lab run -o guests/web
      a guest with the newest cloud kernel of this machine's Debian release
  kaleidoscope lab run -o guests/big --memory 2G --cpus 4 --feature thp,ksm
      a larger guest that also uses huge and merged pages
  kaleidoscope lab run -o guests/6.1 --kernel linux-image-6.1.deb
      a guest with another kernel
  kaleidoscope lab run -o guests/crash --memory 768M --crash-kernel
      a guest that panicked, in its crash kernel")]
pub(crate) struct Args {
    /// Folder to make for the guest
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Kernel package (.deb) or unpacked tree; repeat for kernels split into several packages
    /// [default: the newest cloud kernel of this machine's Debian release]
    #[arg(long, value_name = "PATH")]
    kernel: Vec<PathBuf>,
    /// Kernel release, when there are several in what --kernel names.
    #[arg(long, value_name = "RELEASE")]
    release: Option<String>,
    /// RAM, such as 768M or 2G; a bare number is in MiB
    #[arg(long, value_name = "SIZE", default_value = "512M",
        value_parser = memory_size(LEAST_MEMORY_MIB..=65_536))]
    memory: MemorySize,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: u32,
    /// Kernel page-table isolation.
    #[arg(long, value_enum, default_value_t = Pti::On)]
    pti: Pti,
    /// Use a CPU with 57-bit virtual addresses, and so 5-level page tables.
    #[arg(long)]
    la57: bool,
    /// QEMU CPU model with features, instead of the emulator's best.
    #[arg(long, value_name = "MODEL", conflicts_with = "la57")]
    cpu_model: Option<String>,
    /// QEMU chipset.
    #[arg(long, value_enum, default_value_t = Chipset::Pc)]
    machine: Chipset,
    /// What to exercise beyond the plain workload: hugetlb, thp, swap, ksm, overlay, squashfs,
    /// xfs, balloon, memfd, all; repeat or separate by commas.
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    feature: Vec<Choice>,
    /// Let the guest, once it is warm, panic into a crash kernel in reserved memory, and save
    /// that: the memory then holds two kernels, and one of them runs (kdump). SIZE is what
    /// crashkernel= reserves; a bare number is in MiB
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true,
        default_missing_value = "192M", value_parser = memory_size(128..=4096))]
    crash_kernel: Option<MemorySize>,
    /// Further words for the guest's kernel command line.
    #[arg(long, value_name = "WORDS")]
    append: Option<String>,
    /// Folder for packages and images made of them.
    #[arg(long, value_name = "DIR", env = "KALEIDOSCOPE_LAB_CACHE", default_value = "target/lab")]
    cache: PathBuf,
    /// How long to wait for each phase of the guest
    #[arg(long, value_name = "SECONDS", default_value = "180", value_parser = some_seconds)]
    timeout: Duration,
    /// How often to boot until the guest does its part: now and then an emulator fails its guest.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
    /// Replace the guest's folder if it exists.
    #[arg(long)]
    force: bool,
    /// Do not keep what clones need (the state of devices, a copy of the disks).
    #[arg(long)]
    no_clones: bool,
    /// Keep the guest's disks in the folder's `work`.
    #[arg(long)]
    keep_disks: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Makes the guest.
    ///
    /// # Errors
    /// If programs or packages are missing, or a step of the guest fails in all attempts.
    pub(crate) fn run(&self) -> Result<()> {
        let begin = Instant::now();
        if self.output.exists() && !self.force {
            return Err(Error::Io {
                doing: "create",
                path: self.output.clone(),
                source: std::io::Error::new(
                    std::io::ErrorKind::AlreadyExists,
                    "it exists (--force replaces it)",
                ),
            });
        }
        if let Some(reserved) = self.crash_kernel
            && self.memory.mib() < reserved.mib() + LEAST_MEMORY_MIB
        {
            return Err(Error::Kernel(format!(
                "of {} a crash kernel's {reserved} leave less than {LEAST_MEMORY_MIB}M; \
                 say --memory {} or more",
                self.memory,
                MemorySize::from_mib(reserved.mib() + LEAST_MEMORY_MIB)
            )));
        }
        let steps = Steps::new();
        check_replaceable(&self.output, &self.kernel)?;
        let (folder, armed) = partial(&self.output)?;
        let mut report = self.make(&folder, &steps)?;
        report.total_seconds = begin.elapsed().as_secs_f64();
        let json = serde_json::to_string_pretty(&report)
            .map_err(|error| Error::Qmp(format!("cannot write the report: {error}")))?;
        write(&folder.join("lab.json"), &json)?;
        replace_folder(&folder, &self.output, armed).map_err(Error::io("rename", &folder))?;
        steps.done();
        Ok(if self.json { print_line(json) } else { print_line(report) }?)
    }

    /// Makes the guest in `folder`.
    fn make(&self, folder: &Path, steps: &Steps) -> Result<Report> {
        let emulator = machine::qemu_version()?;
        let features = Features::from_choices(&self.feature);
        let work = folder.join("work");
        fs::create_dir_all(&work).map_err(Error::io("create", &work))?;
        fs::create_dir_all(&self.cache).map_err(Error::io("create", &self.cache))?;
        // apt runs inside the cache, so the cache's path must be absolute.
        let cache = self.cache.canonicalize().map_err(Error::io("find", &self.cache))?;
        steps.begin("finding a kernel");
        let kernel = Kernel::resolve(&cache, &self.kernel, self.release.as_deref())?;
        steps.begin("making the root file system");
        let root = RootFs::prepare(&cache)?;
        let initramfs = work.join("initramfs");
        let modules = load_modules(&kernel, &features)?;
        initramfs::write(&initramfs, &root.busybox(), &modules)?;
        let mut config = Config {
            origin: Origin::PowerOn,
            machine: self.chipset().to_owned(),
            cpu: self.cpu(),
            cpus: self.cpus,
            memory_mib: self.memory.mib().into(),
            kernel: kernel.image.clone(),
            initramfs,
            command_line: self.command_line(&features),
            disks: Vec::new(),
            balloon: features.has(Feature::Balloon),
            ram: work.join("ram"),
            console: folder.join("console.txt"),
            timeout: self.timeout,
        };
        let mut attempt = 1;
        let times = loop {
            steps.begin("making the disks");
            config.disks = self.make_disks(&work, &root, &config)?;
            steps.begin(&format!("booting {} (attempt {attempt})", kernel.release));
            match self.boot_and_save(&config, folder, &emulator, steps) {
                Err(Error::Guest { .. }) if attempt < self.attempts => attempt += 1,
                outcome => break outcome?,
            }
        };
        let truth_records = self.unpack_truth(folder, &work)?;
        Ok(Report {
            guest: self.output.clone(),
            kernel: kernel.release,
            emulator,
            machine: format!("{}, {}", config.machine, config.cpu),
            memory_bytes: self.memory.bytes(),
            frames: self.memory.bytes() / 4096,
            frames_used: times.frames_used,
            cpus: self.cpus,
            features: features.iter().map(Feature::name).collect(),
            command_line: config.command_line,
            crash_kernel_bytes: self.crash_kernel.map(MemorySize::bytes),
            truth_records,
            truth_is_same_instant: true,
            attempts: attempt,
            boot_seconds: times.boot.as_secs_f64(),
            warm_seconds: times.warm.as_secs_f64(),
            dump_seconds: times.dump.as_secs_f64(),
            total_seconds: 0.0,
        })
    }

    /// Makes the disks for one boot of the guest that `config` describes.
    fn make_disks(&self, work: &Path, root: &RootFs, config: &Config) -> Result<Vec<Disk>> {
        let features = Features::from_choices(&self.feature);
        let disk = |serial: &str| Disk { serial: serial.to_owned(), path: work.join(serial) };
        let agent =
            std::env::current_exe().map_err(Error::io("find", Path::new("this program")))?;
        let mut disks = vec![disk("root"), disk(agent::TRUTH_DISK)];
        let crash_kernel: &[(&Path, &str)] =
            &[(&config.kernel, agent::crash::KERNEL), (&config.initramfs, agent::crash::INITRAMFS)];
        let files = if self.crash_kernel.is_some() { crash_kernel } else { &[] };
        root.disk_with_agent(&work.join("root"), &agent, files)?;
        disks::empty(&work.join(agent::TRUTH_DISK), truth::DISK_SIZE)?;
        if features.has(Feature::Swap) {
            disks::swap(&work.join("swap"))?;
            disks.push(disk("swap"));
        }
        if features.has(Feature::Squashfs) {
            disks::squashfs(&work.join("squashfs"), &root.tree.join("usr/lib"))?;
            disks.push(disk("squashfs"));
        }
        if features.has(Feature::Xfs) {
            disks::xfs(&work.join("xfs"))?;
            disks.push(disk("xfs"));
        }
        Ok(disks)
    }

    /// Boots the guest, waits until it is warm and has dumped the ground truth, and saves it into
    /// `folder`.
    fn boot_and_save(
        &self,
        config: &Config,
        folder: &Path,
        emulator: &str,
        steps: &Steps,
    ) -> Result<SavedRun> {
        if config.ram.exists() {
            // Memory must be zero at power-on, without data of an earlier attempt.
            fs::remove_file(&config.ram).map_err(Error::io("remove", &config.ram))?;
        }
        let begin = Instant::now();
        let mut machine = Machine::start(config)?;
        machine.wait_for(&FromGuest::Ready)?;
        let boot = begin.elapsed();

        steps.begin("warming the guest");
        machine.wait_for(&FromGuest::Warm)?;
        if config.balloon {
            steps.begin("inflating the balloon");
            let bytes = config.memory_mib << 20;
            machine.balloon(bytes - bytes / 8)?;
        }
        if self.crash_kernel.is_some() {
            steps.begin("panicking into the crash kernel");
            machine.send(&FromHost::Crash)?;
            machine.wait_for(&FromGuest::Ready)?;
            steps.begin("warming the crash kernel");
            machine.wait_for(&FromGuest::Warm)?;
        }
        let warm = begin.elapsed() - boot;

        steps.begin("dumping the guest's truth");
        machine.send(&FromHost::Dump)?;
        machine.wait_for(&FromGuest::Bracket)?;
        machine.pause()?;
        steps.begin("saving the guest's memory");
        if !self.no_clones {
            SavedMachine::save(&mut machine, config, emulator, folder)?;
        }
        let frames_used = save(&mut machine, &config.ram, folder)?;
        machine.resume()?;
        machine.send(&FromHost::Again)?;
        machine.wait_for(&FromGuest::Done)?;
        machine.quit()?;
        Ok(SavedRun { boot, warm, dump: begin.elapsed() - boot - warm, frames_used })
    }

    /// Unpacks the truth disk, keeps its raw contents, and removes the other disks. Returns the
    /// number of records.
    fn unpack_truth(&self, folder: &Path, work: &Path) -> Result<usize> {
        let truth = folder.join("truth");
        let gt = truth.join("gt");
        fs::create_dir_all(&gt).map_err(Error::io("create", &gt))?;
        let raw = work.join(agent::TRUTH_DISK);
        let records = truth::unpack(&raw, &gt)?;
        for name in ["ram.bin", "layout.txt", "regs.txt"] {
            let link = truth.join(name);
            fs::hard_link(folder.join(name), &link).map_err(Error::io("link", &link))?;
        }
        // The guest wrote only to the disk's beginning; the rest of the file is a hole.
        fs::rename(&raw, truth.join("gt.raw")).map_err(Error::io("rename", &raw))?;
        if !self.keep_disks {
            fs::remove_dir_all(work).map_err(Error::io("remove", work))?;
        }
        Ok(records)
    }

    fn chipset(&self) -> &'static str {
        match self.machine {
            Chipset::Pc => "pc",
            Chipset::Q35 => "q35",
        }
    }

    fn cpu(&self) -> String {
        // Without cx16: QEMU 7.2 leaves garbage in the flags after CMPXCHG16B, and an interrupt
        // directly after it crashes the guest (6.12 kernels use it for every allocation).
        // "max" has 57-bit addresses by default.
        let default = if self.la57 { "max,cx16=off" } else { "max,cx16=off,la57=off" };
        self.cpu_model.clone().unwrap_or_else(|| default.to_owned())
    }

    fn command_line(&self, features: &Features) -> String {
        let pti = match self.pti {
            Pti::On => "on",
            Pti::Off => "off",
        };
        // `panic=-1` reboots at once, and QEMU exits on a reboot (`-no-reboot`).
        let mut words = format!(
            "console=ttyS0 quiet panic=-1 pti={pti} {}{}",
            agent::FEATURES,
            features.to_list()
        );
        if let Some(reserved) = self.crash_kernel {
            words.push_str(&format!(" {}{}M", agent::crash::RESERVE, reserved.mib()));
        }
        if let Some(more) = &self.append {
            words.push(' ');
            words.push_str(more);
        }
        words
    }
}

/// Makes a new folder next to `out`. It is renamed to `out` once it is complete.
fn partial(out: &Path) -> Result<(PathBuf, Armed)> {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let folder = out.with_file_name(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
    }
    let folder = std::path::absolute(&folder).map_err(Error::io("find", &folder))?;
    let make = || {
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        folder.canonicalize().map_err(Error::io("find", &folder))
    };
    // Removed even after SIGKILL, because it contains a guest's memory.
    arm_with(Undo::Remove(folder.clone()), make)
}

/// Refuses to replace a folder without a guest of the lab's, or one with a kernel of `kernels`.
fn check_replaceable(out: &Path, kernels: &[PathBuf]) -> Result<()> {
    let refused = |why: &str| {
        let source = std::io::Error::other(why.to_owned());
        Err(Error::Io { doing: "replace", path: out.to_owned(), source })
    };
    let Ok(folder) = out.canonicalize() else { return Ok(()) };
    let is_within = |path: &PathBuf| path.canonicalize().is_ok_and(|p| p.starts_with(&folder));
    if kernels.iter().any(is_within) {
        return refused("it contains a kernel of --kernel");
    }
    let is_empty = fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty || folder.join("lab.json").is_file() {
        return Ok(());
    }
    refused("there is no guest in it that `lab run` made; remove it yourself, or choose another")
}

/// Renames the folder to `out`, and replaces an existing folder atomically where possible.
fn replace_folder(folder: &Path, out: &Path, armed: Armed) -> std::io::Result<()> {
    match renameat_with(CWD, folder, CWD, out, RenameFlags::EXCHANGE) {
        // The former guest now has the temporary name, and is removed.
        Ok(()) => {
            drop(armed);
            Ok(())
        }
        Err(Errno::NOENT) => armed.disarm_with(|| fs::rename(folder, out)),
        Err(Errno::INVAL | Errno::NOSYS) => armed.disarm_with(|| {
            fs::remove_dir_all(out)?;
            fs::rename(folder, out)
        }),
        Err(error) => Err(error.into()),
    }
}

fn load_modules(
    kernel: &Kernel,
    features: &Features,
) -> Result<Vec<super::build::modules::Module>> {
    let Some(folder) = &kernel.modules else {
        return Err(Error::Kernel(format!(
            "{} comes without lib/modules; name its modules package too (--kernel, again)",
            kernel.release
        )));
    };
    let wanted: Vec<_> = DISK_MODULES
        .iter()
        .copied()
        .chain(features.iter().flat_map(|feature| feature.modules().iter().copied()))
        .collect();
    ModuleTree::open(folder)?.load(&wanted)
}

/// Times of a guest's phases, and its number of frames that are not zero.
struct SavedRun {
    boot: Duration,
    warm: Duration,
    dump: Duration,
    frames_used: u64,
}

/// Writes the paused guest's registers, layout and memory. Returns how many frames are not zero.
fn save(machine: &mut Machine, ram: &Path, folder: &Path) -> Result<u64> {
    write(&folder.join("regs.txt"), &machine.registers()?)?;
    write(&folder.join("layout.txt"), &machine.layout()?.to_string())?;
    sparse::copy(ram, &folder.join("ram.bin"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io("write", path))
}
