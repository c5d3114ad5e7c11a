//! Clones that see their parent's bytes.

use super::double::{SLOTS, exit, receiver::beside};
use super::{Vmm, can_watch, clone, clone_with, layout};
use kaleidoscope_core::clone::{Background, EngineOptions};
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::prefetch::{self, Blind, Demand, LocalityOrder, PrefetchPolicy};
use kaleidoscope_kvm::cloud_hypervisor::{Backing, Ended, SessionBuilder};
use std::sync::Arc;
use std::time::Duration;

const PAGES: u64 = (7 << 20) / 4096;

/// Runs a clone to its end, in which every byte has to be right; returns how its session ended, and
/// the number of requests.
fn run(builder: SessionBuilder, orders: &str) -> (Ended, u64) {
    let mut vmm = Vmm::start(orders);
    let session = builder.connect(&vmm.socket).unwrap();
    assert_eq!(session.process(), vmm.child.id());
    let ended = session.wait().unwrap();
    assert_eq!(vmm.status().code(), Some(exit::GOOD), "{orders}");
    assert_eq!(session.wait().unwrap(), ended, "it is told again");
    (ended, vmm.requests())
}

type MakePolicy = fn(&Arc<LocalityOrder>) -> Box<dyn PrefetchPolicy>;

#[test]
fn a_clone_sees_its_parents_bytes_under_every_policy() {
    if !can_watch() {
        return;
    }
    let policies: [MakePolicy; 3] =
        [|_| Box::new(Demand), |_| Box::new(Blind::aligned(16)), prefetch::predicted];
    let locality = Arc::new(LocalityOrder::new(ColorMap::unknown(layout())));
    for policy in policies {
        // The later version asks for each page that is touched; 53.0 only for those that are not
        // in their files.
        for orders in ["-", "minor", "sweeps", "sweeps minor", "paused"] {
            let builder = clone().policy(policy(&locality)).paused(orders == "paused");
            let (ended, requests) = run(builder, orders);
            assert!(requests > 0);
            if orders.contains("minor") {
                assert!(requests >= PAGES && ended == Ended::HasAllMemory, "{orders}");
            }
            if ended == Ended::HasAllMemory {
                assert!(requests >= PAGES, "{orders}: {requests}");
            }
        }
    }
}

#[test]
fn pages_that_were_pushed_are_not_asked_for() {
    if !can_watch() {
        return;
    }
    let (_, all) = run(clone().policy(Box::new(Demand)), "-");
    assert_eq!(all, PAGES);
    let (_, some) = run(clone().policy(Box::new(Blind::aligned(16))), "-");
    assert!(some < all / 8, "{some} of {all}");

    let mut vmm = Vmm::start("waits");
    let filling = EngineOptions::default().background(Background::Full);
    let session = clone().options(filling).connect(&vmm.socket).unwrap();
    while !session.engine().is_whole() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::write(beside(&vmm.socket, "go"), "").unwrap();
    assert_eq!(session.wait().unwrap(), Ended::Closed, "53.0 has not asked for all pages");
    assert_eq!(vmm.status().code(), Some(exit::GOOD));
    // The one that was looked at as the state was restored.
    assert!(vmm.requests() <= 1, "{}", vmm.requests());
}

#[test]
fn pages_come_in_answers_where_the_vmm_maps_no_files() {
    if !can_watch() {
        return;
    }
    let private = r#"{"size":7340032,"shared":false}"#;
    let huge = r#"{"size":7340032,"shared":true,"hugepages":true}"#;
    for memory in [private, huge] {
        for orders in ["private", "private sweeps"] {
            let (_, requests) = run(clone_with(memory), orders);
            assert!(requests >= PAGES, "{requests}");
        }
    }
    let (_, requests) = run(clone().backing(Backing::Answers), "private");
    assert_eq!(requests, PAGES);
    run(clone_with(private).backing(Backing::Files), "-");
}

#[test]
fn what_the_guest_gave_back_is_zeros() {
    if !can_watch() {
        return;
    }
    for orders in ["balloon", "balloon minor"] {
        let (_, requests) = run(clone(), orders);
        let (_, _, given_back, _) = SLOTS[1];
        assert!(requests >= given_back / 4096, "{requests}");
    }
}

#[test]
fn a_vm_with_all_pages_goes_on_alone() {
    if !can_watch() {
        return;
    }
    let mut vmm = Vmm::start("sweeps waits");
    let session = clone().connect(&vmm.socket).unwrap();
    assert_eq!(session.wait().unwrap(), Ended::HasAllMemory);
    drop(session);
    assert!(vmm.child.try_wait().unwrap().is_none());
    std::fs::write(beside(&vmm.socket, "go"), "").unwrap();
    assert_eq!(vmm.status().code(), Some(exit::GOOD));
}
