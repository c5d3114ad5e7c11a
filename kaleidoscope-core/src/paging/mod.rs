//! Page tables as data, and the one bounded walker that reads all of them.
//!
//! A paging mode is a [`PagingSpec`] constant; [`walk`] visits every leaf of an address range,
//! [`translate`] follows one address. Tables are guest memory and so hostile: they may form cycles
//! or point outside RAM. A walk visits no more tables than its [`TableBudget`] allows and reports
//! what it had to skip.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "tests know their numbers"
    )
)]

mod encryption;
mod kernel_space;
mod spec;
mod translate;
mod walk;

pub(crate) use encryption::{SharedBit, find_mask};
pub use kernel_space::{KernelSpace, Run};
pub use spec::{LevelSpec, PagingSpec};
pub use translate::{Translation, translate};
pub use walk::{GvaRange, Leaf, Rights, TableBudget, Visitor, WalkReport, walk};
