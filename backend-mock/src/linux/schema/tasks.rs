//! Tasks, address spaces, modules.

use super::{Schema, embedded, pointer_to};
use crate::MockError;
use crate::linux::KernelStyle;
use crate::linux::types::{CHAR, I32, Type, U8, U32, U64, array, member, void_pointer};

impl Schema<'_> {
    pub(super) fn tasks(&mut self) -> Result<(), MockError> {
        let style = self.style;
        self.types.typedef("pgdval_t", U64);
        let entry = vec![embedded("pgd", "pgdval_t")];
        let entry = Type::Anonymous(self.types.lay_out(false, entry)?);
        self.types.typedef("pgd_t", entry);
        let mut mm = vec![
            embedded("mm_users", "atomic_t"),
            embedded("mm_count", "atomic_t"),
            pointer_to("pgd", "pgd_t"),
            member("task_size", U64),
            embedded("mmlist", "list_head"),
            member("total_vm", U64),
            pointer_to("exe_file", "file"),
        ];
        if style == KernelStyle::V5_10 {
            mm.insert(0, pointer_to("mmap", "vm_area_struct"));
        }
        self.rng.shuffle(&mut mm);
        // The members are in an anonymous structure, followed by the CPU mask.
        let mm = self.types.anonymous(false, mm)?;
        self.fixed("mm_struct", vec![mm, member("cpu_bitmap", array(U64, 0))])?;
        self.shuffled(
            "signal_struct",
            vec![
                embedded("sigcnt", "atomic_t"),
                embedded("live", "atomic_t"),
                member("nr_threads", I32),
                embedded("thread_head", "list_head"),
                pointer_to("curr_target", "task_struct"),
                member("group_exit_code", I32),
            ],
        )?;
        self.shuffled(
            "sched_entity",
            vec![
                embedded("run_node", "rb_node"),
                embedded("group_node", "list_head"),
                member("on_rq", U32),
                embedded("exec_start", "u64"),
                embedded("sum_exec_runtime", "u64"),
                embedded("vruntime", "u64"),
                pointer_to("parent", "sched_entity"),
            ],
        )?;
        self.shuffled(
            "sched_info",
            vec![
                member("pcount", U64),
                member("run_delay", Type::Int("long long unsigned int", 8, false)),
                member("last_arrival", Type::Int("long long unsigned int", 8, false)),
                member("last_queued", Type::Int("long long unsigned int", 8, false)),
            ],
        )?;
        let state =
            if style == KernelStyle::V5_10 { member("state", U64) } else { member("__state", U32) };
        let on_cpu =
            if style >= KernelStyle::V7_2 { member("on_cpu", U8) } else { member("on_cpu", I32) };
        self.shuffled(
            "task_struct",
            vec![
                state,
                member("stack", void_pointer()),
                embedded("usage", "atomic_t"),
                member("flags", U32),
                on_cpu,
                embedded("se", "sched_entity"),
                embedded("sched_info", "sched_info"),
                embedded("tasks", "list_head"),
                pointer_to("mm", "mm_struct"),
                pointer_to("active_mm", "mm_struct"),
                embedded("pid", "pid_t"),
                embedded("tgid", "pid_t"),
                pointer_to("real_parent", "task_struct"),
                pointer_to("parent", "task_struct"),
                embedded("children", "list_head"),
                embedded("sibling", "list_head"),
                pointer_to("group_leader", "task_struct"),
                embedded("thread_node", "list_head"),
                member("start_time", U64),
                pointer_to("cred", "cred"),
                member("comm", array(CHAR, 16)),
                pointer_to("files", "files_struct"),
                pointer_to("signal", "signal_struct"),
            ],
        )?;
        self.shuffled(
            "module",
            vec![
                member("state", U32),
                embedded("list", "list_head"),
                member("name", array(CHAR, 56)),
                pointer_to("syms", "kernel_symbol"),
                member("num_syms", U32),
                embedded("source_list", "list_head"),
            ],
        )
    }
}
