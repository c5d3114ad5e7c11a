//! vCPU registers that determine address translation and locate the kernel.
//!
//! They come from a hypervisor, from `info registers -a` of QEMU's monitor ([`parse_qemu_text`]),
//! or from the notes of an ELF dump ([`MemoryImage::vcpus`](crate::image::MemoryImage::vcpus)).

mod paging_mode;
mod qemu_text;

pub use paging_mode::PagingMode;
pub use qemu_text::{RegistersError, parse_qemu_text};

/// Maximum number of vCPUs in a source; also the limit of Linux and KVM on x86-64.
pub const MAX_VCPUS: usize = 8192;

/// Registers of one vCPU. Registers that some sources lack are optional.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VcpuRegisters {
    /// The vCPU's number in its source.
    pub cpu: u32,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Control register 0.
    pub cr0: Option<u64>,
    /// Control register 3: physical address of the top-level page table, and flags.
    pub cr3: Option<u64>,
    /// Control register 4.
    pub cr4: Option<u64>,
    /// The extended feature enable register (EFER).
    pub efer: Option<u64>,
    /// Whether the vCPU is in long mode (EFER.LMA), for sources that report this but not EFER
    /// itself.
    pub long_mode: Option<bool>,
    /// GS base: in kernel mode, the address of the vCPU's per-CPU area.
    pub gs_base: Option<u64>,
    /// The value that `swapgs` exchanges with the GS base: in user mode, the address of the vCPU's
    /// per-CPU area.
    pub kernel_gs_base: Option<u64>,
    /// Base of the interrupt descriptor table.
    pub idt_base: Option<u64>,
    /// Base of the global descriptor table.
    pub gdt_base: Option<u64>,
    /// Current privilege level, 0 (kernel) to 3 (user).
    pub cpl: Option<u8>,
}
