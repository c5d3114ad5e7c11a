//! QEMU: its machine protocol, its lists of options, and folders with captured VMs.

pub(crate) mod folder;
pub(crate) mod options;
pub(crate) mod qmp;
