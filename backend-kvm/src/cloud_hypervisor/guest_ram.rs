//! Where the guest's RAM is, as the JSON of a VM's configuration says. No I/O.

use super::codec::MAX_PAGE;
use crate::error::{Error, ErrorKind};
use crate::memory::PageSize;
use crate::uffd::{Region, frames_of};
use kaleidoscope_core::addr::{FRAME_SIZE, Gpa};
use kaleidoscope_core::memory::MemoryLayout;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeSet;
use std::ops::Range;

/// Most memory slots of a VM.
pub(crate) const MAX_SLOTS: usize = 128;

/// Largest offset in a memory file, in bytes: more than any host maps.
const MAX_OFFSET: u64 = 1 << 47;

/// A piece of a guest's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RamSlot {
    /// Number of KVM's memory slot.
    pub slot: u32,
    /// Guest-physical address of its first byte.
    pub gpa: Gpa,
    /// Length in bytes.
    pub bytes: u64,
    /// Where it begins in its memory file, in bytes.
    pub file_offset: u64,
}

/// A guest's RAM, as its VM's configuration describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestRam {
    /// By ascending guest-physical address.
    slots: Vec<RamSlot>,
    layout: MemoryLayout,
    memory: Memory,
}

/// How the VMM of the clone will back its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Memory {
    is_shared: bool,
    has_huge_pages: bool,
    is_prefaulted: bool,
    has_file: bool,
}

/// The JSON (`VmMigrationConfig`). Other fields are ignored.
#[derive(Deserialize)]
struct Config {
    vm_config: Option<VmConfig>,
    memory_manager_data: MemoryManagerData,
}

#[derive(Deserialize)]
struct MemoryManagerData {
    guest_ram_mappings: Vec<Mapping>,
}

#[derive(Deserialize)]
struct Mapping {
    slot: u32,
    gpa: u64,
    size: u64,
    #[serde(default)]
    file_offset: u64,
    #[serde(default)]
    virtio_mem: bool,
}

#[derive(Deserialize)]
struct VmConfig {
    memory: Option<MemoryConfig>,
    disks: Option<Vec<Device>>,
    net: Option<Vec<Device>>,
    fs: Option<Vec<IgnoredAny>>,
    generic_vhost_user: Option<Vec<IgnoredAny>>,
    user_devices: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
struct Device {
    #[serde(default)]
    vhost_user: bool,
}

#[derive(Deserialize)]
struct MemoryConfig {
    /// 0 where all memory is in zones.
    #[serde(default)]
    size: u64,
    #[serde(flatten)]
    flags: Flags,
    zones: Option<Vec<Flags>>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(default)]
#[derive(Default)]
struct Flags {
    shared: bool,
    hugepages: bool,
    hugepage_size: Option<u64>,
    prefault: bool,
    file: Option<IgnoredAny>,
}

impl GuestRam {
    /// Parses a VM's configuration, of any version.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`] when it is not such JSON, or names memory slots that overlap,
    ///   have the same number, are not of whole pages, or are too large or too many
    /// - [`ErrorKind::Unsupported`] for pages of 1 GiB, for memory of a virtio-mem device, which
    ///   cloud-hypervisor does not watch when it receives a VM, and for devices of other processes
    ///   (vhost-user), whose touches of missing pages nothing reports
    pub fn parse(config: &[u8]) -> Result<Self, Error> {
        let config: Config = serde_json::from_slice(config).map_err(|error| {
            let what = "the configuration is not cloud-hypervisor's of a VM that migrates";
            Error::caused_by(ErrorKind::InvalidInput, what, std::io::Error::from(error))
        })?;
        let mappings = config.memory_manager_data.guest_ram_mappings;
        if mappings.is_empty() || mappings.len() > MAX_SLOTS {
            let found = mappings.len();
            return Err(Error::input(format!(
                "the configuration has {found} memory slots; 1 to {MAX_SLOTS} are possible"
            )));
        }
        let mut numbers = BTreeSet::new();
        let mut slots = Vec::with_capacity(mappings.len());
        for Mapping { slot, gpa, size, file_offset, virtio_mem } in mappings {
            let invalid = |why: &str| {
                Err(Error::input(format!(
                    "memory slot {slot} ({size:#x} bytes at {gpa:#x}, offset {file_offset:#x}): \
                     {why}"
                )))
            };
            if virtio_mem {
                let what = format!(
                    "memory slot {slot} is of a virtio-mem device: cloud-hypervisor would ask for \
                     none of its pages"
                );
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
            if !numbers.insert(slot) {
                return invalid("another slot has its number");
            }
            if size == 0 || [gpa, size, file_offset].iter().any(|n| !n.is_multiple_of(FRAME_SIZE)) {
                return invalid("it is not of whole pages");
            }
            let end = file_offset.checked_add(size);
            if end.is_none_or(|end| end > MAX_OFFSET) || gpa.checked_add(size).is_none() {
                return invalid("it ends beyond any memory");
            }
            slots.push(RamSlot { slot, gpa: Gpa(gpa), bytes: size, file_offset });
        }
        slots.sort_unstable_by_key(|slot| slot.gpa);
        let regions: Vec<_> = slots.iter().map(|slot| (slot.gpa, slot.bytes)).collect();
        let layout = MemoryLayout::new(&regions).map_err(|error| {
            let what = "the configuration's memory slots are no RAM";
            Error::caused_by(ErrorKind::InvalidInput, what, error)
        })?;
        if let Some(device) = config.vm_config.as_ref().and_then(VmConfig::device_elsewhere) {
            let what = format!(
                "the VM has a device in another process ({device}), which would read zeros where \
                 pages are missing"
            );
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let memory = match config.vm_config.and_then(|vm| vm.memory) {
            Some(memory) => Memory::of(&memory)?,
            None => Memory { is_shared: true, ..Memory::default() },
        };
        Ok(Self { slots, layout, memory })
    }

    /// The memory slots, by ascending guest-physical address.
    #[must_use]
    pub fn slots(&self) -> &[RamSlot] {
        &self.slots
    }

    /// The layout of the RAM.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layout.bytes()
    }

    /// Whether the VMM maps memory files that another process gives it: all memory is configured
    /// with `shared=on`, and none with huge pages.
    pub(crate) fn takes_files(&self) -> bool {
        self.memory.is_shared && !self.memory.has_huge_pages
    }

    /// Whether some memory is configured with `file=`: the VMM maps that file where it is given no
    /// memory file.
    pub(crate) fn has_file(&self) -> bool {
        self.memory.has_file
    }

    /// Whether the VMM touches all memory before it asks for pages: it would run on zeros.
    pub(crate) fn is_prefaulted(&self) -> bool {
        self.memory.is_prefaulted
    }

    /// The frames of each slot, where the slots are the RAM of a layout.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names a slot or an address.
    pub(crate) fn frames_of(&self, layout: &MemoryLayout) -> Result<Vec<Range<u32>>, Error> {
        if layout.bytes() != self.bytes() {
            return Err(Error::input(format!(
                "the configuration has {:#x} bytes of RAM, and the colored image {:#x}: it is \
                 another snapshot's",
                self.bytes(),
                layout.bytes()
            )));
        }
        // The address of a region does not matter here; none does until a VMM has mapped it.
        let region = |slot: &RamSlot| Region::at_gpa(0, slot.bytes, slot.gpa);
        let regions: Vec<_> = self.slots.iter().map(region).collect();
        frames_of(&regions, layout, PageSize::Small)
    }
}

impl VmConfig {
    /// The name of a device that another process has: it maps the guest's memory itself.
    fn device_elsewhere(&self) -> Option<&'static str> {
        let is_elsewhere = |all: &Option<Vec<Device>>| {
            all.as_deref().unwrap_or_default().iter().any(|device| device.vhost_user)
        };
        let has = |all: &Option<Vec<IgnoredAny>>| all.as_ref().is_some_and(|all| !all.is_empty());
        let all = [
            (is_elsewhere(&self.disks), "disk with vhost_user=on"),
            (is_elsewhere(&self.net), "net with vhost_user=on"),
            (has(&self.fs), "fs"),
            (has(&self.generic_vhost_user), "generic-vhost-user"),
            (has(&self.user_devices), "user-device"),
        ];
        all.into_iter().find_map(|(is_there, name)| is_there.then_some(name))
    }
}

impl Memory {
    /// What all of a VM's memory has in common.
    fn of(config: &MemoryConfig) -> Result<Self, Error> {
        let zones = config.zones.as_deref().unwrap_or(&[]);
        let whole = (config.size > 0 || zones.is_empty()).then_some(&config.flags);
        let all = || whole.into_iter().chain(zones);
        let pages = all().filter(|flags| flags.hugepages).filter_map(|flags| flags.hugepage_size);
        if let Some(size) = pages.max().filter(|size| *size > MAX_PAGE) {
            let what = format!("guest memory of pages of {size:#x} bytes");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        Ok(Self {
            is_shared: all().all(|flags| flags.shared),
            has_huge_pages: all().any(|flags| flags.hugepages),
            is_prefaulted: all().any(|flags| flags.prefault),
            has_file: all().any(|flags| flags.file.is_some()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slot(slot: u32, gpa: u64, size: u64, offset: u64) -> String {
        format!(
            r#"{{"slot":{slot},"gpa":{gpa},"size":{size},"zone_id":"mem0","virtio_mem":false,"file_offset":{offset}}}"#
        )
    }

    fn parse_with(slots: &[String], memory: &str) -> Result<GuestRam, String> {
        let slots = slots.join(",");
        let config = format!(
            r#"{{"vm_config":{{"cpus":{{}},"memory":{memory}}},"common_cpuid":[1],
            "memory_manager_data":{{"boot_ram":1,"guest_ram_mappings":[{slots}]}}}}"#
        );
        GuestRam::parse(config.as_bytes()).map_err(|error| error.to_string())
    }

    fn parse(slots: &[String]) -> Result<GuestRam, String> {
        parse_with(slots, r#"{"size":4096,"shared":true}"#)
    }

    #[test]
    fn slots_are_sorted_and_have_frames() {
        let high = slot(1, 1 << 32, 2 << 20, 3 << 30);
        let ram = parse(&[high, slot(0, 0, 4 << 20, 0)]).unwrap();
        assert_eq!((ram.bytes(), ram.slots()[0].slot, ram.slots()[1].slot), (6 << 20, 0, 1));
        assert_eq!(ram.slots()[1].file_offset, 3 << 30);
        assert_eq!(ram.frames_of(ram.layout()).unwrap(), [0..1024, 1024..1536]);
        assert!(ram.takes_files() && !ram.is_prefaulted());
        let other = MemoryLayout::contiguous(6 << 20).unwrap();
        let error = ram.frames_of(&other).unwrap_err().to_string();
        assert!(error.contains("no RAM there"), "{error}");
        let error = ram.frames_of(&MemoryLayout::contiguous(4096).unwrap()).unwrap_err();
        assert!(error.to_string().contains("another snapshot's"), "{error}");
    }

    #[test]
    fn wrong_slots_are_named() {
        let cases = [
            (vec![], "0 memory slots"),
            (vec![slot(0, 0, 4096, 0); 129], "129 memory slots"),
            (vec![slot(3, 0, 4096, 0), slot(3, 4096, 4096, 0)], "slot 3"),
            (vec![slot(0, 0, 8192, 0), slot(1, 4096, 4096, 0)], "overlap"),
            (vec![slot(0, 1, 4096, 0)], "whole pages"),
            (vec![slot(0, 0, 0, 0)], "whole pages"),
            (vec![slot(0, 0, 4096, 5)], "whole pages"),
            (vec![slot(0, 0, 4096, u64::MAX - 4095)], "beyond any memory"),
            (vec![slot(0, u64::MAX - 4095, 4096, 0)], "beyond any memory"),
            (vec![slot(0, 0, 1 << 46, 0)], "no RAM"),
            (vec!["7".into()], "not cloud-hypervisor's"),
        ];
        for (slots, expected) in cases {
            let error = parse(&slots).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(GuestRam::parse(b"{}").unwrap_err().to_string().contains("memory_manager_data"));
    }

    #[test]
    fn the_kind_of_memory_is_that_of_all_zones() {
        let all = [slot(0, 0, 4096, 0)];
        let kind = |memory: &str| {
            let ram = parse_with(&all, memory).unwrap();
            (ram.takes_files(), ram.is_prefaulted())
        };
        assert_eq!(kind(r#"{"size":1,"shared":true,"zones":null}"#), (true, false));
        assert_eq!(kind(r#"{"size":1,"shared":false}"#), (false, false));
        assert_eq!(kind(r#"{"size":1,"shared":true,"hugepages":true}"#), (false, false));
        assert_eq!(kind(r#"{"size":1,"shared":true,"prefault":true}"#), (true, true));
        let zones = r#"{"size":0,"zones":[{"id":"a","size":1,"shared":true},{"shared":true}]}"#;
        assert_eq!(kind(zones), (true, false));
        let zones = r#"{"size":0,"zones":[{"shared":true},{"shared":false,"prefault":true}]}"#;
        assert_eq!(kind(zones), (false, true));
        let huge = r#"{"size":1,"hugepages":true,"hugepage_size":1073741824}"#;
        assert!(parse_with(&all, huge).unwrap_err().contains("0x40000000"));
    }

    #[test]
    fn memory_that_nothing_watches_is_refused() {
        let mut slots = [slot(0, 0, 4096, 0), slot(7, 4096, 4096, 0)];
        slots[1] = slots[1].replace(r#""virtio_mem":false"#, r#""virtio_mem":true"#);
        let error = parse(&slots).unwrap_err();
        assert!(error.contains("slot 7 is of a virtio-mem device"), "{error}");
        for (devices, name) in [
            (r#""disks":[{"path":"a"},{"vhost_user":true}]"#, "disk"),
            (r#""net":[{"vhost_user":true}]"#, "net"),
            (r#""fs":[{"tag":"x"}]"#, "fs"),
            (r#""generic_vhost_user":[{}]"#, "generic-vhost-user"),
            (r#""user_devices":[{}]"#, "user-device"),
        ] {
            let memory = format!(r#"{{"size":4096,"shared":true}},{devices},"x":{{}}"#);
            let error = parse_with(&slots[..1], &memory).unwrap_err();
            assert!(error.contains("in another process") && error.contains(name), "{error}");
        }
        let none =
            r#"{"size":4096,"shared":true},"disks":[{"vhost_user":false}],"fs":null,"net":[]"#;
        let ram = parse_with(&slots[..1], none).unwrap();
        assert!(!ram.has_file());
        let file =
            r#"{"size":0,"zones":[{"shared":true,"file":"/x"},{"shared":true,"file":null}]}"#;
        assert!(parse_with(&slots[..1], file).unwrap().has_file());
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_ram(slots in proptest::collection::vec(any::<(u8, u16, u16, u8)>(), 1..9)) {
            let slots = slots.iter().map(|(number, gpa, size, offset)| {
                let [gpa, size, offset] = [*gpa, *size, u16::from(*offset)].map(|n| u64::from(n) << 11);
                slot((*number).into(), gpa, size, offset)
            });
            if let Ok(ram) = parse(&slots.collect::<Vec<_>>()) {
                let frames = ram.frames_of(ram.layout()).unwrap();
                let sum: u64 = frames.iter().map(|frames| frames.len() as u64 * FRAME_SIZE).sum();
                prop_assert_eq!(sum, ram.bytes());
            }
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = GuestRam::parse(&bytes);
        }
    }
}
