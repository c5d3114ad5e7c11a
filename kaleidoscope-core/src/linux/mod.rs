//! What a Linux kernel says of itself in its own memory.
//!
//! Three descriptions travel with every modern kernel, and together they replace a symbol file and a profile:
//!
//! * [`vmcoreinfo`]: a text page meant for crash-dump tools (a few addresses, sizes and offsets);
//! * [`kallsyms`]: the compressed symbol table (addresses by name);
//! * [`btf`]: the type information (field offsets, sizes, enumeration values).
//!
//! All of it is read from guest memory and therefore hostile: every parser here is bounded and returns precise errors.

pub mod btf;
mod bytes;
pub mod kallsyms;
pub mod vmcoreinfo;
