//! Tasks: names, address spaces, kernel stacks, and last run times.

use super::introspect::RECENT_TASKS;
use super::profile::Profile;
use super::symbols::Symbols;
use super::view::KernelView;
use crate::addr::{Gpa, Gva};
use crate::guest_os::name::escape;
use crate::memory::GuestMemory;
use std::collections::{HashMap, HashSet};

/// Maximum number of tasks to read; Linux's own limit for process IDs (`PID_MAX_LIMIT`).
const MAX_TASKS: usize = 4 << 20;

/// Minimum number of frames per task: its kernel stack (`THREAD_SIZE`). Limits the number of tasks
/// in a guest.
const FRAMES_PER_TASK: usize = 4;

/// A task: a process's thread group leader, another thread, or a kernel thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Task {
    /// Address of its `task_struct`.
    pub(crate) address: Gva,
    pub(crate) pid: u32,
    pub(crate) name: String,
    /// Root page table of its process; `None` for kernel threads.
    pub(crate) root: Option<Gpa>,
    /// First address of its kernel stack.
    pub(crate) stack: Option<Gva>,
    /// When it last got a CPU, in nanoseconds of the scheduler's clock; 0 if unknown.
    pub(crate) last_run: u64,
}

/// All tasks, thread group leaders before their other threads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) tasks: Vec<Task>,
    /// Whether a list was broken, so that tasks may be missing.
    pub(crate) damaged: bool,
}

impl Tasks {
    /// Reads the list of all tasks; empty if the kernel's types or symbols are unknown.
    pub(crate) fn read<M>(view: &KernelView<'_, M>, profile: &Profile, symbols: &Symbols) -> Self
    where
        M: GuestMemory + ?Sized,
    {
        let max = MAX_TASKS.min(view.memory().layout().frames() as usize / FRAMES_PER_TASK);
        let mut reader = Reader { view, profile, seen: HashSet::new(), max, out: Self::default() };
        let (init, tasks) = (symbols.init_task, profile.fields.task_tasks);
        if let Some((init, tasks)) = init.zip(tasks) {
            reader.task(init);
            if reader.leaders(init, tasks).is_none() {
                reader.out.damaged = true;
            }
        }
        reader.out
    }

    /// The most recently run tasks, the latest first; empty if run times are unknown.
    pub(crate) fn recent(&self) -> Vec<&Task> {
        let mut ran: Vec<&Task> = self.tasks.iter().filter(|t| t.last_run != 0).collect();
        ran.sort_by_key(|t| std::cmp::Reverse(t.last_run));
        ran.truncate(RECENT_TASKS);
        ran
    }

    /// Rank of every task by last run time, 0 being the latest.
    pub(crate) fn ranks(&self) -> HashMap<Gva, u32> {
        let mut ran: Vec<&Task> = self.tasks.iter().filter(|t| t.last_run != 0).collect();
        ran.sort_by_key(|t| std::cmp::Reverse(t.last_run));
        ran.iter().map(|t| t.address).zip(0..).collect()
    }
}

struct Reader<'v, 'm, M: ?Sized> {
    view: &'v KernelView<'m, M>,
    profile: &'v Profile,
    seen: HashSet<Gva>,
    max: usize,
    out: Tasks,
}

impl<M: GuestMemory + ?Sized> Reader<'_, '_, M> {
    /// Follows the list of thread group leaders; `None` if it is broken or does not return to its
    /// start.
    fn leaders(&mut self, init: Gva, tasks: u64) -> Option<()> {
        let head = init.checked_add(tasks)?;
        let mut link = self.view.read_pointer(head)?;
        while link != head {
            let leader = Gva(link.0.checked_sub(tasks)?);
            if !self.task(leader) {
                return None;
            }
            if self.threads(leader).is_none() {
                self.out.damaged = true;
            }
            link = self.view.read_pointer(link)?;
        }
        Some(())
    }

    /// Follows the list of a process's threads, which includes the leader.
    fn threads(&mut self, leader: Gva) -> Option<()> {
        let fields = &self.profile.fields;
        let (signal, node) = (fields.task_signal?, fields.task_thread_node?);
        let signal = self.view.read_pointer_field(leader, signal)?;
        let head = signal.checked_add(fields.signal_threads?)?;
        let mut link = self.view.read_pointer(head)?;
        let mut passed_leader = false;
        while link != head {
            let thread = Gva(link.0.checked_sub(node)?);
            // Every step must reach a task not seen before; this terminates lists with a cycle.
            let is_new = match thread == leader {
                true => !std::mem::replace(&mut passed_leader, true),
                false => self.task(thread),
            };
            if !is_new {
                return None;
            }
            link = self.view.read_pointer(link)?;
        }
        Some(())
    }

    /// Reads one task; `false` if it was seen before, cannot be read, or the limit is reached.
    fn task(&mut self, address: Gva) -> bool {
        if self.out.tasks.len() >= self.max || !self.seen.insert(address) {
            return false;
        }
        self.read_task(address).map(|task| self.out.tasks.push(task)).is_some()
    }

    fn read_task(&self, address: Gva) -> Option<Task> {
        let (view, fields) = (self.view, &self.profile.fields);
        let mut comm = [0; 64];
        let comm = comm.get_mut(..self.profile.comm_bytes)?;
        view.read(address.checked_add(fields.task_comm?)?, comm)?;
        let end = memchr::memchr(0, comm).unwrap_or(comm.len());
        let name = escape(comm.get(..end)?);
        let pid = view.read_u32(address.checked_add(fields.task_pid?)?)?;
        let mm = view.read_field(address, fields.task_mm?).filter(|&mm| mm != 0);
        let root = mm.and_then(|mm| view.read_pointer_field(Gva(mm), fields.mm_root?));
        let root = root.and_then(|pgd| view.translate(pgd)).map(|(gpa, _)| gpa);
        let stack = fields.task_stack.and_then(|o| view.read_pointer_field(address, o));
        let last_run = fields.task_last_run.and_then(|o| view.read_field(address, o)).unwrap_or(0);
        Some(Task { address, pid, name, root, stack, last_run })
    }
}
