//! What a lab guest is made of: kernel, modules, packages, root file system, disks.

pub(super) mod disks;
pub(super) mod initramfs;
pub(super) mod kernel;
pub(super) mod modules;
pub(super) mod packages;
pub(super) mod rootfs;
