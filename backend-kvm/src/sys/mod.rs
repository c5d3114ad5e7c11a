//! All that is unsafe here: mappings, userfaultfds, and the two KVM calls that take addresses and
//! unchecked state.

mod mapping;
mod scan;
#[cfg(test)]
mod tests;
mod userfault;
mod vcpu;
mod watched;

pub(crate) use mapping::{Immutability, Mapping, Overlay, Sealed, Sharing};
pub(crate) use scan::{Pages, Tracker, own_pages, zero_pages};
pub(crate) use userfault::{Descriptor, Message};
pub(crate) use vcpu::{install_slot, set_xsave};
pub(crate) use watched::Userfault;
