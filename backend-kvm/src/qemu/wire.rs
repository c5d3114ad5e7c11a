//! Numbers of the migration stream. All integers are big endian.

/// Begins a stream: `QEVM`.
pub(super) const MAGIC: u32 = 0x5145_564d;
pub(super) const VERSION: u32 = 3;

/// Section types.
pub(super) mod section {
    pub(in super::super) const EOF: u8 = 0x00;
    pub(in super::super) const START: u8 = 0x01;
    pub(in super::super) const PART: u8 = 0x02;
    pub(in super::super) const END: u8 = 0x03;
    pub(in super::super) const FULL: u8 = 0x04;
    pub(in super::super) const SUBSECTION: u8 = 0x05;
    pub(in super::super) const DESCRIPTION: u8 = 0x06;
    pub(in super::super) const CONFIGURATION: u8 = 0x07;
    pub(in super::super) const COMMAND: u8 = 0x08;
    pub(in super::super) const FOOTER: u8 = 0x7e;
}

/// Commands of a source.
pub(super) mod command {
    pub(in super::super) const OPEN_RETURN_PATH: u16 = 1;
    pub(in super::super) const PING: u16 = 2;
    pub(in super::super) const POSTCOPY_ADVISE: u16 = 3;
    pub(in super::super) const POSTCOPY_LISTEN: u16 = 4;
    pub(in super::super) const POSTCOPY_RUN: u16 = 5;
    pub(in super::super) const POSTCOPY_RAM_DISCARD: u16 = 6;
    pub(in super::super) const PACKAGED: u16 = 7;
}

/// What pings hold, which a destination sends back.
pub(super) mod ping {
    pub(in super::super) const READY: u32 = 1;
    pub(in super::super) const LOADED: u32 = 2;
}

/// Messages of a destination.
pub(super) mod message {
    pub(in super::super) const SHUT: u16 = 1;
    pub(in super::super) const PONG: u16 = 2;
    pub(in super::super) const REQ_PAGES_ID: u16 = 3;
    pub(in super::super) const REQ_PAGES: u16 = 4;
    pub(in super::super) const RECV_BITMAP: u16 = 5;
    pub(in super::super) const RESUME_ACK: u16 = 6;
    pub(in super::super) const SWITCHOVER_ACK: u16 = 7;
}

/// Flags of a page, in the low bits of its offset.
pub(super) mod page {
    pub(in super::super) const ZERO: u64 = 0x02;
    pub(in super::super) const MEM_SIZE: u64 = 0x04;
    pub(in super::super) const PAGE: u64 = 0x08;
    pub(in super::super) const EOS: u64 = 0x10;
    pub(in super::super) const CONTINUE: u64 = 0x20;
    /// All bits that are no offset.
    pub(in super::super) const FLAGS: u64 = 0xfff;
}

/// The name of the section with RAM, and its version.
pub(super) const RAM: &str = "ram";
pub(super) const RAM_VERSION: u32 = 4;

/// The number of the section with RAM in streams that are written here.
pub(super) const RAM_SECTION: u32 = 2;

/// Subsections of the configuration.
pub(super) const CAPABILITIES: &str = "configuration/capabilities";
pub(super) const PAGE_BITS: &str = "configuration/target-page-bits";
pub(super) const UUID: &str = "configuration/uuid";

/// The capability that leaves shared memory out of a stream.
pub(super) const IGNORE_SHARED: &str = "x-ignore-shared";
