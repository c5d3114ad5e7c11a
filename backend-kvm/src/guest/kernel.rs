//! The guest's kernel: switches processes at every timer tick, and reports a failure at every
//! exception.

use super::check_port::PORT;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// The timer's vector.
pub(super) const TIMER: u8 = 0x20;

/// Interrupt vector that notifies the guest that it is a clone.
pub const NOTICE: u8 = 0x21;

/// Registers that the kernel saves on a process's kernel stack, below those that the processor
/// saves.
pub(super) const SAVED: usize = 15;

/// MSRs of the local APIC in x2APIC mode (Intel SDM vol. 3, 10.12).
const END_OF_INTERRUPT: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const LOCAL_TIMER: u32 = 0x832;
const INITIAL_COUNT: u32 = 0x838;
const DIVIDE: u32 = 0x83e;

/// Timer period in cycles of KVM's local APIC timer (1 GHz): a millisecond.
const TICK: u32 = 1_000_000;

/// Offsets in a process's record.
pub(super) const STACK: u8 = 0;
pub(super) const TABLES: u8 = 8;
pub(super) const STACK_END: u8 = 16;
pub(super) const NEXT: u8 = 24;
pub(super) const RECORD: u8 = 32;

/// Guest-physical addresses of a vCPU's kernel; all below 2 GiB and identity mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressLayout {
    pub(super) code: u64,
    /// The address of the current process's record.
    pub(super) current: u64,
    /// Counter of [`NOTICE`] interrupts.
    pub(super) notices: u64,
    pub(super) task: u64,
}

/// The kernel's code and its entry points.
pub(super) struct Code {
    pub(super) bytes: Vec<u8>,
    /// Where the vCPU starts.
    pub(super) entry: u64,
    /// Timer interrupt handler.
    pub(super) tick: u64,
    /// Handler of [`NOTICE`].
    pub(super) notice: u64,
    /// Exception handlers: vector, address.
    pub(super) exceptions: Vec<(u8, u64)>,
}

fn wrmsr(a: &mut CodeAssembler, msr: u32, value: u32) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.mov(eax, value)?;
    a.xor(edx, edx)?;
    a.wrmsr()
}

/// Assembles a vCPU's kernel.
pub(super) fn code(addresses: AddressLayout) -> Result<Code, IcedError> {
    let registers = [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15];
    debug_assert_eq!(registers.len(), SAVED);
    let mut a = CodeAssembler::new(64)?;
    let (mut entry, mut leave) = (a.create_label(), a.create_label());
    let (mut tick, mut notice) = (a.create_label(), a.create_label());

    a.set_label(&mut entry)?;
    wrmsr(&mut a, SPURIOUS, 0x1ff)?;
    wrmsr(&mut a, DIVIDE, 0b1011)?;
    wrmsr(&mut a, LOCAL_TIMER, 1 << 17 | u32::from(TIMER))?;
    wrmsr(&mut a, INITIAL_COUNT, TICK)?;
    a.jmp(leave)?;

    a.set_label(&mut tick)?;
    for register in registers {
        a.push(register)?;
    }
    a.mov(rbx, qword_ptr(addresses.current))?;
    a.mov(qword_ptr(rbx + i32::from(STACK)), rsp)?;
    a.mov(rbx, qword_ptr(rbx + i32::from(NEXT)))?;
    a.mov(qword_ptr(addresses.current), rbx)?;
    wrmsr(&mut a, END_OF_INTERRUPT, 0)?;

    a.set_label(&mut leave)?;
    a.mov(rbx, qword_ptr(addresses.current))?;
    a.mov(rax, qword_ptr(rbx + i32::from(STACK_END)))?;
    // The stack that the processor switches to on the next tick (Intel SDM vol. 3, 8.7).
    a.mov(qword_ptr(addresses.task + 4), rax)?;
    a.mov(rax, qword_ptr(rbx + i32::from(TABLES)))?;
    a.mov(cr3, rax)?;
    a.mov(rsp, qword_ptr(rbx + i32::from(STACK)))?;
    for register in registers.into_iter().rev() {
        a.pop(register)?;
    }
    a.iretq()?;

    a.set_label(&mut notice)?;
    for register in [rax, rcx, rdx] {
        a.push(register)?;
    }
    a.inc(qword_ptr(addresses.notices))?;
    wrmsr(&mut a, END_OF_INTERRUPT, 0)?;
    for register in [rdx, rcx, rax] {
        a.pop(register)?;
    }
    a.iretq()?;

    // Divide error, invalid opcode (a process's check failure), double fault, general protection,
    // page fault.
    let mut exceptions = Vec::new();
    for vector in [0u8, 6, 8, 13, 14] {
        let mut label = a.create_label();
        a.set_label(&mut label)?;
        a.mov(rbp, rax)?;
        a.mov(al, u32::from(vector))?;
        a.mov(dx, u32::from(PORT))?;
        a.out(dx, al)?;
        let mut forever = a.create_label();
        a.set_label(&mut forever)?;
        a.jmp(forever)?;
        exceptions.push((vector, label));
    }

    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let assembled = a.assemble_options(addresses.code, options)?;
    Ok(Code {
        entry: assembled.label_ip(&entry)?,
        tick: assembled.label_ip(&tick)?,
        notice: assembled.label_ip(&notice)?,
        exceptions: exceptions
            .into_iter()
            .map(|(vector, label)| Ok((vector, assembled.label_ip(&label)?)))
            .collect::<Result<_, IcedError>>()?,
        bytes: assembled.inner.code_buffer,
    })
}
