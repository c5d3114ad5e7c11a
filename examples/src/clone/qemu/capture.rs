//! Captures a VM: its memory, disks and devices at one instant.

use super::Args;
use super::disks::{self, Moved};
use super::image::Image;
use super::memory::{self, Receiver};
use super::parent::Parent;
use super::pause::{Held, PAUSE};
use super::report::Capture;
use crate::failure::Failure;
use crate::interrupt::{Undo, arm_with};
use crate::qemu::folder::{self, Captured};
use crate::serve::template::color;
use kaleidoscope_core::registers::parse_qemu_text;
use kaleidoscope_kvm::qemu::SavedVm;
use serde_json::json;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a VM's memory is captured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Way {
    /// The first that the host and QEMU allow: reflink; snapshot, after precopy if there are disks;
    /// copy
    Auto,
    /// The file system shares the blocks of the memory file: nothing is copied
    Reflink,
    /// QEMU's background snapshot: the VM runs while its memory is sent, and waits where it writes
    /// first. Takes the right to use userfaultfd
    Snapshot,
    /// QEMU's pre-copy: the VM runs while its memory is sent, and what it writes is sent again
    Precopy,
    /// The memory file is copied while the VM is paused
    Copy,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Reflink => "reflink",
            Self::Snapshot => "snapshot",
            Self::Precopy => "precopy",
            Self::Copy => "copy",
        }
    }

    /// What it costs the VM, for people.
    pub(super) fn cost(self) -> &'static str {
        match self {
            Self::Auto => "",
            Self::Reflink => "none: the file system copies a block when the VM writes to it",
            Self::Snapshot => "a wait at the first write to each page while the memory was sent",
            Self::Precopy => "tracking of its writes while the memory was sent",
            Self::Copy => "the pause, which grows with its memory",
        }
    }
}

/// How long pre-copy may take before another way is tried: a VM that writes faster than its memory
/// is sent never comes to the pause.
const PRECOPY: Duration = Duration::from_secs(30);

/// Captures the VM at `socket` into the folder `output`.
pub(super) fn capture(
    args: &Args,
    socket: &Path,
    output: &Path,
) -> Result<(Captured, Capture), Failure> {
    let output = std::path::absolute(output).map_err(|error| Failure::at(output, error))?;
    if fs::symlink_metadata(&output).is_ok() {
        return Err(Failure::at(&output, "it is there already").hint("choose another --output"));
    }
    let start = Instant::now();
    let mut parent = Parent::find(socket, args.pid)?;
    let folder = parent.machine.folder.clone();
    disks::locate(&mut parent.machine.disks, &folder)?;
    let mark = kaleidoscope_core::clone::CloneId::random().map_err(Failure::new)?.to_string();
    let mark: String = mark.chars().take(8).collect();
    let overlays = disks::overlays(&parent.machine.disks, args.overlays.as_deref(), &mark)?;

    // Complete, it gets its name.
    let mut partial = output.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let made = || {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().mode(0o700).create(&partial)
    };
    let ((), armed) = arm_with(Undo::Remove(partial.clone()), made).map_err(|error| {
        Failure::io(format_args!("{}: cannot create it: {error}", partial.display()), &error)
    })?;
    let mut session = Session { parent: &mut parent, overlays: &overlays, folder: &partial };
    let deadline = start + args.timeout;
    let taken = session.take(args.way, deadline);
    let kept = taken.map_err(|failure| moved(failure, parent.moved, &overlays))?;
    let (pages, saved) = (kept.image.pages, kept.saved);
    kept.image.keep()?;
    folder::save_state(&saved, &partial)?;
    if let Some(registers) = &kept.registers {
        folder::save_text(&partial, folder::REGISTERS, registers)?;
    }
    folder::save_text(&partial, folder::LAYOUT, &parent.layout.to_string())?;
    parent.machine.save(&partial)?;
    let colors = colors(&partial, &parent, kept.registers.as_deref());

    #[expect(clippy::disallowed_methods, reason = "the folder gets its name when it is whole")]
    armed
        .disarm_with(|| fs::rename(&partial, &output))
        .map_err(|error| Failure::unwritable(&output, &error))?;
    let capture = Capture {
        folder: output.display().to_string(),
        way: kept.way.name(),
        cost: kept.way.cost(),
        pause_us: u64::try_from(kept.pause.as_micros()).unwrap_or(u64::MAX),
        seconds: start.elapsed().as_secs_f64(),
        memory_bytes: parent.machine.ram_bytes,
        written_pages: pages,
        device_bytes: saved.device_bytes(),
        disks: parent.machine.disks.len(),
        overlays: overlays.iter().map(|path| path.display().to_string()).collect(),
        colors,
        passed_over: kept.passed_over,
    };
    Ok((Captured::open(&output)?, capture))
}

/// Tells where the VM writes to, if its disks were moved before the failure. Overlays that it does
/// not write to are removed.
fn moved(failure: Failure, moved: Moved, overlays: &[PathBuf]) -> Failure {
    let all: Vec<_> = overlays.iter().map(|path| path.display().to_string()).collect();
    let all = all.join(", ");
    match moved {
        Moved::Yes => failure.or_hint(format!("the VM writes to {all} from now on")),
        Moved::Unknown => {
            failure.or_hint(format!("the VM may write to {all}: QMP's query-block tells"))
        }
        Moved::No => {
            for overlay in overlays {
                // Not there unless QEMU made it before it failed.
                let _ = fs::remove_file(overlay);
            }
            failure
        }
    }
}

/// A VM's memory and state at an instant.
struct Kept {
    way: Way,
    image: Image,
    saved: SavedVm,
    /// `None` where the VM was not stopped for them.
    registers: Option<String>,
    pause: Duration,
    /// Ways that were tried before, and why they could not be taken.
    passed_over: Vec<String>,
}

struct Session<'s> {
    parent: &'s mut Parent,
    overlays: &'s [PathBuf],
    folder: &'s Path,
}

impl Session<'_> {
    /// Captures in the given way, or in the first that is possible.
    fn take(&mut self, way: Way, deadline: Instant) -> Result<Kept, Failure> {
        if way != Way::Auto {
            return self.attempt(way, deadline)?.map_err(Failure::new);
        }
        let mut passed_over = Vec::new();
        // A background snapshot prepares the memory while the VM runs, but not if the VM has to be
        // stopped for its disks before.
        let [first, second] = match self.parent.machine.disks.is_empty() {
            true => [Way::Snapshot, Way::Precopy],
            false => [Way::Precopy, Way::Snapshot],
        };
        for way in [Way::Reflink, first, second, Way::Copy] {
            let longest = if way == Way::Precopy { Instant::now() + PRECOPY } else { deadline };
            match self.attempt(way, deadline.min(longest))? {
                Ok(kept) => return Ok(Kept { passed_over, ..kept }),
                Err(why) => passed_over.push(format!("{}: {why}", way.name())),
            }
        }
        Err(Failure::new(format_args!("the VM cannot be captured: {}", passed_over.join("; "))))
    }

    /// Captures in one way. The inner error says why the way is not possible here; the VM was not
    /// touched then.
    fn attempt(&mut self, way: Way, deadline: Instant) -> Result<Result<Kept, String>, Failure> {
        let bytes = self.parent.machine.ram_bytes;
        let mut image = Image::create(&self.folder.join(folder::RAM), bytes)?;
        let file = match way {
            Way::Reflink | Way::Copy => match memory::file(self.parent) {
                Ok(file) => Some(file),
                Err(failure) => return Ok(Err(failure.cause().to_owned())),
            },
            Way::Auto | Way::Snapshot | Way::Precopy => None,
        };
        if let (Way::Reflink, Some(file)) = (way, &file) {
            let is_possible = image.reflink(file).map_err(|error| self.unwritable(&error))?;
            if !is_possible {
                return Ok(
                    Err("the memory is not in a file of a file system with reflinks".into()),
                );
            }
        }
        if way == Way::Snapshot && !self.parent.is_running {
            return Ok(Err("the VM is paused, and QEMU would let it run on".into()));
        }
        let capabilities: &[&str] = match way {
            Way::Snapshot => &["background-snapshot", "events"],
            Way::Precopy => &[PAUSE, "events"],
            Way::Auto | Way::Reflink | Way::Copy => &["x-ignore-shared", "events"],
        };
        let mut held = Held::new(self.parent, deadline)?;
        if let Err(failure) = held.capabilities(capabilities) {
            return Ok(Err(failure.cause().to_owned()));
        }
        let (saved, image, registers) = match way {
            Way::Precopy => match precopy(&mut held, image, self.overlays)? {
                Ok(parts) => parts,
                Err(why) => return Ok(Err(why)),
            },
            Way::Snapshot => snapshot(&mut held, image, self.overlays)?,
            Way::Auto | Way::Reflink | Way::Copy => {
                let file = file.ok_or_else(|| Failure::new("the memory has no file"))?;
                stopped(&mut held, way, image, &file, self.overlays)?
            }
        };
        let pause = held.end()?;
        Ok(Ok(Kept { way, image, saved, registers, pause, passed_over: Vec::new() }))
    }

    fn unwritable(&self, error: &io::Error) -> Failure {
        Failure::unwritable(&self.folder.join(folder::RAM), error)
    }
}

type Parts = (SavedVm, Image, Option<String>);

/// Registers and disks, of a VM that is paused.
fn at_the_instant(held: &mut Held<'_>, overlays: &[PathBuf]) -> Result<Option<String>, Failure> {
    let registers = held.parent.qmp.human("info registers -a")?;
    let Parent { qmp, machine, moved, .. } = &mut *held.parent;
    disks::switch(qmp, &machine.disks, overlays, moved)?;
    Ok(Some(registers))
}

/// The VM stands still until its memory file is kept.
fn stopped(
    held: &mut Held<'_>,
    way: Way,
    mut image: Image,
    file: &File,
    overlays: &[PathBuf],
) -> Result<Parts, Failure> {
    held.stop()?;
    let registers = at_the_instant(held, overlays)?;
    let failed = |error: io::Error| Failure::io(format_args!("the VM's memory: {error}"), &error);
    if way == Way::Reflink {
        if !image.reflink(file).map_err(failed)? {
            return Err(Failure::new("the file system shares the VM's memory no more"));
        }
    } else {
        image.copy(file).map_err(failed)?;
    }
    let ram = held.parent.machine.ram_block.clone();
    let (receiver, theirs) = Receiver::start(&ram, image)?;
    held.migrate(theirs.as_fd())?;
    drop(theirs);
    held.wait("completed", &mut |_| Ok(()))?;
    held.resume()?;
    let (saved, image) = receiver.end()?;
    if saved.has_ram() {
        return Err(Failure::new("QEMU sent memory that it should have left out"));
    }
    Ok((saved, image, registers))
}

/// QEMU protects the memory, lets the VM run on, and sends each page before it is written.
fn snapshot(held: &mut Held<'_>, image: Image, overlays: &[PathBuf]) -> Result<Parts, Failure> {
    let ram = held.parent.machine.ram_block.clone();
    let (receiver, theirs) = Receiver::start(&ram, image)?;
    memory::allocate(held.parent);
    // Without disks, QEMU's own pause is all that is needed: it is much shorter, because QEMU
    // prepares the memory before.
    let mut runs = held.parent.machine.disks.is_empty();
    let registers = if runs {
        None
    } else {
        held.stop()?;
        at_the_instant(held, overlays)?
    };
    held.migrate(theirs.as_fd())?;
    drop(theirs);
    // Once a page has come, the memory is protected. QEMU 7.2 lets the VM run on by itself.
    held.wait("completed", &mut |parent| {
        if !runs && receiver.has_pages() {
            runs = true;
            parent.qmp.execute("cont", json!({}))?;
        }
        Ok(())
    })?;
    held.resume()?;
    let (saved, image) = receiver.end()?;
    whole(&saved)?;
    Ok((saved, image, registers))
}

/// QEMU sends the memory while the VM runs, and pauses it when little is left. The inner error says
/// why it does not come to that; the VM was not touched then.
fn precopy(
    held: &mut Held<'_>,
    image: Image,
    overlays: &[PathBuf],
) -> Result<Result<Parts, String>, Failure> {
    let ram = held.parent.machine.ram_block.clone();
    let (receiver, theirs) = Receiver::start(&ram, image)?;
    held.migrate(theirs.as_fd())?;
    drop(theirs);
    if let Err(failure) = held.wait("pre-switchover", &mut |_| Ok(())) {
        return Ok(Err(failure.cause().to_owned()));
    }
    let registers = at_the_instant(held, overlays)?;
    let go_on = json!({ "state": "pre-switchover" });
    held.parent.qmp.execute("migrate-continue", go_on)?;
    held.wait("completed", &mut |_| Ok(()))?;
    held.resume()?;
    let (saved, image) = receiver.end()?;
    whole(&saved)?;
    Ok(Ok((saved, image, registers)))
}

fn whole(saved: &SavedVm) -> Result<(), Failure> {
    if saved.has_ram() { Ok(()) } else { Err(Failure::new("QEMU sent no memory")) }
}

/// Colors the image and writes the map. A guest that cannot be colored is cloned all the same.
fn colors(folder: &Path, parent: &Parent, registers: Option<&str>) -> String {
    let colored = || -> Result<String, Failure> {
        let captured = Captured { folder: folder.to_owned(), machine: parent.machine.clone() };
        let image = captured.image()?;
        let vcpus = registers.map(parse_qemu_text).transpose().map_err(Failure::new)?;
        let kept = captured.path(folder::COLORS);
        Ok(color(&image, vcpus.unwrap_or_default(), &kept)?.origin)
    };
    colored().unwrap_or_else(|failure| format!("none: {}", failure.cause()))
}
