//! Pages that are temporarily inaccessible (`PROT_NONE`, NUMA balancing) keep their owners;
//! swapped-out pages have none.

use super::{assert_same, linux};
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle};

fn check(name: &str, builder: GuestBuilder) {
    let plain = builder.build().unwrap();
    let plain = linux(&plain.memory, &plain.registers);
    assert!(plain.facts.frames.iter().all(|f| !f.inaccessible));
    let guest = builder.prot_none(true).build().unwrap();
    let found = linux(&guest.memory, &guest.registers);
    let inaccessible = found.facts.frames.iter().filter(|f| f.inaccessible).count();
    assert!(inaccessible > 50 && guest.revoked >= inaccessible as u64, "{name}: {inaccessible}");
    // Owners, positions and temperatures are as if the pages were accessible.
    assert_same(name, &found, &plain);
    assert_eq!(found.notes(), plain.notes(), "{name}");
    for (a, b) in found.facts.frames.iter().zip(&plain.facts.frames) {
        assert_eq!((a.user_mapped, a.user_executable), (b.user_mapped, b.user_executable));
        assert!(!a.inaccessible || a.user_mapped);
    }
}

#[test]
fn owners_are_kept() {
    for style in KernelStyle::ALL {
        let base = GuestBuilder::new(style).ram_bytes(64 << 20).seed(51);
        check(&format!("{style:?}"), base.clone());
        check(&format!("{style:?} 5-level"), base.clone().five_level(true));
        check(&format!("{style:?} isolated"), base.page_table_isolation(true));
    }
}

/// The encryption bit is not part of the address that Linux inverts.
#[test]
fn owners_are_kept_under_memory_encryption() {
    for bit in [47, 51] {
        let base = GuestBuilder::new(KernelStyle::V6_12).ram_bytes(64 << 20).seed(52);
        check(&format!("encrypted {bit}"), base.clone().memory_encryption(bit));
        check(&format!("shared {bit}"), base.shared_bit(bit));
    }
}
