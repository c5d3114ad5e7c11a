//! Clones under every failure: the mock's own promises, and the engine's.

mod contracts;
