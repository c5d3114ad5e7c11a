//! Code of the guest's processes.

use super::content::{FILE, PAGE, STEP, VERSION, WORDS, seed};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Virtual addresses in a process.
pub(super) const CODE: u64 = 0x10_0000_0000;
pub(super) const STATUS: u64 = 0x11_0000_0000;
pub(super) const VERSIONS: u64 = STATUS + 0x1000;
pub(super) const HEAP: u64 = 0x12_0000_0000;
pub(super) const FILE_AT: u64 = 0x13_0000_0000;
pub(super) const IDENTITY: u64 = 0x14_0000_0000;

/// Offsets in the status page: the round counter (0), the last time stamp, and the machine's
/// identity as the process last saw it.
const TIME: i32 = 8;
pub(super) const SEEN: u8 = 16;

/// Codes of a process's check failures, in `rax`. `rsi` holds the page, `rdi` the expected word,
/// `r9` the word's address.
pub(super) const WRONG_HEAP: u64 = 1;
pub(super) const WRONG_FILE: u64 = 2;
pub(super) const WRONG_TIME: u64 = 3;
pub(super) const WRONG_VECTOR: u64 = 4;

/// Parameters of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProcessParameters {
    pub(super) owner: u64,
    /// Pages of its heap: a power of two, at least 8. Seven of eight rounds use the first eighth.
    pub(super) heap: u32,
    /// Pages of the file: a power of two.
    pub(super) file: u32,
    /// Of every four rounds, how many write a page.
    pub(super) writes: u32,
    /// Whether it uses vector registers, which the kernel does not save: at most one process of a
    /// vCPU.
    pub(super) vector: bool,
}

/// Checks the words of the page at `r9`, which should start with `rdi`. Jumps to `wrong` on a
/// mismatch.
fn check_page(a: &mut CodeAssembler, wrong: CodeLabel) -> Result<(), IcedError> {
    let mut next = a.create_label();
    a.mov(r10, STEP)?;
    a.mov(r8d, WORDS)?;
    a.set_label(&mut next)?;
    a.cmp(qword_ptr(r9), rdi)?;
    a.jne(wrong)?;
    a.add(rdi, r10)?;
    a.add(r9, 8)?;
    a.dec(r8d)?;
    a.jnz(next)
}

/// Sets `rdi` to the first word of page `rsi` of `owner` in version `ecx`.
fn first_word(a: &mut CodeAssembler, owner: u64) -> Result<(), IcedError> {
    a.mov(rdi, PAGE)?;
    a.imul_2(rdi, rsi)?;
    a.mov(rdx, VERSION)?;
    a.mov(r8d, ecx)?;
    a.imul_2(r8, rdx)?;
    a.xor(rdi, r8)?;
    a.mov(rdx, seed(owner))?;
    a.xor(rdi, rdx)
}

/// Sets `r9` to the address of page `rsi` of the area at `base`.
fn page_address(a: &mut CodeAssembler, base: AsmRegister64) -> Result<(), IcedError> {
    a.mov(r9, rsi)?;
    a.shl(r9, 12)?;
    a.add(r9, base)
}

/// The code of a process.
pub(super) fn code(parameters: ProcessParameters) -> Result<Vec<u8>, IcedError> {
    let ProcessParameters { owner, heap, file, writes, vector } = parameters;
    let mut a = CodeAssembler::new(64)?;
    let mut round = a.create_label();
    let mut written = a.create_label();
    let wrong = [a.create_label(), a.create_label(), a.create_label(), a.create_label()];
    let [mut wrong_heap, mut wrong_file, mut wrong_time, mut wrong_vector] = wrong;

    a.mov(r15, HEAP)?;
    a.mov(r14, FILE_AT)?;
    a.mov(r13, STATUS)?;
    a.mov(r12, VERSIONS)?;
    a.mov(r11, seed(owner))?;
    if vector {
        a.mov(rax, seed(owner))?;
        a.movq(xmm7, rax)?;
        a.punpcklqdq(xmm7, xmm7)?;
    }

    a.set_label(&mut round)?;
    // Next random number (Knuth's MMIX generator).
    a.mov(rax, 6_364_136_223_846_793_005u64)?;
    a.imul_2(r11, rax)?;
    a.mov(rax, 1_442_695_040_888_963_407u64)?;
    a.add(r11, rax)?;

    // Select a page of the heap into rsi, and check it.
    a.mov(rsi, r11)?;
    a.shr(rsi, 33)?;
    a.mov(edx, heap / 8 - 1)?;
    a.mov(ecx, heap - 1)?;
    a.test(sil, 7)?;
    a.cmovz(edx, ecx)?;
    a.shr(rsi, 3)?;
    a.and(esi, edx)?;
    a.mov(ecx, dword_ptr(r12 + rsi * 4))?;
    first_word(&mut a, owner)?;
    page_address(&mut a, r15)?;
    check_page(&mut a, wrong_heap)?;

    // Rewrite it in some rounds, word by word.
    a.mov(rax, r11)?;
    a.shr(rax, 60)?;
    a.and(eax, 3)?;
    a.cmp(eax, writes)?;
    a.jae(written)?;
    a.inc(ecx)?;
    first_word(&mut a, owner)?;
    page_address(&mut a, r15)?;
    a.mov(r8d, WORDS)?;
    let mut next = a.create_label();
    a.set_label(&mut next)?;
    a.mov(qword_ptr(r9), rdi)?;
    a.add(rdi, r10)?;
    a.add(r9, 8)?;
    a.dec(r8d)?;
    a.jnz(next)?;
    a.mov(dword_ptr(r12 + rsi * 4), ecx)?;
    a.set_label(&mut written)?;

    // Check a page of the file.
    a.mov(rsi, r11)?;
    a.shr(rsi, 20)?;
    a.and(esi, file - 1)?;
    a.xor(ecx, ecx)?;
    first_word(&mut a, FILE)?;
    page_address(&mut a, r14)?;
    check_page(&mut a, wrong_file)?;

    // Check that time does not go backwards.
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.cmp(rax, qword_ptr(r13 + TIME))?;
    a.jb(wrong_time)?;
    a.mov(qword_ptr(r13 + TIME), rax)?;

    if vector {
        a.movq(rdi, xmm7)?;
        a.mov(rax, seed(owner))?;
        a.cmp(rdi, rax)?;
        a.jne(wrong_vector)?;
    }
    // Record the machine's identity.
    a.mov(rdx, IDENTITY)?;
    for half in [0, 8] {
        a.mov(rax, qword_ptr(rdx + half))?;
        a.mov(qword_ptr(r13 + i32::from(SEEN) + half), rax)?;
    }
    a.inc(qword_ptr(r13))?;
    a.jmp(round)?;

    let codes = [WRONG_HEAP, WRONG_FILE, WRONG_TIME, WRONG_VECTOR];
    let labels = [&mut wrong_heap, &mut wrong_file, &mut wrong_time, &mut wrong_vector];
    for (label, failure) in labels.into_iter().zip(codes) {
        a.set_label(label)?;
        a.mov(rax, failure)?;
        a.ud2()?;
    }
    a.assemble(CODE)
}
