//! A stand-in for a VMM, to try and test handlers with: it maps memory, opens a userfaultfd,
//! registers the memory, sends both over a Unix socket, and then uses the memory.
//!
//! `userfaultfd_vmm SOCKET MEMORY` compares every byte with the file `MEMORY`, in random order,
//! gives half of the memory back, and exits with 0 if all was right.

#![allow(clippy::print_stdout, reason = "an example shows what it finds")]
#![expect(unsafe_code, reason = "a VMM maps memory and gives it back")]

use kaleidoscope_kvm::uffd::send;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::error::Error;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use userfaultfd::{FeatureFlags, UffdBuilder};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// How long the handler may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Memory that a handler fills.
#[derive(Debug)]
pub struct Memory {
    start: *mut u8,
    bytes: usize,
}

impl Memory {
    /// Maps so many bytes, and hands them to the handler that listens at a socket: the message is
    /// the address, 8 bytes in little-endian order.
    pub fn hand_over(socket: &Path, bytes: usize) -> Result<Self, Box<dyn Error>> {
        let (access, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: without a fixed address the kernel chooses one where nothing is mapped.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, flags) }?;
        // What is given back is reported, so that it reads as zeros from then on. Guest memory is
        // touched by the kernel, too (KVM), so that faults of the kernel are reported.
        let mut builder = UffdBuilder::new();
        builder.user_mode_only(false).non_blocking(true);
        let uffd = builder.require_features(FeatureFlags::EVENT_REMOVE).create()?;
        uffd.register(start, bytes)?;
        let since = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if since.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        send(&stream, &(start.addr() as u64).to_le_bytes(), &[uffd.as_fd()])?;
        Ok(Self { start: start.cast(), bytes })
    }

    /// Pages of the memory.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.bytes / PAGE
    }

    /// Reads a word of a page: a fault where it is missing.
    #[must_use]
    pub fn word(&self, page: usize, word: usize) -> u64 {
        assert!(page < self.pages() && word < PAGE / 8, "outside of the memory");
        let word = self.start.cast::<u64>().wrapping_add(page * (PAGE / 8) + word);
        // SAFETY: the word lies in the mapping, as the assertion above says, and is aligned; nothing
        // refers to the mapping, and nothing unmaps it.
        unsafe { word.read_volatile() }
    }

    /// Reads a page's first byte, or sets it to zero: a fault where the page is missing.
    pub fn touch(&self, page: usize, is_write: bool) {
        assert!(page < self.pages(), "outside of the memory");
        let byte = self.start.wrapping_add(page * PAGE);
        if is_write {
            // SAFETY: the byte lies in the mapping, as the assertion above says; nothing refers to
            // the mapping, nothing unmaps it, and no other thread accesses it.
            unsafe { byte.write_volatile(0) };
        } else {
            // SAFETY: as above.
            unsafe { byte.read_volatile() };
        }
    }

    /// Reads a whole page.
    #[must_use]
    pub fn page(&self, page: usize) -> Vec<u8> {
        (0..PAGE / 8).flat_map(|word| self.word(page, word).to_le_bytes()).collect()
    }

    /// Gives the first pages back (a balloon).
    pub fn give_back(&self, pages: usize) -> Result<(), Box<dyn Error>> {
        assert!(pages <= self.pages(), "outside of the memory");
        // SAFETY: the range lies in the mapping, which nothing refers to.
        Ok(unsafe { madvise(self.start.cast(), pages * PAGE, Advice::LinuxDontNeed) }?)
    }
}

/// Numbers below `n`, each once, in an order that `seed` decides.
#[must_use]
pub fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..n).collect();
    let mut state = seed;
    for last in (1..n).rev() {
        // Knuth's MMIX generator; its high bits are the good ones.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = usize::try_from(state >> 33).unwrap_or(0) % (last + 1);
        numbers.swap(last, other);
    }
    numbers
}

/// Compares every byte of the memory with a file, gives half of it back, and compares again.
pub fn run(socket: &Path, file: &Path) -> Result<(), Box<dyn Error>> {
    let expected = std::fs::read(file)?;
    let memory = Memory::hand_over(socket, expected.len())?;
    let expected: Vec<&[u8]> = expected.chunks(PAGE).collect();
    for page in shuffled(memory.pages(), 1) {
        if memory.page(page) != expected[page] {
            return Err(format!("page {page} is wrong").into());
        }
    }
    let half = memory.pages() / 2;
    // The second time, the pages of zeros are given back.
    for _ in 0..2 {
        memory.give_back(half)?;
        for page in shuffled(memory.pages(), 2) {
            let is_right = if page < half {
                memory.page(page).iter().all(|byte| *byte == 0)
            } else {
                memory.page(page) == expected[page]
            };
            if !is_right {
                return Err(format!("page {page} is wrong after memory was given back").into());
            }
        }
    }
    println!("{} pages are right", memory.pages());
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args_os().skip(1);
    let (Some(socket), Some(file)) = (words.next(), words.next()) else {
        return Err("usage: userfaultfd_vmm SOCKET MEMORY".into());
    };
    run(Path::new(&socket), Path::new(&file))
}
