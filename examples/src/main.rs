//! The `kaleidoscope` command.
fn main() {}
