//! A VM that QEMU has saved.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::reader::Reader;
use super::wire::{self, page, section};
use super::writer;
use crate::error::{Error, ErrorKind};
use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE};
use kaleidoscope_core::memory::{Page, is_zero};
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::io::{self, Read};

/// Most blocks of RAM and ROM. QEMU's machines have about ten.
const MAX_BLOCKS: usize = 256;

/// Most bytes of device state, with its description.
const MAX_DEVICES: u64 = 64 << 20;

/// Most pages that are kept, of blocks other than the RAM: video memory, ROMs, tables.
const MAX_KEPT: usize = (1 << 30) / FRAME_BYTES;

/// Most bytes of all blocks.
const MAX_BYTES: u64 = 1 << 46;

/// Longest name of a machine.
const MAX_MACHINE: u32 = 256;

/// Most capabilities that a stream names.
const MAX_CAPABILITIES: u32 = 64;

/// A block of a VM's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RamBlock {
    /// QEMU's name of it.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its address in the memory region above it, in bytes; zero where the stream does not tell.
    pub address: u64,
}

/// Takes a page of the RAM: its offset in the block, in bytes, and its bytes unless they are zeros.
/// A page may come several times; the last one counts.
pub type PageSink<'s> = dyn FnMut(u64, Option<&Page>) -> io::Result<()> + 's;

/// A VM that QEMU has saved with `migrate`: its machine, the blocks of its memory, the pages of all
/// blocks but its RAM, and the state of its devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedVm {
    machine: String,
    blocks: Vec<RamBlock>,
    /// Pages by block and offset.
    kept: BTreeMap<(usize, u64), Option<Box<Page>>>,
    /// Sections of devices as they are in the stream.
    devices: Vec<u8>,
    has_ram: bool,
}

impl SavedVm {
    /// Reads a stream to its end: of a plain migration, of a background snapshot, or with
    /// `x-ignore-shared`. Pages of the block `ram` go to `sink`; there are none if it was left out.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a damaged stream, [`ErrorKind::Unsupported`] for one that
    /// was made with other capabilities or has other sections than RAM and devices, and
    /// [`ErrorKind::Refused`] when the stream or the sink fails. Each names the offset.
    pub fn read(stream: &mut dyn Read, ram: &str, sink: &mut PageSink<'_>) -> Result<Self, Error> {
        let mut reader = Reader::new(stream);
        if reader.u32()? != wire::MAGIC {
            return Err(reader.invalid("it is no migration stream of QEMU"));
        }
        let version = reader.u32()?;
        if version != wire::VERSION {
            return Err(reader.unsupported(format_args!("version {version} is not known")));
        }
        if reader.u8()? != section::CONFIGURATION {
            return Err(reader.unsupported("it names no machine: QEMU 2.4 or later is needed"));
        }
        let length = reader.u32()?;
        if length > MAX_MACHINE {
            return Err(reader.invalid(format_args!("a machine's name of {length} bytes")));
        }
        let machine = reader.text(length as usize)?;
        let mut parser = Parser { reader, ram, ignores_shared: false, last: None };
        let kind = parser.configuration()?;
        let mut saved = Self {
            machine,
            blocks: Vec::new(),
            kept: BTreeMap::new(),
            devices: Vec::new(),
            has_ram: false,
        };
        parser.sections(kind, &mut saved, sink)?;
        if saved.block(ram).is_none() {
            return Err(parser.reader.invalid("it lists no blocks of memory"));
        }
        Ok(saved)
    }

    /// QEMU's name of the machine with its version, such as `pc-i440fx-7.2`.
    #[must_use]
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// The blocks of its memory.
    #[must_use]
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// The block of this name.
    #[must_use]
    pub fn block(&self, name: &str) -> Option<&RamBlock> {
        self.blocks.iter().find(|block| block.name == name)
    }

    /// Bytes of device state.
    #[must_use]
    pub fn device_bytes(&self) -> usize {
        self.devices.len()
    }

    /// Whether the stream had pages of the RAM block.
    #[must_use]
    pub fn has_ram(&self) -> bool {
        self.has_ram
    }

    /// The sections of the devices.
    pub(super) fn devices(&self) -> &[u8] {
        &self.devices
    }

    /// Pages of other blocks than the RAM.
    pub(super) fn kept(&self) -> impl Iterator<Item = (&RamBlock, u64, Option<&Page>)> {
        self.kept.iter().filter_map(|((block, offset), content)| {
            Some((self.blocks.get(*block)?, *offset, content.as_deref()))
        })
    }

    /// The stream of the same VM without its RAM, which a QEMU with the capability
    /// `x-ignore-shared` loads. Its RAM is then whatever its memory backend has.
    #[must_use]
    pub fn without_ram(&self) -> Vec<u8> {
        let mut out = Vec::new();
        writer::header(&mut out, self, &[wire::IGNORE_SHARED]);
        writer::ram_start(&mut out, self, true);
        writer::ram_part(&mut out, section::END);
        writer::kept_pages(&mut out, self);
        writer::ram_stop(&mut out);
        out.extend(&self.devices);
        out.push(section::EOF);
        // An empty description, which destinations pass over.
        out.push(section::DESCRIPTION);
        out.extend(2_u32.to_be_bytes());
        out.extend(b"{}");
        out
    }
}

struct Parser<'r> {
    reader: Reader<'r>,
    ram: &'r str,
    ignores_shared: bool,
    /// The block of the page before.
    last: Option<usize>,
}

impl Parser<'_> {
    /// Reads the subsections of the configuration. Returns the type of the first section.
    fn configuration(&mut self) -> Result<u8, Error> {
        loop {
            let kind = self.reader.u8()?;
            if kind != section::SUBSECTION {
                return Ok(kind);
            }
            let name = self.reader.name()?;
            let _version = self.reader.u32()?;
            match name.as_str() {
                wire::CAPABILITIES => {
                    let count = self.reader.u32()?;
                    if count > MAX_CAPABILITIES {
                        return Err(self.reader.invalid(format_args!("{count} capabilities")));
                    }
                    for _ in 0..count {
                        let capability = self.reader.name()?;
                        if capability != wire::IGNORE_SHARED {
                            let what = format!("it was made with the capability {capability}");
                            return Err(self.reader.unsupported(what));
                        }
                        self.ignores_shared = true;
                    }
                }
                wire::PAGE_BITS => {
                    let bits = self.reader.u32()?;
                    if bits != FRAME_SIZE.trailing_zeros() {
                        let what = format!("its pages have {bits} bits, not 12");
                        return Err(self.reader.unsupported(what));
                    }
                }
                wire::UUID => self.reader.fill(&mut [0; 16])?,
                _ => {
                    let what = format!("the configuration has {name}, which is not known");
                    return Err(self.reader.unsupported(what));
                }
            }
        }
    }

    /// Reads all sections, from one of type `kind` on.
    fn sections(
        &mut self,
        mut kind: u8,
        saved: &mut SavedVm,
        sink: &mut PageSink<'_>,
    ) -> Result<(), Error> {
        let mut ram_section = None;
        loop {
            match kind {
                section::START if ram_section.is_none() => {
                    let number = self.reader.u32()?;
                    let name = self.reader.name()?;
                    let _instance = self.reader.u32()?;
                    let version = self.reader.u32()?;
                    if name != wire::RAM || version != wire::RAM_VERSION {
                        let what = format!("section {name} of version {version} is not known");
                        return Err(self.reader.unsupported(what));
                    }
                    ram_section = Some(number);
                    self.pages(saved, sink)?;
                    self.footer(number)?;
                }
                section::PART | section::END => {
                    let number = self.reader.u32()?;
                    if ram_section != Some(number) {
                        return Err(self
                            .reader
                            .invalid(format_args!("a part of section {number}")));
                    }
                    self.pages(saved, sink)?;
                    self.footer(number)?;
                }
                section::FULL if ram_section.is_some() => {
                    let mut devices = vec![kind];
                    devices.extend(self.reader.rest(MAX_DEVICES)?);
                    let end = end_of_devices(&devices)
                        .ok_or_else(|| self.reader.invalid("the device state has no end"))?;
                    devices.truncate(end);
                    saved.devices = devices;
                    return Ok(());
                }
                section::START => {
                    return Err(self.reader.unsupported("a second section of pages, or of disks"));
                }
                section::FULL => {
                    return Err(self.reader.unsupported("a device's state before the RAM"));
                }
                section::COMMAND => {
                    return Err(self.reader.unsupported("a command: it is no saved stream"));
                }
                _ => return Err(self.reader.invalid(format_args!("a section of type {kind:#x}"))),
            }
            kind = self.reader.u8()?;
        }
    }

    fn footer(&mut self, number: u32) -> Result<(), Error> {
        if self.reader.u8()? != section::FOOTER || self.reader.u32()? != number {
            return Err(self.reader.invalid(format_args!("section {number} has no end")));
        }
        Ok(())
    }

    /// Reads pages, until the part ends.
    fn pages(&mut self, saved: &mut SavedVm, sink: &mut PageSink<'_>) -> Result<(), Error> {
        let mut content = [0; FRAME_BYTES];
        loop {
            let word = self.reader.u64()?;
            let (offset, flags) = (word & !page::FLAGS, word & page::FLAGS);
            match flags & !page::CONTINUE {
                page::EOS => return Ok(()),
                page::MEM_SIZE => self.blocks(offset, saved)?,
                page::ZERO => {
                    let block = self.block(flags, saved)?;
                    let byte = self.reader.u8()?;
                    if byte != 0 {
                        return Err(self.reader.unsupported("a page of equal bytes, not zeros"));
                    }
                    self.page(block, offset, None, saved, sink)?;
                }
                page::PAGE => {
                    let block = self.block(flags, saved)?;
                    self.reader.fill(&mut content)?;
                    let content = (!is_zero(&content)).then_some(&content);
                    self.page(block, offset, content, saved, sink)?;
                }
                flags => {
                    let what = format!(
                        "pages with flags {flags:#x}: compression, XBZRLE, multifd and mapped-ram \
                         are not supported"
                    );
                    return Err(self.reader.unsupported(what));
                }
            }
        }
    }

    /// Reads the list of blocks, which have `total` bytes.
    fn blocks(&mut self, total: u64, saved: &mut SavedVm) -> Result<(), Error> {
        if !saved.blocks.is_empty() || total > MAX_BYTES {
            return Err(self.reader.invalid(format_args!("blocks of {total:#x} bytes")));
        }
        let mut left = total;
        while left > 0 {
            let name = self.reader.name()?;
            let bytes = self.reader.u64()?;
            // The address is in the stream only where shared blocks are left out.
            let address = if self.ignores_shared { self.reader.u64()? } else { 0 };
            left = left
                .checked_sub(bytes)
                .filter(|_| bytes > 0 && bytes.is_multiple_of(FRAME_SIZE))
                .ok_or_else(|| self.reader.invalid(format_args!("{name} of {bytes:#x} bytes")))?;
            if saved.block(&name).is_some() || saved.blocks.len() >= MAX_BLOCKS {
                return Err(self.reader.invalid(format_args!("{name} twice, or too many blocks")));
            }
            saved.blocks.push(RamBlock { name, bytes, address });
        }
        if saved.block(self.ram).is_none() {
            let names: Vec<_> = saved.blocks.iter().map(|block| block.name.as_str()).collect();
            let what = format!("no block {} is among {}", self.ram, names.join(", "));
            return Err(self.reader.invalid(what));
        }
        Ok(())
    }

    /// The block of a page, as an index.
    fn block(&mut self, flags: u64, saved: &SavedVm) -> Result<usize, Error> {
        if flags & page::CONTINUE == 0 {
            let name = self.reader.name()?;
            self.last = saved.blocks.iter().position(|block| block.name == name);
        }
        self.last.ok_or_else(|| self.reader.invalid("a page of no block"))
    }

    fn page(
        &mut self,
        index: usize,
        offset: u64,
        content: Option<&Page>,
        saved: &mut SavedVm,
        sink: &mut PageSink<'_>,
    ) -> Result<(), Error> {
        let block = saved.blocks.get(index).filter(|block| offset < block.bytes);
        let block =
            block.ok_or_else(|| self.reader.invalid(format_args!("a page at {offset:#x}")))?;
        if block.name == self.ram {
            saved.has_ram = true;
            return sink(offset, content).map_err(|error| {
                Error::caused_by(ErrorKind::Refused, format!("keeping page {offset:#x}"), error)
            });
        }
        if saved.kept.len() >= MAX_KEPT {
            return Err(self.reader.unsupported("more than 1 GiB outside of the RAM"));
        }
        saved.kept.insert((index, offset), content.map(|content| Box::new(*content)));
        Ok(())
    }
}

/// Where the sections of devices end: before the end mark, and the description behind it. The
/// sections have no lengths, so that the description is found by its own.
fn end_of_devices(bytes: &[u8]) -> Option<usize> {
    /// The end mark, the type of the description, and its length.
    const HEAD: usize = 6;
    /// The end of a section: a mark, and its number.
    const FOOTER: usize = 5;
    let is_end = |at: &usize| {
        let footer = at.checked_sub(FOOTER).and_then(|footer| bytes.get(footer));
        footer == Some(&section::FOOTER) && bytes.get(*at) == Some(&section::EOF)
    };
    let described = bytes.windows(HEAD).enumerate().find_map(|(at, head)| {
        let [section::EOF, section::DESCRIPTION, length @ ..] = head else { return None };
        let length = u32::from_be_bytes(length.try_into().ok()?);
        let text = bytes.get(at.checked_add(HEAD)?..)?;
        let is_whole = text.len() == usize::try_from(length).ok()?;
        let is_last = is_whole && is_end(&at);
        (is_last && serde_json::from_slice::<IgnoredAny>(text).is_ok()).then_some(at)
    });
    // Without a description, the stream ends with the mark.
    described.or_else(|| bytes.len().checked_sub(1).filter(is_end))
}
