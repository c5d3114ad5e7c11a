//! RAM layouts of known machines, for raw memory files without a layout file.
//!
//! On all of them RAM starts at 0, has a hole for devices below 4 GiB, and continues at 4 GiB; the
//! file holds the pieces in ascending order. Machines differ in where the hole starts and whether
//! there is a second hole. Hot-plugged memory needs a layout file.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::error::ImageError;
use super::segments::Segment;
use crate::addr::Gpa;
use std::fmt;
use std::str::FromStr;

const GIB: u64 = 1 << 30;

/// RAM smaller than this has no hole on any machine in [`Preset`]: Q35 is the first to split.
pub(super) const NEVER_SPLIT_BELOW: u64 = 0xb000_0000;

/// A machine whose RAM layout follows from its size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Preset {
    /// QEMU's `q35` (`pc_q35_init`): the hole starts at 2 GiB if RAM has 2.75 GiB or more. Not for
    /// guests started with `max-ram-below-4g` or with a machine type older than 2.0.
    QemuQ35,
    /// QEMU's `pc`, the i440FX (`pc_init1`): the hole starts at 3 GiB if RAM has 3.5 GiB or more.
    /// The exceptions of `QemuQ35` apply.
    QemuPc,
    /// QEMU's `microvm` (`microvm_memory_init`): the hole starts at 3 GiB.
    QemuMicrovm,
    /// cloud-hypervisor: the hole starts at 3 GiB (`MEM_32BIT_RESERVED_START`).
    CloudHypervisor,
    /// Firecracker 1.13 and later: holes from 3 to 4 GiB (`MMIO32_MEM_START`) and from 256 to 512
    /// GiB (`MMIO64_MEM_START`).
    Firecracker,
    /// Firecracker up to 1.12: one hole of 768 MiB below 4 GiB (`MEM_32BIT_GAP_SIZE`).
    Firecracker1_12,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 6] = [
        Self::QemuQ35,
        Self::QemuPc,
        Self::QemuMicrovm,
        Self::CloudHypervisor,
        Self::Firecracker,
        Self::Firecracker1_12,
    ];

    /// The preset's name, as [`FromStr`] parses it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QemuQ35 => "qemu-q35",
            Self::QemuPc => "qemu-pc",
            Self::QemuMicrovm => "qemu-microvm",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Firecracker => "firecracker",
            Self::Firecracker1_12 => "firecracker-1.12",
        }
    }

    /// The segments of a memory file of `bytes` bytes, by ascending address.
    #[must_use]
    pub fn segments(self, bytes: u64) -> Vec<Segment> {
        let below_4g = match self {
            Self::QemuQ35 if bytes >= 0xb000_0000 => 2 * GIB,
            Self::QemuQ35 => 0xb000_0000,
            Self::QemuPc if bytes >= 0xe000_0000 => 3 * GIB,
            Self::QemuPc => 0xe000_0000,
            Self::QemuMicrovm | Self::CloudHypervisor | Self::Firecracker => 3 * GIB,
            Self::Firecracker1_12 => 0xd000_0000,
        };
        let below_second_hole = match self {
            Self::Firecracker => (256 - 4) * GIB,
            Self::QemuQ35
            | Self::QemuPc
            | Self::QemuMicrovm
            | Self::CloudHypervisor
            | Self::Firecracker1_12 => u64::MAX,
        };
        let runs = [(0, below_4g), (4 * GIB, below_second_hole), (512 * GIB, u64::MAX)];
        let mut segments = Vec::new();
        let mut file_offset = 0u64;
        for (start, room) in runs {
            let run = room.min(bytes.saturating_sub(file_offset));
            if run > 0 {
                segments.push(Segment { gpa: Gpa(start), bytes: run, file_offset });
            }
            file_offset = file_offset.saturating_add(run);
        }
        segments
    }
}

/// The names of all presets, for messages.
pub(super) fn names() -> String {
    Preset::ALL.map(Preset::name).join(", ")
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = ImageError;

    fn from_str(name: &str) -> Result<Self, ImageError> {
        let found = Self::ALL.into_iter().find(|p| p.name() == name);
        found.ok_or_else(|| ImageError::UnknownPreset { name: name.chars().take(40).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(preset: Preset, bytes: u64) -> Vec<(u64, u64, u64)> {
        preset.segments(bytes).iter().map(|s| (s.gpa.0, s.bytes, s.file_offset)).collect()
    }

    #[test]
    fn small_guests_have_no_hole() {
        for preset in Preset::ALL {
            let below = NEVER_SPLIT_BELOW - 4096;
            assert_eq!(ranges(preset, below), [(0, below, 0)], "{preset}");
        }
    }

    #[test]
    fn holes_are_where_the_machines_have_them() {
        let high = 4 * GIB;
        let q35 = ranges(Preset::QemuQ35, 0xb000_0000);
        assert_eq!(q35, [(0, 2 * GIB, 0), (high, 0x3000_0000, 2 * GIB)]);
        assert_eq!(ranges(Preset::QemuPc, 0xdfff_f000), [(0, 0xdfff_f000, 0)]);
        assert_eq!(ranges(Preset::QemuPc, 4 * GIB), [(0, 3 * GIB, 0), (high, GIB, 3 * GIB)]);
        assert_eq!(ranges(Preset::CloudHypervisor, 3 * GIB), [(0, 3 * GIB, 0)]);
        let old = ranges(Preset::Firecracker1_12, 4 * GIB);
        assert_eq!(old, [(0, 0xd000_0000, 0), (high, 0x3000_0000, 0xd000_0000)]);
        let new = ranges(Preset::Firecracker, 300 * GIB);
        assert_eq!(
            new,
            [(0, 3 * GIB, 0), (high, 252 * GIB, 3 * GIB), (512 * GIB, 45 * GIB, 255 * GIB)]
        );
    }

    #[test]
    fn names_are_read_back() {
        for preset in Preset::ALL {
            assert_eq!(preset.name().parse().ok(), Some(preset));
        }
        let error = "vmware".parse::<Preset>().unwrap_err().to_string();
        assert!(error.contains("\"vmware\"") && error.contains("cloud-hypervisor"));
    }
}
