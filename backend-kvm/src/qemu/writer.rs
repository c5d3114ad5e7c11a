//! Writes the parts that streams of both kinds consist of.

use super::saved::SavedVm;
use super::wire::{self, page, section};
use kaleidoscope_core::memory::Page;

/// Names have a byte for their length; parsed ones always fit.
pub(super) fn name(out: &mut Vec<u8>, name: &str) {
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend(name.bytes().take(usize::from(length)));
}

/// The header, and the configuration with the machine's name.
pub(super) fn header(out: &mut Vec<u8>, saved: &SavedVm, capabilities: &[&str]) {
    out.extend(wire::MAGIC.to_be_bytes());
    out.extend(wire::VERSION.to_be_bytes());
    out.push(section::CONFIGURATION);
    let machine = saved.machine();
    out.extend(u32::try_from(machine.len()).unwrap_or(0).to_be_bytes());
    out.extend(machine.bytes());
    if !capabilities.is_empty() {
        out.push(section::SUBSECTION);
        name(out, wire::CAPABILITIES);
        out.extend(1_u32.to_be_bytes());
        out.extend(u32::try_from(capabilities.len()).unwrap_or(0).to_be_bytes());
        capabilities.iter().for_each(|capability| name(out, capability));
    }
}

/// Begins the section with RAM: the list of blocks, with guest-physical addresses if shared ones
/// are left out.
pub(super) fn ram_start(out: &mut Vec<u8>, saved: &SavedVm, with_addresses: bool) {
    out.push(section::START);
    out.extend(wire::RAM_SECTION.to_be_bytes());
    name(out, wire::RAM);
    out.extend(0_u32.to_be_bytes());
    out.extend(wire::RAM_VERSION.to_be_bytes());
    let total = saved.blocks().iter().fold(0_u64, |sum, block| sum.saturating_add(block.bytes));
    out.extend((total | page::MEM_SIZE).to_be_bytes());
    for block in saved.blocks() {
        name(out, &block.name);
        out.extend(block.bytes.to_be_bytes());
        if with_addresses {
            out.extend(block.address.to_be_bytes());
        }
    }
    ram_stop(out);
}

/// Begins a further part of the section with RAM.
pub(super) fn ram_part(out: &mut Vec<u8>, kind: u8) {
    out.push(kind);
    out.extend(wire::RAM_SECTION.to_be_bytes());
}

/// Ends a part of the section with RAM.
pub(super) fn ram_stop(out: &mut Vec<u8>) {
    out.extend(page::EOS.to_be_bytes());
    out.push(section::FOOTER);
    out.extend(wire::RAM_SECTION.to_be_bytes());
}

/// A page, `None` for zeros. The block's name is left out where it is the one before.
pub(super) fn ram_page(
    out: &mut Vec<u8>,
    block: Option<&str>,
    offset: u64,
    content: Option<&Page>,
) {
    let continues = if block.is_some() { 0 } else { page::CONTINUE };
    let kind = if content.is_some() { page::PAGE } else { page::ZERO };
    out.extend((offset | continues | kind).to_be_bytes());
    if let Some(block) = block {
        name(out, block);
    }
    match content {
        Some(content) => out.extend(content),
        None => out.push(0),
    }
}

/// All kept pages.
pub(super) fn kept_pages(out: &mut Vec<u8>, saved: &SavedVm) {
    let mut last = None;
    for (block, offset, content) in saved.kept() {
        let block = Some(block.name.as_str());
        ram_page(out, block.filter(|_| block != last), offset, content);
        last = block;
    }
}
