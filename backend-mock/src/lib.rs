//! Synthetic guests.
