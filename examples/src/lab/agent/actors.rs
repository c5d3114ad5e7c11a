//! Processes that each allocate one kind of memory and then stay alive, so that the paused guest
//! contains it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use clap::ValueEnum;

use super::os::{Advice, Backing, HUGE_PAGE, Mapping, PAGE, memory_file};

/// The line that an actor prints once its memory is set up.
pub(crate) const READY: &str = "ready";

const MIB: usize = 1 << 20;

/// What an actor arranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Actor {
    /// Anonymous memory: one large mapping and many small allocations.
    Heap,
    /// Files that are deleted but open, and private copies of file pages.
    Files,
    /// Transparent huge pages, whole and split.
    Thp,
    /// Pages of the huge page pool.
    Hugetlb,
    /// Pages equal to those of another such actor.
    Ksm,
    /// Pages in swap, some back in memory.
    Swap,
    /// Shared memory without a file name.
    Memfd,
}

impl Actor {
    /// Sets up the memory, prints `READY` on standard output, and sleeps forever.
    ///
    /// # Errors
    /// If the kernel refuses a step.
    pub(crate) fn run(self) -> io::Result<std::convert::Infallible> {
        let _resources = match self {
            Self::Heap => heap()?,
            Self::Files => files()?,
            Self::Thp => thp()?,
            Self::Hugetlb => hugetlb()?,
            Self::Ksm => ksm()?,
            Self::Swap => swap()?,
            Self::Memfd => memfd()?,
        };
        writeln!(io::stdout(), "{READY}")?;
        io::stdout().flush()?;
        loop {
            std::thread::park();
        }
    }
}

/// Resources that must stay alive.
#[derive(Debug, Default)]
struct Resources {
    _mappings: Vec<Mapping>,
    _files: Vec<File>,
    _boxes: Vec<Box<[u64]>>,
}

fn heap() -> io::Result<Resources> {
    let mut memory = Mapping::anonymous(12 * MIB, Backing::Private)?;
    fill(&mut memory, 1)?;
    // A hole in the mapping.
    memory.advise(4 * MIB, MIB, Advice::DontNeed)?;
    let boxes = (0..20_000u64).map(|n| vec![n; 16].into_boxed_slice()).collect();
    Ok(Resources { _mappings: vec![memory], _boxes: boxes, ..Resources::default() })
}

fn files() -> io::Result<Resources> {
    let mut resources = Resources::default();
    for folder in ["/var/tmp", "/tmp"] {
        let path = Path::new(folder).join("deleted-but-open");
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        file.write_all(&[b'd'; 300_000])?;
        std::fs::remove_file(&path)?;
        resources._files.push(file);
    }
    // Private copies of a program's pages, as made by debuggers and relocating loaders.
    let program = File::open("/usr/bin/bash")?;
    let copies = Mapping::file_mut(&program, 64 * PAGE, false)?;
    for page in (0..64).step_by(2) {
        copies.write(page * PAGE, b'c')?;
    }
    resources._mappings.push(copies);
    Ok(resources)
}

fn thp() -> io::Result<Resources> {
    let mut memory = Mapping::anonymous(10 * HUGE_PAGE, Backing::Private)?;
    memory.advise(0, memory.len(), Advice::Huge)?;
    fill(&mut memory, 2)?;
    // Freeing single pages splits the mappings (and later, under pressure, the pages).
    let first = memory.address().next_multiple_of(HUGE_PAGE) - memory.address();
    for huge in 0..3 {
        memory.advise(first + huge * HUGE_PAGE + 5 * PAGE, 3 * PAGE, Advice::DontNeed)?;
    }
    Ok(Resources { _mappings: vec![memory], ..Resources::default() })
}

fn hugetlb() -> io::Result<Resources> {
    let memory = Mapping::anonymous(4 * HUGE_PAGE, Backing::HugePool)?;
    for huge in 0..3 {
        memory.write(huge * HUGE_PAGE, 1)?;
    }
    Ok(Resources { _mappings: vec![memory], ..Resources::default() })
}

fn ksm() -> io::Result<Resources> {
    let mut memory = Mapping::anonymous(4 * MIB, Backing::Private)?;
    memory.advise(0, memory.len(), Advice::Mergeable)?;
    // Groups of four pages are equal, and all pages equal those of the other actor.
    for (index, page) in memory.bytes_mut()?.chunks_exact_mut(PAGE).enumerate() {
        let value = u8::try_from(index / 4 % 251).unwrap_or_default();
        page.fill(value.saturating_add(1));
    }
    Ok(Resources { _mappings: vec![memory], ..Resources::default() })
}

fn swap() -> io::Result<Resources> {
    let mut memory = Mapping::anonymous(16 * MIB, Backing::Private)?;
    fill(&mut memory, 3)?;
    memory.advise(0, 12 * MIB, Advice::PageOut)?;
    // Pages that are read back stay in the swap cache; pages that are written leave it.
    for page in (0..2 * MIB).step_by(PAGE) {
        memory.touch(page)?;
    }
    for page in (2 * MIB..3 * MIB).step_by(PAGE) {
        memory.write(page, 9)?;
    }
    let shared = Mapping::anonymous(2 * MIB, Backing::Shared)?;
    for page in (0..2 * MIB).step_by(PAGE) {
        shared.write(page, 4)?;
    }
    shared.advise(0, MIB, Advice::PageOut)?;
    Ok(Resources { _mappings: vec![memory, shared], ..Resources::default() })
}

fn memfd() -> io::Result<Resources> {
    let file = memory_file(c"lab-memfd")?;
    file.set_len(3 * MIB as u64)?;
    let mappings = vec![
        Mapping::file_mut(&file, 3 * MIB, true)?,
        Mapping::system_v(2 * MIB)?,
        Mapping::anonymous(MIB, Backing::Shared)?,
    ];
    for mapping in &mappings {
        // Every eighth page stays a hole.
        let pages = (0..mapping.len() / PAGE).filter(|page| page % 8 != 7);
        for page in pages {
            mapping.write(page * PAGE, 5)?;
        }
    }
    Ok(Resources { _mappings: mappings, _files: vec![file], ..Resources::default() })
}

/// Fills `memory` with a pseudo-random sequence that does not repeat (xorshift64, Marsaglia 2003).
fn fill(memory: &mut Mapping, seed: u64) -> io::Result<()> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in memory.bytes_mut()?.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    Ok(())
}
