//! VM state coloring: what every page of a guest's memory is, found from outside.
//!
//! Read the modules as a pipeline: [`addr`] and [`memory`] say which frames there are, [`color`] says what they are,
//! [`manifest`] keeps that in a file.

pub mod addr;
pub mod color;
pub mod coloring;
pub mod guest_os;
pub mod image;
pub mod linux;
pub mod manifest;
pub mod memory;
pub mod paging;
pub mod registers;
