//! Page tables as data, and the single bounded walker that reads all formats.
//!
//! A paging mode is a [`PagingSpec`] constant; [`walk`] visits every leaf in an address range, and
//! [`translate`] translates one address. Page tables are guest memory and therefore hostile: they
//! may form cycles or point outside RAM. A walk visits no more tables than its [`TableBudget`]
//! allows and reports what it skipped.
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
