//! Names of regions: which part of a name is the same in other guests, and which part is private.

use crate::color::{FrameKind, Order};
use sha2::{Digest, Sha256};
use std::fmt;

/// Hashed together with names, so that recordings with different salts cannot be compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Salt(pub [u8; 16]);

/// Prefix of the hashed bytes, for domain separation.
const DOMAIN: &[u8] = b"kaleidoscope recording name 1\0";

/// Bytes of a hash that are kept: among a million names, two collide in one of 10^17 recordings.
const HASH_BYTES: usize = 12;

/// A parsed region name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Name<'a> {
    /// `FSTYPE:DEVICE:INODE:PATH`.
    File { file_system: &'a str, device: &'a str, inode: &'a str, path: &'a str },
    /// `NAME[PID]`.
    Process { command: &'a str, pid: Option<u32> },
    /// A name given by the kernel.
    Kernel(&'a str),
}

impl<'a> Name<'a> {
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

impl Salt {
    /// A region's name without data about the guest's users: hashes replace path and inode, or a
    /// process's name. Empty paths and kernel names stay.
    pub(crate) fn hash_name(&self, kind: FrameKind, order: Order, name: &str) -> String {
        match Name::parse(order, name) {
            Name::File { file_system, device, inode, .. } if kind == FrameKind::BlockDevice => {
                let path = self.hash(name.splitn(4, ':').nth(3).unwrap_or(""));
                format!("{file_system}:{device}:{inode}:{path}")
            }
            Name::File { file_system, device, inode, path } => {
                // Hashed with the path, because the few inode numbers could be tried exhaustively.
                let inode = self.hash(&format!("{inode}:{path}"));
                format!("{file_system}:{device}:{inode}:{}", self.hash(path))
            }
            Name::Process { command, pid: Some(pid) } => format!("{}[{pid}]", self.hash(command)),
            Name::Process { command, pid: None } => self.hash(command),
            Name::Kernel(_) if order == Order::FileOffset => self.hash(name),
            Name::Kernel(name) => name.to_owned(),
        }
    }

    fn hash(&self, text: &str) -> String {
        use fmt::Write;
        if text.is_empty() {
            return String::new();
        }
        let digest = Sha256::new_with_prefix(DOMAIN).chain_update(self.0).chain_update(text);
        let mut out = String::with_capacity(2 * HASH_BYTES + 1);
        out.push('#');
        for byte in digest.finalize().iter().take(HASH_BYTES) {
            let _ = write!(out, "{byte:02x}");
        }
        out
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: (FrameKind, Order) = (FrameKind::File, Order::FileOffset);
    const PROCESS: (FrameKind, Order) = (FrameKind::Anonymous, Order::UserAddress);

    #[test]
    fn names_are_taken_apart() {
        let name = Name::parse(FILE.1, "ext4:65024:12:/a:b");
        assert_eq!(name.portable(FILE.0), Some("/a:b"));
        let unknown = Name::parse(FILE.1, "ext4:65024:12:");
        assert_eq!(unknown.portable(FILE.0), None);
        let name = Name::parse(PROCESS.1, "odd[1]name[812]");
        assert_eq!((name.portable(PROCESS.0), name.pid()), (Some("odd[1]name"), Some(812)));
        let disk = Name::parse(Order::FileOffset, "bdev:65024:266338304:");
        assert_eq!(disk.portable(FrameKind::BlockDevice), Some("266338304"));
    }

    #[test]
    fn the_same_file_system_fits_best() {
        let parse = |name| Name::parse(FILE.1, name);
        let wanted = parse("ext4:1:7:/x");
        let likeness = |name| wanted.likeness(&parse(name));
        assert!(likeness("ext4:2:9:/x") > likeness("overlay:1:7:/x"));
        assert!(likeness("ext4:2:7:/x") > likeness("ext4:1:9:/x"));
    }

    #[test]
    fn hashes_hide_names_and_keep_what_they_are() {
        let salt = Salt([7; 16]);
        let hashed = salt.hash_name(FILE.0, FILE.1, "ext4:65024:12:/home/ann/secret");
        assert!(!hashed.contains("secret") && !hashed.contains(":12:"), "{hashed}");
        let Name::File { file_system, path, .. } = Name::parse(FILE.1, &hashed) else {
            panic!("{hashed}")
        };
        assert_eq!((file_system, path.len()), ("ext4", 25));
        assert_eq!(
            salt.hash_name(FILE.0, FILE.1, "xfs:1:9:/home/ann/secret").rsplit(':').next(),
            Some(path)
        );
        assert_ne!(Salt([8; 16]).hash("/home/ann/secret"), path);
        assert!(salt.hash_name(PROCESS.0, PROCESS.1, "bash[7]").ends_with("[7]"));
        assert_eq!(salt.hash_name(FrameKind::Slab, Order::FrameNumber, "dentry"), "dentry");
        assert_eq!(salt.hash(""), "");
    }
}
