//! From the command line's arguments to an image, and from an image to its colors.

use crate::args::{ColoringArgs, ImageFormat, LayoutArgs};
use crate::failure::Failure;
use crate::progress;
use kaleidoscope_core::color::KernelIdentity;
use kaleidoscope_core::coloring::{
    Coloring, ColoringOptions, Rules, color_by_page_tables, color_with_progress,
};
use kaleidoscope_core::guest_os::{IntrospectError, Phase};
use kaleidoscope_core::image::MemoryImage;
use kaleidoscope_core::linux::Linux;
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::registers::{VcpuRegisters, parse_qemu_text};
use std::path::Path;
use std::time::{Duration, Instant};

/// A colored image, and how the coloring went.
#[derive(Debug)]
pub(crate) struct Analysis {
    /// The colors, and the facts behind them.
    pub(crate) coloring: Coloring,
    /// The guest's kernel, even where the colors come from page tables alone.
    pub(crate) kernel: KernelIdentity,
    /// What was cut or damaged, one sentence each.
    pub(crate) notes: Vec<String>,
    /// The stages in order, and how long each took.
    pub(crate) stages: Vec<(&'static str, Duration)>,
}

/// The vCPUs' registers from a file, or else those that the image holds, if any.
pub(crate) fn registers(
    image: &MemoryImage,
    file: Option<&Path>,
) -> Result<Vec<VcpuRegisters>, Failure> {
    file.map_or_else(|| Ok(image.vcpus().to_vec()), read_registers)
}

/// How Linux is read in an image: with the VMCOREINFO text that the image has as a note. A note
/// that is no such text is left out.
pub(crate) fn linux(image: &MemoryImage) -> Linux {
    with_note(image).unwrap_or_default()
}

fn with_note(image: &MemoryImage) -> Result<Linux, IntrospectError> {
    image
        .vmcoreinfo()
        .map_or_else(|| Ok(Linux::default()), |note| Linux::default().vmcoreinfo(note))
}

/// What of the image's file was passed over.
fn passed_over(image: &MemoryImage) -> Vec<String> {
    let mut notes: Vec<_> = image.skipped().iter().map(|s| format!("the image: {s}")).collect();
    if let Err(error) = with_note(image) {
        notes.push(format!("the image: its VMCOREINFO note is passed over: {error}"));
    }
    notes
}

/// Colors an image, with what it says of its guest beside the memory.
pub(crate) fn color_image(
    image: &MemoryImage,
    registers: Vec<VcpuRegisters>,
    rules: Rules,
) -> Result<Analysis, Failure> {
    let options = ColoringOptions::default().registers(registers).linux(linux(image)).rules(rules);
    let mut analysis = color_with(image, &options)?;
    analysis.notes.splice(..0, passed_over(image));
    // What was found in a file that changed meanwhile may be of two times.
    image.check_unchanged().map_err(Failure::new)?;
    Ok(analysis)
}

/// Colors memory of which nothing else is known.
pub(crate) fn color(
    image: &dyn GuestMemory,
    registers: Vec<VcpuRegisters>,
    rules: Rules,
) -> Result<Analysis, Failure> {
    color_with(image, &ColoringOptions::default().registers(registers).rules(rules))
}

fn color_with(image: &dyn GuestMemory, options: &ColoringOptions) -> Result<Analysis, Failure> {
    let mut watch = StopWatch::default();
    let coloring = progress::during("coloring", |status| {
        let mut begin = |stage: Phase| {
            watch.begin(stage.name());
            status.set(stage.name());
        };
        color_with_progress(image, options, &mut begin)
    });
    let coloring = coloring.map_err(|error| {
        Failure::new(error).hint(
            "is this the memory of a Linux guest, and is its layout right (--layout, --format)?",
        )
    })?;
    let notes = coloring.notes().iter().map(ToString::to_string).collect();
    let kernel = coloring.map.kernel().clone();
    Ok(Analysis { coloring, kernel, notes, stages: watch.finish() })
}

/// Colors an image by what `coloring` allows.
pub(crate) fn color_image_with(
    coloring: ColoringArgs,
    image: &MemoryImage,
    registers: Vec<VcpuRegisters>,
    rules: Rules,
) -> Result<Analysis, Failure> {
    if !coloring.page_tables {
        return color_image(image, registers, rules);
    }
    let linux = color_image(image, registers.clone(), Rules::default()).ok();
    let mut analysis = by_page_tables(image, registers, rules, linux)?;
    analysis.notes.splice(..0, passed_over(image));
    image.check_unchanged().map_err(Failure::new)?;
    Ok(analysis)
}

/// Colors memory that is no image file by what `coloring` allows.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn color_memory_with(
    coloring: ColoringArgs,
    memory: &dyn GuestMemory,
    registers: Vec<VcpuRegisters>,
    rules: Rules,
) -> Result<Analysis, Failure> {
    if !coloring.page_tables {
        return color(memory, registers, rules);
    }
    let linux = color(memory, registers.clone(), Rules::default()).ok();
    by_page_tables(memory, registers, rules, linux)
}

/// Colors by page tables alone: those of the vCPUs and, where the guest was recognized as Linux, of
/// its processes.
fn by_page_tables(
    memory: &dyn GuestMemory,
    vcpus: Vec<VcpuRegisters>,
    rules: Rules,
    linux: Option<Analysis>,
) -> Result<Analysis, Failure> {
    let processes = linux.as_ref().map_or(&[][..], |linux| linux.coloring.processes());
    let of_processes = processes.iter().flat_map(|process| {
        let cr3 = Some(process.root.0);
        vcpus.iter().map(move |vcpu| VcpuRegisters { cr3, ..vcpu.clone() })
    });
    let of_processes: Vec<_> = of_processes.collect();
    let registers = if of_processes.is_empty() { vcpus } else { of_processes };
    let options = ColoringOptions::default().registers(registers).rules(rules);
    let coloring = color_by_page_tables(memory, &options).map_err(|error| {
        Failure::new(error).hint("the registers are --regs's, or regs.txt in the guest's folder")
    })?;
    let notes = coloring.notes().iter().map(ToString::to_string).collect();
    let (kernel, stages) = match linux {
        Some(linux) => (linux.kernel, linux.stages),
        None => (coloring.map.kernel().clone(), Vec::new()),
    };
    Ok(Analysis { coloring, kernel, notes, stages })
}

/// Opens the guest in a folder as the guest lab makes it: `ram.bin`, with `layout.txt` and
/// `regs.txt` where they are there.
pub(crate) fn open_guest(folder: &Path) -> Result<(MemoryImage, Vec<VcpuRegisters>), Failure> {
    let beside = |name| Some(folder.join(name)).filter(|path| path.is_file());
    let layout = LayoutArgs { layout: beside("layout.txt"), format: ImageFormat::Auto };
    let image = layout.open(&folder.join("ram.bin")).map_err(|failure| {
        failure.hint("a guest is a folder with ram.bin, with layout.txt unless the image says where its bytes belong")
    })?;
    let registers = registers(&image, beside("regs.txt").as_deref())?;
    Ok((image, registers))
}

/// Measures stages, each of which ends when the next one begins.
#[derive(Debug, Default)]
struct StopWatch {
    running: Option<(&'static str, Instant)>,
    done: Vec<(&'static str, Duration)>,
}

impl StopWatch {
    fn begin(&mut self, stage: &'static str) {
        self.stop();
        self.running = Some((stage, Instant::now()));
    }

    fn stop(&mut self) {
        if let Some((stage, start)) = self.running.take() {
            match self.done.iter_mut().find(|(name, _)| *name == stage) {
                Some((_, time)) => *time += start.elapsed(),
                None => self.done.push((stage, start.elapsed())),
            }
        }
    }

    fn finish(mut self) -> Vec<(&'static str, Duration)> {
        self.stop();
        self.done
    }
}

/// Reads the registers that `info registers -a` of QEMU's monitor printed.
fn read_registers(path: &Path) -> Result<Vec<VcpuRegisters>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::at(path, e))?;
    parse_qemu_text(&text).map_err(|e| {
        let hint = "--regs takes the output of `info registers -a` of QEMU's monitor; coloring also works without";
        Failure::at(path, e).hint(hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_core::image::Format;

    #[test]
    fn a_stage_ends_when_the_next_begins() {
        let mut watch = StopWatch::default();
        for stage in ["a", "b", "a"] {
            watch.begin(stage);
            std::thread::sleep(Duration::from_millis(2));
        }
        let stages = watch.finish();
        assert_eq!(stages.iter().map(|s| s.0).collect::<Vec<_>>(), ["a", "b"]);
        assert!(stages[0].1 >= Duration::from_millis(4), "the second run of a stage is added");
    }

    #[test]
    fn images_that_are_not_guests_are_refused_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram.bin");
        std::fs::write(&path, vec![0; 64 * 4096]).unwrap();
        let layout = LayoutArgs { layout: None, format: ImageFormat::Raw };
        let image = layout.open(&path).unwrap();
        let failure = color(&image, Vec::new(), Rules::default()).unwrap_err().to_string();
        assert!(failure.contains("\nhint: is this the memory of a Linux guest"), "{failure}");
        let failure = registers(&image, Some(&path)).unwrap_err().to_string();
        assert!(failure.contains("hint: --regs takes"), "{failure}");
    }

    /// An ELF core of one frame of RAM, a segment without a physical address, and these notes.
    fn elf_core(notes: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([4u16, 62].map(u16::to_le_bytes).concat());
        file.extend(1u32.to_le_bytes());
        file.extend([0u64, 64, 0].map(u64::to_le_bytes).concat());
        file.extend(0u32.to_le_bytes());
        file.extend([64u16, 56, 3, 0, 0, 0].map(u16::to_le_bytes).concat());
        let notes_bytes = notes.len() as u64;
        let headers =
            [(4u32, 0x2000, 0, notes_bytes), (1, 0x1000, 0, 0x1000), (1, 0x1000, u64::MAX, 0x1000)];
        for (kind, offset, paddr, bytes) in headers {
            file.extend([kind, 7].map(u32::to_le_bytes).concat());
            file.extend([offset, 0, paddr, bytes, bytes, 0].map(u64::to_le_bytes).concat());
        }
        file.resize(0x2000, 0);
        file.extend(notes);
        file
    }

    #[test]
    fn what_is_passed_over_of_an_image_is_told() {
        let mut notes = [5u32, 296, 1].map(u32::to_le_bytes).concat();
        notes.extend(b"CORE\0\0\0\0");
        notes.extend([0; 296]);
        notes.extend([11u32, 4, 0].map(u32::to_le_bytes).concat());
        notes.extend(b"VMCOREINFO\0\0????");
        let image = MemoryImage::from_bytes(elf_core(&notes), &Format::Auto).unwrap();
        assert!(with_note(&image).is_err());
        let told = passed_over(&image);
        let all = ["vCPU note at 0x2000", "program header 2", "VMCOREINFO note is passed over"];
        assert_eq!(told.len(), all.len(), "{told:?}");
        for (text, part) in told.iter().zip(all) {
            assert!(text.starts_with("the image: ") && text.contains(part), "{text}");
        }
        notes.truncate(notes.len() - 4);
        notes.extend(b"OSRELEASE=6.1\n\0\0");
        let at = notes.len() - 16 - 12 - 12 + 4;
        notes[at..at + 4].copy_from_slice(&16u32.to_le_bytes());
        let image = MemoryImage::from_bytes(elf_core(&notes), &Format::Auto).unwrap();
        assert!(with_note(&image).is_ok());
        assert_eq!(passed_over(&image).len(), 2);
    }
}
