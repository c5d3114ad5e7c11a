//! The frame table and the free lists: the use of every frame.

pub(super) mod free_lists;
pub(super) mod page_types;
pub(super) mod reader;
pub(super) mod table;
pub(super) mod unplugged;
