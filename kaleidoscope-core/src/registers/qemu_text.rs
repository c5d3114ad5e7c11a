//! The text of QEMU's monitor command `info registers -a`.
//! A line `CPU#N` precedes each vCPU; a single vCPU may come without one. The registers follow as
//! `NAME=value`, several on a line. Guests outside long mode print `EIP` and `ESP`, and 32-bit
//! values. Segments and tables have several values: `GS =0000 ffff8dce3ec00000 00000000 00000000`
//! (selector, base, limit, flags), `GDT=  base limit`.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{MAX_VCPUS, VcpuRegisters};
use thiserror::Error;

/// Why a text is not a register dump.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum RegistersError {
    /// The text contains no registers.
    #[error("no vCPU registers in the text; expected the output of `info registers -a`")]
    Empty,
    /// A line `CPU#` is not followed by a number.
    #[error("line {line}: {text:?} is not a vCPU number")]
    CpuNumber {
        /// Line number, from 1.
        line: usize,
        /// What follows `CPU#`, shortened.
        text: String,
    },
    /// A vCPU is described twice.
    #[error("line {line}: vCPU {cpu} is described twice")]
    CpuTwice {
        /// Line number of the second description, from 1.
        line: usize,
        /// The vCPU.
        cpu: u32,
    },
    /// There are more than [`MAX_VCPUS`] vCPUs.
    #[error("line {line}: more than {MAX_VCPUS} vCPUs")]
    TooManyVcpus {
        /// Line number, from 1.
        line: usize,
    },
    /// A register's value is not a hexadecimal number.
    #[error("line {line}: value {text:?} of {register} is not a hexadecimal number")]
    Value {
        /// Line number, from 1.
        line: usize,
        /// The register.
        register: &'static str,
        /// The value, shortened.
        text: String,
    },
    /// A register is given twice for one vCPU.
    #[error("line {line}: {register} is given twice")]
    RegisterTwice {
        /// Line number, from 1.
        line: usize,
        /// The register.
        register: &'static str,
    },
    /// A register is missing, for example because the text was truncated.
    #[error("vCPU {cpu} (line {line}) has no {register}")]
    Missing {
        /// Line number of the vCPU's first line, from 1.
        line: usize,
        /// The vCPU.
        cpu: u32,
        /// The register.
        register: &'static str,
    },
}

/// Parses the output of `info registers -a` into one entry per vCPU, in the order of the text.
/// Other lines are skipped.
///
/// # Errors
/// [`RegistersError`] if a register of interest is malformed or given twice, or if one of RIP
/// (EIP), RSP (ESP), CR0, CR3, CR4 is missing.
pub fn parse_qemu_text(text: &str) -> Result<Vec<VcpuRegisters>, RegistersError> {
    let mut vcpus = Vec::new();
    let mut current: Option<Draft> = None;
    for (line, content) in (1..).zip(text.lines()) {
        if let Some(number) = content.trim().strip_prefix("CPU#") {
            finish(current.take(), &mut vcpus)?;
            current = Some(Draft::new(line, cpu_number(line, number)?));
        }
        for (name, value) in assignments(content) {
            let Some(register) = Register::from_name(name) else { continue };
            current.get_or_insert_with(|| Draft::new(line, 0)).set(line, register, value)?;
        }
    }
    finish(current, &mut vcpus)?;
    if vcpus.is_empty() {
        return Err(RegistersError::Empty);
    }
    Ok(vcpus)
}

/// The registers that the parser reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Register {
    Rip,
    Rsp,
    Cr0,
    Cr3,
    Cr4,
    Efer,
    GsBase,
    IdtBase,
    GdtBase,
    Cpl,
}

/// Number of [`Register`]s.
const REGISTERS: usize = 10;

impl Register {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "RIP" | "EIP" => Self::Rip,
            "RSP" | "ESP" => Self::Rsp,
            "CR0" => Self::Cr0,
            "CR3" => Self::Cr3,
            "CR4" => Self::Cr4,
            "EFER" => Self::Efer,
            "GS" => Self::GsBase,
            "IDT" => Self::IdtBase,
            "GDT" => Self::GdtBase,
            "CPL" => Self::Cpl,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Rip => "RIP",
            Self::Rsp => "RSP",
            Self::Cr0 => "CR0",
            Self::Cr3 => "CR3",
            Self::Cr4 => "CR4",
            Self::Efer => "EFER",
            Self::GsBase => "GS",
            Self::IdtBase => "IDT",
            Self::GdtBase => "GDT",
            Self::Cpl => "CPL",
        }
    }

    /// Index of the word of interest in the register's value: a segment's base follows its
    /// selector.
    fn word(self) -> usize {
        usize::from(self == Self::GsBase)
    }
}

/// A vCPU that is being parsed.
struct Draft {
    line: usize,
    cpu: u32,
    /// Whether CR3 was printed with more than 32 bits, which QEMU does only in long mode.
    wide_cr3: bool,
    values: [Option<u64>; REGISTERS],
}

impl Draft {
    fn new(line: usize, cpu: u32) -> Self {
        Self { line, cpu, wide_cr3: false, values: [None; REGISTERS] }
    }

    fn set(&mut self, line: usize, register: Register, value: &str) -> Result<(), RegistersError> {
        let word = value.split_whitespace().nth(register.word()).unwrap_or("");
        // `from_str_radix` also accepts a sign, which is not a hexadecimal digit.
        let digits = Some(word).filter(|w| w.bytes().all(|b| b.is_ascii_hexdigit()));
        let number = digits.and_then(|w| u64::from_str_radix(w, 16).ok());
        let number = number.ok_or_else(|| RegistersError::Value {
            line,
            register: register.name(),
            text: shorten(word),
        })?;
        if register == Register::Cr3 {
            self.wide_cr3 = word.len() > 8;
        }
        match self.values.get_mut(register as usize) {
            Some(slot @ None) => *slot = Some(number),
            Some(Some(_)) | None => {
                return Err(RegistersError::RegisterTwice { line, register: register.name() });
            }
        }
        Ok(())
    }

    fn get(&self, register: Register) -> Option<u64> {
        self.values.get(register as usize).copied().flatten()
    }

    fn require(&self, register: Register) -> Result<u64, RegistersError> {
        let missing =
            RegistersError::Missing { line: self.line, cpu: self.cpu, register: register.name() };
        self.get(register).ok_or(missing)
    }
}

/// Checks a vCPU and appends it to the list.
fn finish(draft: Option<Draft>, vcpus: &mut Vec<VcpuRegisters>) -> Result<(), RegistersError> {
    let Some(draft) = draft else { return Ok(()) };
    if vcpus.len() == MAX_VCPUS {
        return Err(RegistersError::TooManyVcpus { line: draft.line });
    }
    if vcpus.iter().any(|v| v.cpu == draft.cpu) {
        return Err(RegistersError::CpuTwice { line: draft.line, cpu: draft.cpu });
    }
    vcpus.push(VcpuRegisters {
        cpu: draft.cpu,
        rip: draft.require(Register::Rip)?,
        rsp: draft.require(Register::Rsp)?,
        cr0: Some(draft.require(Register::Cr0)?),
        cr3: Some(draft.require(Register::Cr3)?),
        cr4: Some(draft.require(Register::Cr4)?),
        efer: draft.get(Register::Efer),
        long_mode: Some(draft.wide_cr3),
        gs_base: draft.get(Register::GsBase),
        kernel_gs_base: None,
        idt_base: draft.get(Register::IdtBase),
        gdt_base: draft.get(Register::GdtBase),
        cpl: draft.get(Register::Cpl).and_then(|cpl| u8::try_from(cpl & 3).ok()),
    });
    Ok(())
}

fn cpu_number(line: usize, text: &str) -> Result<u32, RegistersError> {
    // Some QEMU versions print the vCPU's state or thread after the number.
    let word = text.split_whitespace().next().unwrap_or("");
    word.parse().map_err(|_| RegistersError::CpuNumber { line, text: shorten(word) })
}

/// Every `NAME=value ...` of a line: the word before each `=`, and the text after it.
fn assignments(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.match_indices('=').filter_map(move |(at, _)| {
        let (before, from) = line.split_at_checked(at)?;
        let name =
            before.trim_end().rsplit(|c: char| c.is_whitespace() || c == '[' || c == '=').next()?;
        Some((name, from.strip_prefix('=')?))
    })
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::super::PagingMode;
    use super::*;
    use proptest::prelude::*;

    const LONG: &str = "\
CPU#0
RAX=000000000001ad40 RBX=0000000000000000 RCX=0000000000000000 RDX=4000000000000000
RSI=0000000000000000 RDI=0000000000009124 RBP=ffffffff9501aa40 RSP=ffffffff95003e98
R8 =0000000000000004 R9 =000000003457cdb0 R10=00000000fffffffb R11=0000000000000000
RIP=ffffffff94017a0b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
CS =0010 0000000000000000 ffffffff 00a09b00 DPL=0 CS64 [-RA]
GS =0000 ffff8b6b5f400000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007efd5b956000 CR3=0000000002794000 CR4=000006b0
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
";

    const LEGACY: &str = "\
EAX=00000000 EBX=00000000 ECX=c0a80000 EDX=00000001
ESI=00000000 EDI=00000000 EBP=c1a5ff88 ESP=c1a5ff80
EIP=c17c3a5e EFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=1
GS =00e0 f69c5000 00000018 00409100 DPL=0 DS   [--A]
GDT=     ff401000 000000ff
IDT=     ff400000 000007ff
CR0=80050033 CR2=b7f2a000 CR3=01d2c000 CR4=00000690
";

    #[test]
    fn reads_a_long_mode_vcpu() {
        let vcpus = parse_qemu_text(LONG).unwrap();
        let expected = VcpuRegisters {
            cpu: 0,
            rip: 0xffff_ffff_9401_7a0b,
            rsp: 0xffff_ffff_9500_3e98,
            cr0: Some(0x8005_0033),
            cr3: Some(0x279_4000),
            cr4: Some(0x6b0),
            efer: Some(0xd01),
            long_mode: Some(true),
            gs_base: Some(0xffff_8b6b_5f40_0000),
            idt_base: Some(0xffff_fe00_0000_0000),
            gdt_base: Some(0xffff_fe00_0000_1000),
            cpl: Some(0),
            ..VcpuRegisters::default()
        };
        assert_eq!(vcpus, [expected]);
        assert_eq!(vcpus[0].paging_mode(), Some(PagingMode::Long4));
    }

    #[test]
    fn reads_a_32_bit_vcpu_without_a_header() {
        let vcpus = parse_qemu_text(LEGACY).unwrap();
        assert_eq!((vcpus[0].cpu, vcpus[0].rip, vcpus[0].cpl), (0, 0xc17c_3a5e, Some(3)));
        assert_eq!((vcpus[0].gs_base, vcpus[0].efer), (Some(0xf69c_5000), None));
        assert_eq!(vcpus[0].paging_mode(), Some(PagingMode::Legacy32));
        let pae = parse_qemu_text(&LEGACY.replace("CR4=00000690", "CR4=000006b0")).unwrap();
        assert_eq!(pae[0].paging_mode(), Some(PagingMode::Pae));
    }

    #[test]
    fn reads_several_vcpus() {
        let text = format!(
            "(qemu) info registers -a\r\n\n{LONG}\nhello\n{}",
            LONG.replace("CPU#0", "CPU#7")
        );
        let numbers: Vec<u32> = parse_qemu_text(&text).unwrap().iter().map(|v| v.cpu).collect();
        assert_eq!(numbers, [0, 7]);
    }

    #[test]
    fn errors_are_precise() {
        let error = |text: &str| parse_qemu_text(text).unwrap_err().to_string();
        assert!(error("nothing here").contains("no vCPU"));
        assert!(
            error(&LONG.replace("CPU#0", "CPU#x")).contains("line 1: \"x\" is not a vCPU number")
        );
        assert!(error(&format!("{LONG}{LONG}")).contains("line 14: vCPU 0 is described twice"));
        assert!(
            error(&LONG.replace("CR3=0000000002794000 ", ""))
                .contains("vCPU 0 (line 1) has no CR3")
        );
        assert!(
            error(&LONG.replace("CR4=000006b0", "CR4=xyz"))
                .contains("line 11: value \"xyz\" of CR4")
        );
        assert!(
            error(&LONG.replace("CR4=000006b0", "CR4=")).contains("line 11: value \"\" of CR4")
        );
        assert!(error(&LONG.replace("CR2=", "CR0=")).contains("line 11: CR0 is given twice"));
        assert!(error(&LONG.replace("CR0=8", "CR0=+")).contains("of CR0"));
        let many: String =
            (0..=MAX_VCPUS).map(|i| LONG.replace("CPU#0", &format!("CPU#{i}"))).collect();
        assert!(error(&many).contains("more than 8192 vCPUs"));
    }

    proptest! {
        #[test]
        fn changed_texts_are_parsed_or_refused(
            at in 0..LONG.len(),
            byte in 0u8..128,
            cut in 0..LONG.len(),
        ) {
            let mut text = LONG.as_bytes().to_vec();
            text[at] = byte;
            text.truncate(cut);
            let _ = parse_qemu_text(&String::from_utf8(text).unwrap());
        }

        #[test]
        fn any_text_is_parsed_or_refused(
            text in "(CPU#|CR[034]=|[ER]IP=|GS =|[0-9a-f \n]|\\PC){0,60}",
        ) {
            let _ = parse_qemu_text(&text);
        }
    }
}
