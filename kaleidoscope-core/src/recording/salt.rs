//! Hashes that replace the private part of region names.

use crate::color::{FrameKind, Order};
use crate::region_name::RegionName;
use sha2::{Digest, Sha256};
use std::fmt;

/// Hashed together with names, so that recordings with different salts cannot be compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Salt(pub [u8; 16]);

/// Prefix of the hashed bytes, for domain separation.
const DOMAIN: &[u8] = b"kaleidoscope recording name 1\0";

/// Bytes of a hash that are kept: among a million names, two collide in one of 10^17 recordings.
const HASH_BYTES: usize = 12;

impl Salt {
    /// A region's name without data about the guest's users: hashes replace path and inode, or a
    /// process's name. Empty paths and kernel names stay.
    pub(crate) fn hash_name(&self, kind: FrameKind, order: Order, name: &str) -> String {
        match RegionName::parse(order, name) {
            RegionName::File { file_system, device, inode, .. }
                if kind == FrameKind::BlockDevice =>
            {
                let path = self.hash(name.splitn(4, ':').nth(3).unwrap_or(""));
                format!("{file_system}:{device}:{inode}:{path}")
            }
            RegionName::File { file_system, device, inode, path } => {
                // Hashed with the path, because the few inode numbers could be tried exhaustively.
                let inode = self.hash(&format!("{inode}:{path}"));
                format!("{file_system}:{device}:{inode}:{}", self.hash(path))
            }
            RegionName::Process { command, pid: Some(pid) } => {
                format!("{}[{pid}]", self.hash(command))
            }
            RegionName::Process { command, pid: None } => self.hash(command),
            RegionName::Kernel(_) if order == Order::FileOffset => self.hash(name),
            RegionName::Kernel(name) => name.to_owned(),
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
    fn hashes_hide_names_and_keep_what_they_are() {
        let salt = Salt([7; 16]);
        let hashed = salt.hash_name(FILE.0, FILE.1, "ext4:65024:12:/home/ann/secret");
        assert!(!hashed.contains("secret") && !hashed.contains(":12:"), "{hashed}");
        let RegionName::File { file_system, path, .. } = RegionName::parse(FILE.1, &hashed) else {
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
