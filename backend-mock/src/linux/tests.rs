use super::*;
use crate::paging::{Mode, translate};
use crate::ram::{read_u32, read_u64};
use kaleidoscope_core::addr::{FrameIndex, Gfn, Gpa, Gva};
use kaleidoscope_core::color::FrameKind;
use kaleidoscope_core::memory::GuestMemory;
use std::collections::{BTreeMap, BTreeSet};

fn variants() -> Vec<(String, GuestBuilder)> {
    let mut out = Vec::new();
    for style in KernelStyle::ALL {
        let base = GuestBuilder::new(style).seed(style as u64 + 1).ram_bytes(32 << 20);
        out.push((format!("{style:?}"), base.clone()));
        out.push((format!("{style:?} 5-level"), base.clone().five_level(true).seed(11)));
        out.push((format!("{style:?} isolated"), base.clone().page_table_isolation(true).seed(12)));
        out.push((format!("{style:?} hole"), base.clone().pci_hole_at(24 << 20).cpus(4).seed(13)));
        out.push((format!("{style:?} plain"), base.kaslr(false).numa(false).cpus(1).seed(14)));
    }
    out
}

#[test]
fn smoke() {
    for (name, builder) in variants() {
        let guest = builder.build().unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut counts: BTreeMap<FrameKind, u32> = BTreeMap::new();
        for (index, _) in guest.truth.layout().iter() {
            *counts.entry(guest.truth.kind(index)).or_default() += 1;
        }
        println!("{name}: {counts:?}");
    }
}
