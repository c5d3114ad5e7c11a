//! The message in which Firecracker describes its memory.

use crate::error::{Error, ErrorKind};
use crate::memory::PageSize;
use crate::uffd::Region;
use kaleidoscope_core::memory::MemoryLayout;
use serde::Deserialize;
use std::fmt;

/// The memory of a Firecracker VM, as its handshake describes it.
///
/// The message says nothing of guest-physical addresses. A region's offset is its place in the
/// memory file, in which regions follow each other by ascending guest-physical address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handshake {
    regions: Vec<Region>,
    pages: PageSize,
    bytes: u64,
}

/// An item of the array (`GuestRegionUffdMapping`). Fields of later versions are ignored.
#[derive(Deserialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    /// From 1.12: bytes of a page.
    page_size: Option<u64>,
    /// From 1.7: bytes of a page, in spite of its name.
    page_size_kib: Option<u64>,
}

impl Handshake {
    /// Parses a message of any version of Firecracker.
    ///
    /// The regions begin at offset 0 and follow each other without a gap, which is how Firecracker
    /// lays out its memory files. Whether they are all of the guest's RAM is checked when a session
    /// starts.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the message is not such an array, when a region does not
    /// begin in the file where the one before ends or is not of whole pages, or when page sizes are
    /// unknown or differ. The error names the region.
    pub fn parse(message: &[u8]) -> Result<Self, Error> {
        let mappings: Vec<Mapping> = serde_json::from_slice(message).map_err(|error| {
            let what = "the message is not Firecracker's array of memory regions".to_owned();
            Error::caused_by(ErrorKind::InvalidInput, what, std::io::Error::from(error))
        })?;
        let mut found: Option<PageSize> = None;
        let mut regions = Vec::with_capacity(mappings.len());
        let mut end = 0_u64;
        for (n, mapping) in mappings.iter().enumerate() {
            let invalid = |why: fmt::Arguments<'_>| Error::input(format!("region {n}: {why}"));
            let pages = mapping.pages().map_err(|why| invalid(format_args!("{why}")))?;
            if found.is_some_and(|found| found != pages) {
                return Err(invalid(format_args!("its pages are not of the size of region 0's")));
            }
            found = Some(pages);
            let Mapping { base_host_virt_addr: address, size, offset, .. } = *mapping;
            if offset != end {
                return Err(invalid(format_args!(
                    "it begins at offset {offset:#x} of the memory file, and {end:#x} was expected"
                )));
            }
            end = offset.checked_add(size).ok_or_else(|| {
                invalid(format_args!("{size:#x} bytes at offset {offset:#x} end beyond any file"))
            })?;
            let page = pages.bytes() as u64;
            let is_whole = size > 0 && size.is_multiple_of(page) && address.is_multiple_of(page);
            if !is_whole || address.checked_add(size).is_none() {
                return Err(invalid(format_args!(
                    "{size:#x} bytes at address {address:#x} are not whole pages of {page:#x} bytes"
                )));
            }
            regions.push(Region::at_offset(address, size, offset));
        }
        let pages = found.ok_or_else(|| Error::input("the message names no regions".to_owned()))?;
        Ok(Self { regions, pages, bytes: end })
    }

    /// The regions, in the order of the memory file.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The size of the pages that fill the VM's memory.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.pages
    }

    /// Bytes of RAM: the sum of the regions' sizes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checks that the VM's regions can be the RAM of `layout`: they have its size, and none of
    /// them lies on both sides of a hole. A region that does shows that the layout is another
    /// version's, so that guest-physical addresses, and all colors above the hole, would be wrong.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names both sizes, or the region and the hole.
    pub fn check_layout(&self, layout: &MemoryLayout) -> Result<(), Error> {
        if self.bytes != layout.bytes() {
            return Err(Error::input(format!(
                "the VM has {:#x} bytes of RAM, and the memory file {:#x}: it is another snapshot's",
                self.bytes,
                layout.bytes()
            )));
        }
        let mut offset = 0_u64;
        for (n, region) in self.regions.iter().enumerate() {
            let end = offset.saturating_add(region.bytes());
            for hole in layout.regions().iter().skip(1) {
                let at = u64::from(hole.first_index.0) * kaleidoscope_core::addr::FRAME_SIZE;
                if offset < at && at < end {
                    return Err(Error::input(format!(
                        "region {n} ({region}) has no hole at offset {at:#x}, where the layout of \
                         the memory file has one: Firecracker up to 1.12 has another layout than \
                         1.13 and later"
                    )));
                }
            }
            offset = end;
        }
        Ok(())
    }
}

impl Mapping {
    /// The size of its pages.
    fn pages(&self) -> Result<PageSize, String> {
        match (self.page_size, self.page_size_kib) {
            (Some(new), Some(old)) if new != old => {
                Err(format!("page_size is {new}, and page_size_kib is {old}"))
            }
            // Up to 1.6 there were no other pages.
            (None, None) => Ok(PageSize::Small),
            (Some(bytes), _) | (None, Some(bytes)) => [PageSize::Small, PageSize::Huge]
                .into_iter()
                .find(|pages| pages.bytes() as u64 == bytes)
                .ok_or_else(|| format!("pages of {bytes} bytes are not supported")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_core::addr::Gpa;
    use proptest::prelude::*;

    fn item(address: u64, size: u64, offset: u64, pages: &str) -> String {
        format!(r#"{{"base_host_virt_addr":{address},"size":{size},"offset":{offset}{pages}}}"#)
    }

    fn parse(items: &[String]) -> Result<Handshake, String> {
        let message = format!("[{}]", items.join(","));
        Handshake::parse(message.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_version_is_understood() {
        for (pages, size) in [
            ("", PageSize::Small),
            (r#","page_size_kib":4096"#, PageSize::Small),
            (r#","page_size":4096,"page_size_kib":4096"#, PageSize::Small),
            (r#","page_size":2097152"#, PageSize::Huge),
            (r#","page_size":2097152,"later":{"x":[1]}"#, PageSize::Huge),
        ] {
            let all = [item(1 << 40, 2 << 20, 0, pages), item(1 << 41, 4 << 20, 2 << 20, pages)];
            let vm = parse(&all).unwrap();
            assert_eq!((vm.page_size(), vm.bytes(), vm.regions().len()), (size, 6 << 20, 2));
            assert_eq!(vm.regions()[1], Region::at_offset(1 << 41, 4 << 20, 2 << 20));
        }
    }

    #[test]
    fn wrong_messages_name_what_is_wrong() {
        let small = |offset| item(0, 4096, offset, "");
        let cases = [
            (vec![], "names no regions"),
            (vec!["7".into()], "column 2"),
            (vec![r#"{"size":1}"#.into()], "base_host_virt_addr"),
            (vec![item(0, 4096, 0, r#","page_size":65536"#)], "region 0: pages of 65536 bytes"),
            (
                vec![item(0, 4096, 0, r#","page_size":4096,"page_size_kib":4"#)],
                "page_size_kib is 4",
            ),
            (vec![small(0), item(0, 4096, 4096, r#","page_size":2097152"#)], "region 1: its pages"),
            (vec![small(0), small(0)], "region 1: it begins at offset 0x0 of the memory file"),
            (vec![small(0), small(8192)], "and 0x1000 was expected"),
            (vec![small(0), item(0, u64::MAX, 4096, "")], "region 1: 0xffffffffffffffff bytes"),
            (vec![small(0), item(0, 4097, 4096, "")], "region 1: 0x1001 bytes at address 0x0"),
            (vec![item(0, 0, 0, "")], "region 0: 0x0 bytes"),
            (vec![item(8, 4096, 0, "")], "region 0: 0x1000 bytes at address 0x8"),
            (vec![item(u64::MAX - 4095, 4096, 0, "")], "at address 0xfffffffffffff000"),
        ];
        for (items, expected) in cases {
            let error = parse(&items).unwrap_err();
            assert!(error.contains(expected), "{items:?}: {error}");
        }
        let error = Handshake::parse(b"\xff\0").unwrap_err().to_string();
        assert!(error.contains("not Firecracker's array"), "{error}");
    }

    #[test]
    fn another_version_s_layout_is_noticed() {
        let layout = MemoryLayout::new(&[(Gpa(0), 3 << 30), (Gpa(4 << 30), 1 << 30)]).unwrap();
        let of = |sizes: [u64; 2]| {
            parse(&[item(0, sizes[0], 0, ""), item(1 << 40, sizes[1], sizes[0], "")]).unwrap()
        };
        of([3 << 30, 1 << 30]).check_layout(&layout).unwrap();
        let error = of([0xd000_0000, 0x3000_0000]).check_layout(&layout).unwrap_err().to_string();
        assert!(error.contains("region 0") && error.contains("0xc0000000"), "{error}");
        let error = of([3 << 30, 4096]).check_layout(&layout).unwrap_err().to_string();
        assert!(error.contains("0xc0001000 bytes of RAM"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(message in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(vm) = Handshake::parse(&message) {
                prop_assert!(!vm.regions().is_empty());
            }
        }

        #[test]
        fn what_is_accepted_has_the_sum_of_its_sizes(pages in proptest::collection::vec(1..u64::MAX >> 12, 1..9)) {
            let sizes: Vec<u64> = pages.iter().map(|pages| pages << 12).collect();
            let mut offset = 0_u64;
            let items: Vec<_> = sizes.iter().map(|size| {
                let item = item(0, *size, offset, "");
                offset = offset.wrapping_add(*size);
                item
            }).collect();
            let fits = sizes.iter().try_fold(0_u64, |sum, size| sum.checked_add(*size));
            prop_assert_eq!(parse(&items).ok().map(|vm| vm.bytes()), fits);
        }
    }
}
