//! VM state coloring.
