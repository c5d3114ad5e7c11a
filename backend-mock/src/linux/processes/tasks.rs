//! Tasks (processes, threads, kernel threads) and their kernel stacks.

use crate::MockError;
use crate::linux::boot::STACK_BYTES;
use crate::linux::image::Section;
use crate::linux::kernel::{Kernel, Object, PageRecord};
use crate::linux::memory::frames::LateTables;
use crate::linux::truth::{Role, TaskTruth};
use crate::paging::{Attributes, PageSize, Rights};
use kaleidoscope_core::addr::{FRAME_SIZE, Gva};

/// Thread group of a new task.
#[derive(Clone, Copy, Debug)]
pub(in crate::linux) enum Group {
    /// It leads its own thread group.
    Leader,
    /// It is a thread of this leader.
    ThreadOf(Object),
}

/// The tasks of the guest.
#[derive(Clone, Debug, Default)]
pub(in crate::linux) struct Tasks {
    pub(in crate::linux) truth: Vec<TaskTruth>,
    next_pid: u32,
    clock: u64,
}

impl Kernel {
    /// Creates the first task (`init_task`), which is part of the image.
    pub(in crate::linux) fn first_task(&mut self, tasks: &mut Tasks) -> Result<(), MockError> {
        let bytes = self.types.size_of("task_struct")?;
        let gva = self.image.place(Section::Data, "init_task", bytes, 64)?;
        let task = self.object(gva, "task_struct")?;
        let bytes = self.types.size_of("signal_struct")?;
        let gva = self.image.place(Section::Data, "init_signals", bytes, 8)?;
        let signal = self.object(gva, "signal_struct")?;
        let stack = self.image.symbol("init_stack")?;
        let list = self.address(task, "tasks")?;
        self.list_init(list)?;
        tasks.next_pid = 1;
        tasks.clock = 5_000_000_000 + self.rng.below(1 << 36);
        self.describe_task(task, signal, Group::Leader, "swapper/0", (0, 0), stack)?;
        let (comm, last_ran) = ("swapper/0".to_owned(), 0);
        tasks.truth.push(TaskTruth { pid: 0, tgid: 0, comm, last_ran, stack, space: None });
        Ok(())
    }

    /// Creates a task. `space` is its address space: its position in the truth, and its
    /// `mm_struct`.
    pub(in crate::linux) fn new_task(
        &mut self,
        tasks: &mut Tasks,
        comm: &str,
        group: Group,
        space: Option<(usize, Object)>,
    ) -> Result<Object, MockError> {
        let pid = tasks.next_pid;
        tasks.next_pid += 1 + u32::try_from(self.rng.below(9)).unwrap_or(0);
        let task = self.new_object("task_struct", "task_struct")?;
        let (signal, tgid) = match group {
            Group::Leader => (self.new_object("signal_cache", "signal_struct")?, pid),
            Group::ThreadOf(leader) => {
                let signal = Gva(self.load(self.address(leader, "signal")?)?);
                let tgid = self.load(self.address(leader, "tgid")?)?;
                (
                    self.object(signal, "signal_struct")?,
                    u32::try_from(tgid & 0xffff_ffff).unwrap_or(0),
                )
            }
        };
        let stack = self.new_stack(pid)?;
        self.describe_task(task, signal, group, comm, (pid, tgid), stack)?;
        if matches!(group, Group::Leader) {
            let first = self.object(self.image.symbol("init_task")?, "task_struct")?;
            let (all, node) = (self.address(first, "tasks")?, self.address(task, "tasks")?);
            self.list_append(all, node)?;
        }
        if let Some((_, mm)) = space {
            self.set(task, "mm", mm.gva.0)?;
            self.set(task, "active_mm", mm.gva.0)?;
        }
        let last_ran = tasks.clock - self.rng.below(4_000_000_000);
        self.set(task, "se.exec_start", last_ran)?;
        self.set(task, "sched_info.last_arrival", last_ran)?;
        let space = space.map(|s| s.0);
        tasks.truth.push(TaskTruth { pid, tgid, comm: comm.to_owned(), last_ran, stack, space });
        Ok(task)
    }

    fn describe_task(
        &mut self,
        task: Object,
        signal: Object,
        group: Group,
        comm: &str,
        (pid, tgid): (u32, u32),
        stack: Gva,
    ) -> Result<(), MockError> {
        self.set(task, "pid", pid.into())?;
        self.set(task, "tgid", tgid.into())?;
        self.set_text(task, "comm", comm)?;
        self.set(task, "stack", stack.0)?;
        self.set(task, "usage", 2)?;
        self.set(task, "signal", signal.gva.0)?;
        let head = self.address(signal, "thread_head")?;
        if matches!(group, Group::Leader) {
            self.list_init(head)?;
            self.set(task, "group_leader", task.gva.0)?;
        }
        if let Group::ThreadOf(leader) = group {
            self.set(task, "group_leader", leader.gva.0)?;
        }
        for list in ["children", "sibling"] {
            let at = self.address(task, list)?;
            self.list_init(at)?;
        }
        let node = self.address(task, "thread_node")?;
        self.list_append(head, node)
    }

    /// Allocates a kernel stack in the vmalloc area, with an unmapped guard page.
    fn new_stack(&mut self, pid: u32) -> Result<Gva, MockError> {
        let stack =
            self.vmalloc(STACK_BYTES / FRAME_SIZE, STACK_BYTES, Role::KernelStack { pid })?;
        // The magic word at the end of the stack, and a pushed value.
        self.store(stack.0, 0x57ac_6e9d)?;
        let top = self.rng.next_u64() | 1;
        self.store(stack.0 + STACK_BYTES - 8, top)?;
        Ok(stack)
    }

    /// Maps single frames one after another in the vmalloc area, followed by a gap.
    pub(in crate::linux) fn vmalloc(
        &mut self,
        frames: u64,
        align: u64,
        role: Role,
    ) -> Result<Gva, MockError> {
        let start = (self.vmalloc_next + FRAME_SIZE).next_multiple_of(align);
        self.vmalloc_next = start + frames * FRAME_SIZE;
        self.map_kernel(Gva(start), frames, role, |_| Rights::KERNEL_DATA)?;
        Ok(Gva(start))
    }

    /// Maps new frames at a kernel address; `rights` gives the rights of the page at each offset.
    pub(in crate::linux) fn map_kernel(
        &mut self,
        gva: Gva,
        frames: u64,
        role: Role,
        rights: impl Fn(u64) -> Rights,
    ) -> Result<(), MockError> {
        for i in 0..frames {
            let gfn = self.frames.take(0, |_| role)?;
            self.write_page(gfn, &PageRecord { refcount: 1, ..PageRecord::default() })?;
            self.fill_unique(gfn)?;
            let at = (Gva(gva.0 + i * FRAME_SIZE), gfn.gpa());
            let attributes = Attributes::kernel(rights(i));
            let mut source = LateTables(&mut self.frames);
            self.tables.map(&mut self.memory, &mut source, at, PageSize::Small, attributes)?;
        }
        Ok(())
    }
}
