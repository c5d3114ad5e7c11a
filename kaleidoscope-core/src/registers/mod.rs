//! vCPU registers: the few that say how a guest translates addresses and where its kernel is.
//!
//! They come from a hypervisor, from `info registers -a` of QEMU's monitor ([`parse_qemu_text`]),
//! or from the notes of an ELF dump ([`MemoryImage::vcpus`](crate::image::MemoryImage::vcpus)).

mod paging_mode;
mod qemu_text;

pub use paging_mode::PagingMode;
pub use qemu_text::{RegistersError, parse_qemu_text};

/// Most vCPUs that a source may describe; Linux and KVM stop at this number too on x86-64.
pub const MAX_VCPUS: usize = 8192;

/// Registers of one vCPU. What a source may lack is optional.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VcpuRegisters {
    /// The vCPU's number at its source.
    pub cpu: u32,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Control register 0.
    pub cr0: Option<u64>,
    /// Control register 3, the root of the page tables, with its flags.
    pub cr3: Option<u64>,
    /// Control register 4.
    pub cr4: Option<u64>,
    /// The extended feature enable register.
    pub efer: Option<u64>,
    /// Whether the vCPU is in long mode (EFER.LMA), for sources that tell this without EFER
    /// itself.
    pub long_mode: Option<bool>,
    /// Base of GS: in the kernel, the vCPU's per-CPU area.
    pub gs_base: Option<u64>,
    /// What `swapgs` exchanges with the base of GS: in user mode, the vCPU's per-CPU area.
    pub kernel_gs_base: Option<u64>,
    /// Base of the interrupt descriptor table.
    pub idt_base: Option<u64>,
    /// Base of the global descriptor table.
    pub gdt_base: Option<u64>,
    /// Current privilege level, 0 (kernel) to 3 (user).
    pub cpl: Option<u8>,
}
