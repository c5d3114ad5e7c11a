//! The three comparisons. Each takes the truth and the coloring and answers with its findings.
pub(super) mod anonymous;
pub(super) mod files;
pub(super) mod frames;
