//! Processes: tasks, address spaces, and what they map.

pub(super) mod populate;
pub(super) mod prot_none;
pub(super) mod space;
pub(super) mod tasks;
