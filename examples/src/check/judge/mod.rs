//! The three comparisons of a coloring with the ground truth.
pub(super) mod anonymous;
pub(super) mod files;
pub(super) mod frames;
