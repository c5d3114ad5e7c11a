//! What the source of a postcopy migration sends.

use super::saved::SavedVm;
use super::wire::{command, ping, section};
use super::writer;
use crate::error::{Error, ErrorKind};
use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE};
use kaleidoscope_core::memory::Page;

/// The source's side of a postcopy migration of a saved VM, whose guest runs at once at the
/// destination.
///
/// Every page of the RAM has to be sent exactly once before [`finish`](Self::finish): a destination
/// fails where a page comes twice, and a page that never comes reads as zeros.
#[derive(Debug)]
#[must_use]
pub struct PostcopySource {
    ram: String,
    ram_bytes: u64,
    /// Whether the next page has to name its block.
    is_first: bool,
}

impl PostcopySource {
    /// Writes all that comes before the first page: from the header to the command that has the
    /// guest run. Pages of other blocks than `ram` are part of it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the VM has no block `ram`, or no device state.
    pub fn start(saved: &SavedVm, ram: &str, out: &mut Vec<u8>) -> Result<Self, Error> {
        let block = saved.block(ram).filter(|_| !saved.devices().is_empty());
        let block = block.ok_or_else(|| {
            Error::input(format!("the saved VM has no device state, or no RAM block {ram}"))
        })?;
        let ram_bytes = block.bytes;
        writer::header(out, saved, &[]);
        send(out, command::OPEN_RETURN_PATH, &[])?;
        // The sizes of the host's pages, all in one, and of the guest's.
        let sizes = [FRAME_SIZE.to_be_bytes(), FRAME_SIZE.to_be_bytes()].concat();
        send(out, command::POSTCOPY_ADVISE, &sizes)?;
        send(out, command::PING, &ping::READY.to_be_bytes())?;
        writer::ram_start(out, saved, false);
        writer::ram_part(out, section::PART);
        writer::kept_pages(out, saved);
        writer::ram_stop(out);

        // Nothing of the RAM is there, whatever the destination has put into it.
        let mut range = vec![0];
        writer::name(&mut range, ram);
        range.push(0);
        range.extend(0_u64.to_be_bytes());
        range.extend(ram_bytes.to_be_bytes());
        send(out, command::POSTCOPY_RAM_DISCARD, &range)?;

        let mut package = Vec::with_capacity(saved.devices().len().saturating_add(32));
        send(&mut package, command::POSTCOPY_LISTEN, &[])?;
        package.extend(saved.devices());
        send(&mut package, command::PING, &ping::LOADED.to_be_bytes())?;
        send(&mut package, command::POSTCOPY_RUN, &[])?;
        let length = u32::try_from(package.len())
            .map_err(|_| Error::new(ErrorKind::Unsupported, "device state of 4 GiB"))?;
        send(out, command::PACKAGED, &length.to_be_bytes())?;
        out.extend(package);
        // Stays open until the end: pages are placed as they come.
        writer::ram_part(out, section::PART);
        Ok(Self { ram: ram.to_owned(), ram_bytes, is_first: true })
    }

    /// Size of the RAM block in bytes.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    /// Bytes that a page takes in the stream at most, beside its own, once one was sent.
    pub const PAGE_OVERHEAD: usize = 8;

    /// Writes the page at this offset of the RAM block; `None` for zeros.
    pub fn page(&mut self, offset: u64, content: Option<&Page>, out: &mut Vec<u8>) {
        let block = self.is_first.then_some(self.ram.as_str());
        writer::ram_page(out, block, offset & !(FRAME_BYTES as u64 - 1), content);
        self.is_first = false;
    }

    /// Writes the end of the stream.
    pub fn finish(self, out: &mut Vec<u8>) {
        writer::ram_stop(out);
        writer::ram_part(out, section::END);
        writer::ram_stop(out);
        out.push(section::EOF);
    }
}

/// A command with its data.
fn send(out: &mut Vec<u8>, command: u16, data: &[u8]) -> Result<(), Error> {
    let length = u16::try_from(data.len())
        .map_err(|_| Error::new(ErrorKind::Unsupported, "a command of 64 KiB"))?;
    out.push(section::COMMAND);
    out.extend(command.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend(data);
    Ok(())
}
