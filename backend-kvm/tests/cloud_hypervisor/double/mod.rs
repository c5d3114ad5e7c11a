//! Stand-ins for cloud-hypervisor: the receiver of a postcopy migration, and the sender of a local
//! one. They share no code with the library: messages are read and written by hand.
//!
//! Also used by the tests of the command, by path.

pub mod memory;
pub mod receiver;
pub mod sender;
pub mod wire;

/// The process's exit status, by what a stand-in found.
pub mod exit {
    /// All steps were as they should be, and every byte.
    pub const GOOD: i32 = 0;
    /// The other end closed the control connection.
    pub const CLOSED: i32 = 23;
    /// The other end gave up the migration.
    pub const ABANDONED: i32 = 24;
    /// The other end answered that it failed, or closed the connection for pages.
    pub const FAILED: i32 = 25;
    /// The stand-in was told to die.
    pub const DIED: i32 = 26;
}

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// The bytes of the page at a guest-physical address. Every seventh one is zeros.
pub fn page(gpa: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    if (gpa / PAGE as u64) % 7 != 3 {
        for (n, word) in (0_u64..).zip(page.as_chunks_mut().0) {
            // Knuth's MMIX multiplier.
            *word = (gpa + 8 * n + 8).wrapping_mul(6_364_136_223_846_793_005).to_le_bytes();
        }
    }
    page
}

/// A memory slot: number, guest-physical address, bytes, offset in its file.
pub type Slot = (u32, u64, u64, u64);

/// RAM with a hole, whose files begin at other places than their slots; the slots are not in order.
pub const SLOTS: [Slot; 3] =
    [(7, 1 << 32, 2 << 20, 1 << 20), (0, 0, 4 << 20, 0), (1, 6 << 20, 1 << 20, 0)];

/// The configuration of a VM with these slots, whose memory is configured as `memory` says.
pub fn config(slots: &[Slot], memory: &str) -> Vec<u8> {
    let slots: Vec<_> = slots
        .iter()
        .map(|(slot, gpa, size, offset)| {
            format!(
                r#"{{"slot":{slot},"gpa":{gpa},"size":{size},"zone_id":"mem0","virtio_mem":false,"file_offset":{offset}}}"#
            )
        })
        .collect();
    let slots = slots.join(",");
    let config = format!(
        r#"{{"vm_config":{{"memory":{memory}}},"memory_manager_data":{{"guest_ram_mappings":[{slots}]}}}}"#
    );
    config.into_bytes()
}

/// Memory as 53.0 needs it.
pub const SHARED: &str = r#"{"size":7340032,"shared":true,"hugepages":false,"prefault":false}"#;

/// A VM's state.
pub const STATE: &[u8] = br#"{"id":"vm","snapshots":{}}"#;
