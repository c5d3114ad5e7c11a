//! All unsafe code of the crate besides the C interface: mappings, userfaultfds, page-map scans,
//! socket options, and the two KVM calls that take addresses or unchecked state.

mod mapping;
mod peer;
#[cfg(feature = "machine")]
mod scan;
mod shared_words;
#[cfg(test)]
mod tests;
mod userfault;
#[cfg(feature = "machine")]
mod vcpu;
mod watched;

#[cfg(feature = "machine")]
pub(crate) use mapping::Slot;
pub(crate) use mapping::{Immutability, Mapping, Overlay, Sealed, Sharing};
pub use peer::Peer;
#[cfg(feature = "machine")]
pub(crate) use scan::{Pages, Tracker, own_pages, zero_pages};
pub(crate) use shared_words::SharedWords;
pub(crate) use userfault::{Descriptor, MESSAGE_WORDS, Message, message};
#[cfg(feature = "machine")]
pub(crate) use vcpu::{VcpuHandle, VmHandle};
pub(crate) use watched::Userfault;
