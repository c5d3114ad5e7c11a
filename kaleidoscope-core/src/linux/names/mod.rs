//! Files and the names of their inodes.

pub(super) mod budget;
pub(super) mod dentries;
pub(super) mod files;
