//! Layout and initial contents of the guest's memory.

use super::content::{self, FILE};
use super::kernel::{self, AddressLayout, NOTICE, RECORD, SAVED, STACK, STACK_END, TABLES, TIMER};
use super::process::{
    self, CODE, FILE_AT, HEAP, IDENTITY, ProcessParameters, SEEN, STATUS, VERSIONS,
};
use super::tables::{NO_EXECUTE, Tables, USER, WRITE};
use crate::error::Error;
use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE, Gpa};
use kaleidoscope_core::memory::MemoryLayout;

/// Each vCPU's kernel block, 64 KiB.
const BLOCK: u64 = 0x1_0000;
const MAX_VCPUS: usize = 6;
const STACKS: u64 = 0x8_0000;
const MAX_PROCESSES: usize = 64;
/// The page with the machine's identity, which all processes map read-only.
const IDENTITY_AT: u64 = 0xe_0000;
const TABLES_AT: u64 = 0x10_0000;
const USER_AT: u64 = 0x40_0000;

/// Offsets in a vCPU's block.
const DATA: u64 = 0x4000;
const RECORDS: u64 = 0x40;
const TASK: u64 = 0x5000;
const SEGMENTS: u64 = 0x6000;
const GATES: u64 = 0x7000;

/// Segment descriptors: null, kernel code and data, user data and code (Intel SDM vol. 3, 3.4.5);
/// the two words of the task state segment follow.
const FLAT: [u64; 5] =
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
const USER_CODE: u64 = 0x23;
const USER_DATA: u64 = 0x1b;

/// Size and workload of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    mib: u32,
    vcpus: usize,
    heap: u32,
    file: u32,
    writes: u32,
    processes: Vec<ProcessPlan>,
    /// One past the last guest-physical address in use.
    end: u64,
}

/// Guest-physical addresses of a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProcessPlan {
    /// Its number, from 0.
    pub number: usize,
    /// The vCPU that it runs on.
    pub vcpu: usize,
    /// Its round counter, 8 bytes.
    pub status: Gpa,
    /// Its version table, 4 bytes a heap page.
    pub versions: Gpa,
    /// Frames of its heap, in virtual address order.
    pub heap: Vec<Gpa>,
    code: Gpa,
}

/// A vCPU's initial registers and tables.
pub(super) struct Start {
    pub(super) entry: u64,
    pub(super) stack: u64,
    pub(super) tables: u64,
    pub(super) task: u64,
    pub(super) segments: u64,
    pub(super) gates: u64,
}

/// A function that writes bytes to the guest.
pub(super) type Write<'w> = dyn FnMut(Gpa, &[u8]) -> Result<(), Error> + 'w;

fn plan_error(what: impl Into<String>) -> Error {
    Error::input(format!("the small guest: {}", what.into()))
}

impl ProcessPlan {
    /// Where the process records the machine's identity as it last saw it: 16 bytes.
    #[must_use]
    pub fn identity(&self) -> Gpa {
        Gpa(self.status.0 + u64::from(SEEN))
    }

    /// The frame of its code.
    #[must_use]
    pub fn code(&self) -> Gpa {
        self.code
    }
}

impl Plan {
    /// A guest with `mib` MiB of RAM and `processes` processes on `vcpus` vCPUs. Each process has a
    /// heap of `heap` pages, and all share a file of `file` pages (powers of two, the heap at least
    /// 8). Of every four rounds of a process, `writes` rewrite a page.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when the guest does not fit.
    pub fn new(
        mib: u32,
        vcpus: usize,
        processes: usize,
        heap: u32,
        file: u32,
        writes: u32,
    ) -> Result<Self, Error> {
        if vcpus == 0 || vcpus > MAX_VCPUS || processes < vcpus || processes > MAX_PROCESSES {
            return Err(plan_error(format!(
                "1 to {MAX_VCPUS} vCPUs, and up to {MAX_PROCESSES} processes, one for each at least"
            )));
        }
        if !heap.is_power_of_two() || heap < 8 || !file.is_power_of_two() || heap > 1 << 20 {
            return Err(plan_error(
                "heap and file are powers of two, the heap of 8 pages to 4 GiB",
            ));
        }
        let mut next = USER_AT;
        let mut take = |frames: u64| {
            let at = next;
            next += frames * FRAME_SIZE;
            Gpa(at)
        };
        let mut plans: Vec<ProcessPlan> = (0..processes)
            .map(|number| ProcessPlan {
                number,
                vcpu: number % vcpus,
                code: take(1),
                status: take(1),
                versions: take((u64::from(heap) * 4).div_ceil(FRAME_SIZE)),
                heap: Vec::new(),
            })
            .collect();
        take(file.into());
        // As in a machine with a long uptime, neighboring pages of a process are not neighbors in
        // memory.
        for _ in 0..heap {
            plans.iter_mut().for_each(|process| process.heap.push(take(1)));
        }
        let plan = Self { mib, vcpus, heap, file, writes, processes: plans, end: next };
        if next > plan.layout()?.bytes() {
            return Err(plan_error(format!("it takes {} MiB", next.div_ceil(1 << 20))));
        }
        Ok(plan)
    }

    /// Its RAM: one region from address 0.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for a size of zero, or larger
    /// than a layout supports.
    pub fn layout(&self) -> Result<MemoryLayout, Error> {
        MemoryLayout::contiguous(u64::from(self.mib) << 20).map_err(|e| plan_error(e.to_string()))
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vcpus
    }

    /// Its processes.
    #[must_use]
    pub fn processes(&self) -> &[ProcessPlan] {
        &self.processes
    }

    /// Frames of the file, in file order.
    pub fn file(&self) -> impl Iterator<Item = Gpa> + '_ {
        let last = self.processes.last().map_or(USER_AT, |process| {
            process.versions.0 + (u64::from(self.heap) * 4).next_multiple_of(FRAME_SIZE)
        });
        (0..u64::from(self.file)).map(move |page| Gpa(last + page * FRAME_SIZE))
    }

    /// Where the 16 bytes of the machine's identity are: zeros until a hook writes them.
    #[must_use]
    pub fn identity(&self) -> Gpa {
        Gpa(IDENTITY_AT)
    }

    /// Where a vCPU counts [`NOTICE`](super::NOTICE) interrupts, in 8 bytes.
    #[must_use]
    pub fn notices(&self, vcpu: usize) -> Gpa {
        Gpa(Self::addresses(vcpu).notices)
    }

    /// One past the last guest-physical address in use.
    #[must_use]
    pub fn end(&self) -> Gpa {
        Gpa(self.end)
    }

    fn addresses(vcpu: usize) -> AddressLayout {
        let block = BLOCK * (vcpu as u64 + 1);
        AddressLayout {
            code: block,
            current: block + DATA,
            notices: block + DATA + 8,
            task: block + TASK,
        }
    }

    fn record(process: &ProcessPlan, vcpus: usize) -> u64 {
        let position = (process.number / vcpus) as u64;
        Self::addresses(process.vcpu).current + RECORDS + position * u64::from(RECORD)
    }

    fn stack_end(process: &ProcessPlan) -> u64 {
        STACKS + (process.number as u64 + 1) * FRAME_SIZE
    }

    /// Builds the page tables of all processes.
    fn tables(&self) -> Result<Vec<Tables>, Error> {
        let mut room = TABLES_AT..USER_AT;
        let tables = self.processes.iter().map(|process| {
            let tables = self.tables_of(process, room.clone());
            let tables = tables.ok_or_else(|| plan_error("no room for page tables"))?;
            room.start = tables.next();
            Ok(tables)
        });
        tables.collect()
    }

    fn tables_of(&self, process: &ProcessPlan, room: std::ops::Range<u64>) -> Option<Tables> {
        let mut tables = Tables::new(room)?;
        for vcpu in 0..self.vcpus {
            let block = Self::addresses(vcpu).code;
            for at in (block..block + BLOCK).step_by(FRAME_BYTES) {
                let is_code = at < block + DATA;
                tables.map(at, at, if is_code { 0 } else { WRITE | NO_EXECUTE })?;
            }
        }
        for number in 0..self.processes.len() as u64 {
            let at = STACKS + number * FRAME_SIZE;
            tables.map(at, at, WRITE | NO_EXECUTE)?;
        }
        tables.map(IDENTITY, IDENTITY_AT, USER | NO_EXECUTE)?;
        tables.map(CODE, process.code.0, USER)?;
        let data = USER | WRITE | NO_EXECUTE;
        tables.map(STATUS, process.status.0, data)?;
        for page in 0..(u64::from(self.heap) * 4).div_ceil(FRAME_SIZE) {
            let offset = page * FRAME_SIZE;
            tables.map(VERSIONS + offset, process.versions.0 + offset, data)?;
        }
        for (page, gpa) in (0u64..).zip(&process.heap) {
            tables.map(HEAP + page * FRAME_SIZE, gpa.0, data)?;
        }
        for (page, gpa) in (0u64..).zip(self.file()) {
            tables.map(FILE_AT + page * FRAME_SIZE, gpa.0, USER | NO_EXECUTE)?;
        }
        Some(tables)
    }

    /// Writes the guest's initial memory.
    pub(super) fn load(&self, write: &mut Write<'_>) -> Result<(), Error> {
        let tables = self.tables()?;
        for (gpa, bytes) in tables.iter().flat_map(Tables::pages) {
            write(gpa, &bytes)?;
        }
        for vcpu in 0..self.vcpus {
            self.load_kernel(vcpu, write)?;
        }
        for (process, tables) in self.processes.iter().zip(&tables) {
            self.load_process(process, tables.root(), write)?;
        }
        for (page, gpa) in (0u32..).zip(self.file()) {
            write(gpa, &content::page(FILE, page, 0))?;
        }
        Ok(())
    }

    fn load_kernel(&self, vcpu: usize, write: &mut Write<'_>) -> Result<(), Error> {
        let addresses = Self::addresses(vcpu);
        let code = kernel::code(addresses).map_err(|error| plan_error(error.to_string()))?;
        write(Gpa(addresses.code), &code.bytes)?;
        let first = self.processes.iter().find(|process| process.vcpu == vcpu);
        let first = first.map_or(0, |process| Self::record(process, self.vcpus));
        write(Gpa(addresses.current), &first.to_le_bytes())?;
        let task = addresses.task;
        let low = 0x67 | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56;
        let segments = FLAT.into_iter().chain([low, task >> 32]);
        let segments: Vec<u8> = segments.flat_map(u64::to_le_bytes).collect();
        write(Gpa(addresses.code + SEGMENTS), &segments)?;
        for (vector, handler) in
            code.exceptions.iter().copied().chain([(TIMER, code.tick), (NOTICE, code.notice)])
        {
            // Interrupt gate to the kernel's code segment (Intel SDM vol. 3, 7.14.1).
            let low = handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
            let gate = [low.to_le_bytes(), (handler >> 32).to_le_bytes()];
            write(Gpa(addresses.code + GATES + u64::from(vector) * 16), gate.as_flattened())?;
        }
        Ok(())
    }

    fn load_process(
        &self,
        process: &ProcessPlan,
        tables: u64,
        write: &mut Write<'_>,
    ) -> Result<(), Error> {
        let parameters = ProcessParameters {
            owner: process.number as u64,
            heap: self.heap,
            file: self.file,
            writes: self.writes,
            vector: process.number < self.vcpus,
        };
        let code = process::code(parameters).map_err(|error| plan_error(error.to_string()))?;
        write(process.code, &code)?;
        for (page, gpa) in (0u32..).zip(&process.heap) {
            write(*gpa, &content::page(process.number as u64, page, 0))?;
        }
        // A stack as a timer tick leaves it when the process is preempted.
        let end = Self::stack_end(process);
        let mut stack = vec![0u64; SAVED];
        stack.extend([CODE, USER_CODE, 0x202, 0, USER_DATA]);
        let bytes: Vec<u8> = stack.iter().flat_map(|word| word.to_le_bytes()).collect();
        write(Gpa(end - bytes.len() as u64), &bytes)?;
        let record = Self::record(process, self.vcpus);
        let next = self.processes.get(process.number + self.vcpus);
        let next = next.or_else(|| self.processes.get(process.vcpu));
        let next = next.map_or(record, |next| Self::record(next, self.vcpus));
        let fields = [
            (STACK, end - bytes.len() as u64),
            (TABLES, tables),
            (STACK_END, end),
            (kernel::NEXT, next),
        ];
        for (offset, value) in fields {
            write(Gpa(record + u64::from(offset)), &value.to_le_bytes())?;
        }
        Ok(())
    }

    pub(super) fn start(&self, vcpu: usize) -> Result<Start, Error> {
        let addresses = Self::addresses(vcpu);
        let code = kernel::code(addresses).map_err(|error| plan_error(error.to_string()))?;
        let first = self.processes.iter().position(|process| process.vcpu == vcpu);
        let tables = self.tables()?;
        let tables = first.and_then(|first| tables.get(first));
        Ok(Start {
            entry: code.entry,
            stack: STACKS + FRAME_SIZE,
            tables: tables.ok_or_else(|| plan_error("a vCPU without a process"))?.root(),
            task: addresses.task,
            segments: addresses.code + SEGMENTS,
            gates: addresses.code + GATES,
        })
    }
}
