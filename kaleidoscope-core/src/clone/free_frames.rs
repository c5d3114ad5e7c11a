//! What becomes of free frames.

/// Whether frames that the guest's allocator calls free are filled with zeros in the clone, or fetched like others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum FreeFrames {
    /// Filled with zeros when touched, never fetched.
    Zero,
    /// Fetched when touched: the clone is equal to its parent in every byte.
    #[default]
    Fetch,
}
