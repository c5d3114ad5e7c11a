//! Names of regions: which part of a name is the same in other guests, and which part is private.

use crate::color::{FrameKind, Order};

/// A parsed region name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RegionName<'a> {
    /// `FSTYPE:DEVICE:INODE:PATH`.
    File { file_system: &'a str, device: &'a str, inode: &'a str, path: &'a str },
    /// `NAME[PID]`.
    Process { command: &'a str, pid: Option<u32> },
    /// A name given by the kernel.
    Kernel(&'a str),
}

impl<'a> RegionName<'a> {
    pub(crate) fn parse(order: Order, name: &'a str) -> Self {
        match order {
            Order::FileOffset => {
                let mut parts = name.splitn(4, ':');
                let mut part = || parts.next();
                match (part(), part(), part(), part()) {
                    (Some(file_system), Some(device), Some(inode), Some(path)) => {
                        Self::File { file_system, device, inode, path }
                    }
                    _ => Self::Kernel(name),
                }
            }
            Order::UserAddress => {
                let pid = name.strip_suffix(']').and_then(|rest| rest.rsplit_once('['));
                match pid {
                    Some((command, pid)) => Self::Process { command, pid: pid.parse().ok() },
                    None => Self::Process { command: name, pid: None },
                }
            }
            Order::FrameNumber | Order::KernelAddress | Order::Allocation => Self::Kernel(name),
        }
    }

    /// The part that identifies the same object in another guest; `None` if there is none.
    pub(crate) fn portable(&self, kind: FrameKind) -> Option<&'a str> {
        match *self {
            // A disk is identified by its device number, which is its inode in the file system of
            // block devices.
            Self::File { inode, path: "", .. } if kind == FrameKind::BlockDevice => Some(inode),
            Self::File { path: "", .. } => None,
            Self::File { path, .. } => Some(path),
            Self::Process { command, .. } => Some(command),
            Self::Kernel(name) => Some(name),
        }
    }

    /// A process's id.
    pub(crate) fn pid(&self) -> Option<u32> {
        if let Self::Process { pid, .. } = self { *pid } else { None }
    }

    /// How well another name with the same portable part fits: the same file system type counts
    /// most, then the same inode, then the same device.
    pub(crate) fn likeness(&self, other: &Self) -> u8 {
        match (self, other) {
            (
                Self::File { file_system, device, inode, .. },
                Self::File { file_system: fs, device: dev, inode: number, .. },
            ) => {
                let same_type = u8::from(file_system == fs);
                let same_file = u8::from(inode == number);
                same_type * 4 + same_file * 2 + u8::from(device == dev)
            }
            _ => u8::from(self == other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: (FrameKind, Order) = (FrameKind::File, Order::FileOffset);
    const PROCESS: (FrameKind, Order) = (FrameKind::Anonymous, Order::UserAddress);

    #[test]
    fn names_are_taken_apart() {
        let name = RegionName::parse(FILE.1, "ext4:65024:12:/a:b");
        assert_eq!(name.portable(FILE.0), Some("/a:b"));
        let unknown = RegionName::parse(FILE.1, "ext4:65024:12:");
        assert_eq!(unknown.portable(FILE.0), None);
        let name = RegionName::parse(PROCESS.1, "odd[1]name[812]");
        assert_eq!((name.portable(PROCESS.0), name.pid()), (Some("odd[1]name"), Some(812)));
        let disk = RegionName::parse(Order::FileOffset, "bdev:65024:266338304:");
        assert_eq!(disk.portable(FrameKind::BlockDevice), Some("266338304"));
    }

    #[test]
    fn the_same_file_system_fits_best() {
        let parse = |name| RegionName::parse(FILE.1, name);
        let wanted = parse("ext4:1:7:/x");
        let likeness = |name| wanted.likeness(&parse(name));
        assert!(likeness("ext4:2:9:/x") > likeness("overlay:1:7:/x"));
        assert!(likeness("ext4:2:7:/x") > likeness("ext4:1:9:/x"));
    }
}
