//! Configuration of a synthetic guest.

use super::encryption::Encryption;
use super::{KernelStyle, MockGuest, assemble};
use crate::MockError;
use kaleidoscope_core::addr::FRAME_SIZE;

/// All settings.
#[derive(Clone, Debug)]
pub(super) struct Knobs {
    pub(super) style: KernelStyle,
    pub(super) seed: u64,
    pub(super) ram_bytes: u64,
    pub(super) hole_at: Option<u64>,
    pub(super) five_level: bool,
    pub(super) isolated: bool,
    pub(super) kaslr: bool,
    pub(super) numa: bool,
    pub(super) move_page_words: bool,
    pub(super) stale_note: bool,
    pub(super) cpus: u32,
    pub(super) files: Option<u32>,
    pub(super) processes: u32,
    pub(super) hugetlb_pages: u32,
    pub(super) balloon: bool,
    pub(super) encryption: Option<Encryption>,
    pub(super) prot_none: bool,
    /// Size in bytes of a virtio-mem device's unplugged memory.
    pub(super) kept: Option<u64>,
}

/// Builds a synthetic Linux guest. The same settings give the same guest, byte for byte.
///
/// ```
/// use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};
/// let guest = GuestBuilder::new(KernelStyle::V6_12).seed(7).ram_bytes(32 << 20).build()?;
/// assert_eq!(guest.truth.roles().len(), 8192);
/// # Ok::<(), kaleidoscope_mock::MockError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct GuestBuilder {
    knobs: Knobs,
}

impl GuestBuilder {
    /// A guest with 64 MiB of RAM, two CPUs, four-level paging, KASLR, and a few objects of every
    /// kind.
    pub fn new(style: KernelStyle) -> Self {
        Self {
            knobs: Knobs {
                style,
                seed: 0,
                ram_bytes: 64 << 20,
                hole_at: None,
                five_level: false,
                isolated: false,
                kaslr: true,
                numa: true,
                move_page_words: false,
                stale_note: false,
                cpus: 2,
                files: None,
                processes: 5,
                hugetlb_pages: 2,
                balloon: true,
                encryption: None,
                prot_none: false,
                kept: None,
            },
        }
    }

    /// Seed of all random choices, including structure layouts.
    pub fn seed(mut self, seed: u64) -> Self {
        self.knobs.seed = seed;
        self
    }

    /// Bytes of RAM: a multiple of 2 MiB, at least 16 MiB.
    pub fn ram_bytes(mut self, bytes: u64) -> Self {
        self.knobs.ram_bytes = bytes;
        self
    }

    /// Moves RAM from this address on (a multiple of 2 MiB) to 4 GiB, which leaves a hole for
    /// devices below 4 GiB.
    pub fn pci_hole_at(mut self, address: u64) -> Self {
        self.knobs.hole_at = Some(address);
        self
    }

    /// Enables five-level paging.
    pub fn five_level(mut self, on: bool) -> Self {
        self.knobs.five_level = on;
        self
    }

    /// Enables page-table isolation (PTI).
    pub fn page_table_isolation(mut self, on: bool) -> Self {
        self.knobs.isolated = on;
        self
    }

    /// Whether the kernel's addresses are randomized.
    pub fn kaslr(mut self, on: bool) -> Self {
        self.knobs.kaslr = on;
        self
    }

    /// Whether the kernel supports several memory nodes, which changes where it stores its zones.
    pub fn numa(mut self, on: bool) -> Self {
        self.knobs.numa = on;
        self
    }

    /// Also randomizes the order of words in `struct page`, which no kernel has done for years.
    pub fn move_page_words(mut self, on: bool) -> Self {
        self.knobs.move_page_words = on;
        self
    }

    /// Adds cached file pages that start like another kernel's VMCOREINFO page.
    pub fn stale_note(mut self, on: bool) -> Self {
        self.knobs.stale_note = on;
        self
    }

    /// Number of CPUs, 1 to 32.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.knobs.cpus = cpus;
        self
    }

    /// Number of cached files; the default depends on the RAM.
    pub fn files(mut self, files: u32) -> Self {
        self.knobs.files = Some(files);
        self
    }

    /// Number of processes, at least 1.
    pub fn processes(mut self, processes: u32) -> Self {
        self.knobs.processes = processes;
        self
    }

    /// Number of 2 MiB pages in the hugetlb pool; fewer if there is not enough memory.
    pub fn hugetlb_pages(mut self, pages: u32) -> Self {
        self.knobs.hugetlb_pages = pages;
        self
    }

    /// Whether a balloon holds some memory.
    pub fn balloon(mut self, on: bool) -> Self {
        self.knobs.balloon = on;
        self
    }

    /// Memory encryption by AMD: CR3 and page-table entries carry this bit (32 to 51) in addition
    /// to addresses, except entries of pages that the kernel shares with its host.
    pub fn memory_encryption(mut self, bit: u32) -> Self {
        self.knobs.encryption = Some(Encryption::Encrypted(bit));
        self
    }

    /// Memory encryption by Intel: page-table entries of pages that the kernel shares with its host
    /// carry this bit (32 to 51) in addition to addresses.
    pub fn shared_bit(mut self, bit: u32) -> Self {
        self.knobs.encryption = Some(Encryption::Shared(bit));
        self
    }

    /// Makes some pages of processes inaccessible (`PROT_NONE`, NUMA balancing), and adds entries
    /// of swapped-out pages.
    pub fn prot_none(mut self, on: bool) -> Self {
        self.knobs.prot_none = on;
        self
    }

    /// Makes RAM above 4 GiB (see [`pci_hole_at`](Self::pci_hole_at)) belong to a virtio-mem device
    /// with `kept` bytes of unplugged memory, a multiple of 4096. The guest also gets a small
    /// NVDIMM. The kernel has no frame table for either.
    pub fn virtio_mem(mut self, kept: u64) -> Self {
        self.knobs.kept = Some(kept);
        self
    }

    /// Builds the guest.
    ///
    /// # Errors
    /// [`MockError::Knobs`] when the settings are invalid, [`MockError::OutOfFrames`] when the RAM
    /// is too small for its contents.
    pub fn build(&self) -> Result<MockGuest, MockError> {
        let k = &self.knobs;
        let whole = |bytes: u64| bytes.is_multiple_of(512 * FRAME_SIZE);
        if k.ram_bytes < 16 << 20 || !whole(k.ram_bytes) || !k.hole_at.is_none_or(whole) {
            return Err(MockError::Knobs(
                "RAM and holes are multiples of 2 MiB, at least 16 MiB of RAM",
            ));
        }
        if !(1..=32).contains(&k.cpus) || k.processes == 0 {
            return Err(MockError::Knobs("a guest has 1 to 32 CPUs and at least one process"));
        }
        let has_high_ram = k.hole_at.is_some_and(|at| at < k.ram_bytes);
        let fits = |kept: u64| has_high_ram && kept > 0 && kept.is_multiple_of(FRAME_SIZE);
        if !k.kept.is_none_or(fits) {
            return Err(MockError::Knobs(
                "a virtio-mem device has RAM above 4 GiB and whole frames",
            ));
        }
        let highest = k.hole_at.map_or(k.ram_bytes, |_| (4 << 30) + k.ram_bytes);
        let fits = |e: Encryption| (1 << 32..1 << 52).contains(&e.mask()) && e.mask() >= highest;
        if !k.encryption.is_none_or(fits) {
            return Err(MockError::Knobs("a bit of encryption is one of 32 to 51, above RAM"));
        }
        assemble::assemble(k)
    }
}
