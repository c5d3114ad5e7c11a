//! Tasks, address spaces, modules.

use super::{Schema, held, points};
use crate::MockError;
use crate::linux::KernelStyle;
use crate::linux::types::{CHAR, I32, Type, U8, U32, U64, array, member, void_pointer};

impl Schema<'_> {
    pub(super) fn tasks(&mut self) -> Result<(), MockError> {
        let style = self.style;
        self.types.typedef("pgdval_t", U64);
        let entry = vec![held("pgd", "pgdval_t")];
        let entry = Type::Anonymous(self.types.lay_out(false, entry)?);
        self.types.typedef("pgd_t", entry);
        let mut mm = vec![
            held("mm_users", "atomic_t"),
            held("mm_count", "atomic_t"),
            points("pgd", "pgd_t"),
            member("task_size", U64),
            held("mmlist", "list_head"),
            member("total_vm", U64),
            points("exe_file", "file"),
        ];
        if style == KernelStyle::V5_10 {
            mm.insert(0, points("mmap", "vm_area_struct"));
        }
        self.rng.shuffle(&mut mm);
        // The members sit in an anonymous structure, followed by the CPU mask.
        let mm = self.types.anonymous(false, mm)?;
        self.fixed("mm_struct", vec![mm, member("cpu_bitmap", array(U64, 0))])?;
        self.free(
            "signal_struct",
            vec![
                held("sigcnt", "atomic_t"),
                held("live", "atomic_t"),
                member("nr_threads", I32),
                held("thread_head", "list_head"),
                points("curr_target", "task_struct"),
                member("group_exit_code", I32),
            ],
        )?;
        self.free(
            "sched_entity",
            vec![
                held("run_node", "rb_node"),
                held("group_node", "list_head"),
                member("on_rq", U32),
                held("exec_start", "u64"),
                held("sum_exec_runtime", "u64"),
                held("vruntime", "u64"),
                points("parent", "sched_entity"),
            ],
        )?;
        self.free(
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
        self.free(
            "task_struct",
            vec![
                state,
                member("stack", void_pointer()),
                held("usage", "atomic_t"),
                member("flags", U32),
                on_cpu,
                held("se", "sched_entity"),
                held("sched_info", "sched_info"),
                held("tasks", "list_head"),
                points("mm", "mm_struct"),
                points("active_mm", "mm_struct"),
                held("pid", "pid_t"),
                held("tgid", "pid_t"),
                points("real_parent", "task_struct"),
                points("parent", "task_struct"),
                held("children", "list_head"),
                held("sibling", "list_head"),
                points("group_leader", "task_struct"),
                held("thread_node", "list_head"),
                member("start_time", U64),
                points("cred", "cred"),
                member("comm", array(CHAR, 16)),
                points("files", "files_struct"),
                points("signal", "signal_struct"),
            ],
        )?;
        self.free(
            "module",
            vec![
                member("state", U32),
                held("list", "list_head"),
                member("name", array(CHAR, 56)),
                points("syms", "kernel_symbol"),
                member("num_syms", U32),
                held("source_list", "list_head"),
            ],
        )
    }
}
