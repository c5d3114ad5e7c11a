//! VMMs that do what they should not, and clones that cannot be.

use super::double::{SHARED, SLOTS, STATE, Slot, config, exit};
use super::{Vmm, can_watch, clone, clone_with, layout, memory};
use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::LocalSource;
use kaleidoscope_core::clone::ports::{Delivery, PageSource, Priority, SourceError};
use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::prefetch::Demand;
use kaleidoscope_kvm::cloud_hypervisor::{Ended, Session, SessionBuilder};
use kaleidoscope_kvm::{Error, ErrorKind};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Long enough for a step, and short enough to wait for.
const SHORT: Duration = Duration::from_millis(500);

fn refused(builder: SessionBuilder, vmm: &Vmm) -> Error {
    builder.connect(&vmm.socket).map(drop).unwrap_err()
}

const STEPS: [&str; 5] = ["start", "fd", "config", "state", "complete"];

#[test]
fn a_vmm_that_hangs_dies_or_refuses_at_any_step_is_an_error() {
    if !can_watch() {
        return;
    }
    for step in STEPS {
        for (does, kind, status) in [
            ("hangs", ErrorKind::Timeout, None),
            ("dies", ErrorKind::Ended, Some(exit::DIED)),
            ("refuses", ErrorKind::Refused, Some(exit::FAILED)),
            ("garbles", ErrorKind::InvalidInput, None),
        ] {
            let mut vmm = Vmm::start(&format!("{step}={does}"));
            let timeout = if does == "hangs" { SHORT } else { Duration::from_secs(60) };
            let error = refused(clone().end_vmm(false).timeout(timeout), &vmm);
            assert_eq!(error.kind(), kind, "{step}={does}: {error}");
            let code = vmm.status().code();
            assert!(status.is_none() || code == status, "{step}={does}: {code:?}");
        }
    }
}

#[test]
fn a_vmm_that_asks_for_no_pages_is_refused_before_its_guest_runs() {
    if !can_watch() {
        return;
    }
    for orders in ["precopy", "precopy late"] {
        let mut vmm = Vmm::start(orders);
        let error = refused(clone().timeout(SHORT), &vmm);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("memory_mode=postcopy"), "{error}");
        assert_eq!(vmm.status().code(), Some(exit::ABANDONED), "the migration is given up");
    }
}

#[test]
fn a_vmm_that_asks_for_what_is_no_page_is_told() {
    if !can_watch() {
        return;
    }
    for (fault, kind) in [
        ("nowhere", ErrorKind::InvalidInput),
        ("across", ErrorKind::InvalidInput),
        ("huge", ErrorKind::InvalidInput),
        ("unaligned", ErrorKind::InvalidInput),
        ("long", ErrorKind::InvalidInput),
        ("other", ErrorKind::InvalidInput),
        ("unknown", ErrorKind::Unsupported),
        ("half", ErrorKind::Timeout),
        ("dies", ErrorKind::Ended),
    ] {
        let mut vmm = Vmm::start(&format!("fault={fault}"));
        let error = refused(clone().end_vmm(false).timeout(SHORT), &vmm);
        assert_eq!(error.kind(), kind, "{fault}: {error}");
        let code = vmm.status().code();
        let expected = match fault {
            "dies" => exit::DIED,
            "half" => exit::CLOSED,
            _ => exit::FAILED,
        };
        assert_eq!(code, Some(expected), "{fault}");
    }
    let vmm = Vmm::start("fault=abandons");
    assert!(refused(clone().timeout(SHORT), &vmm).to_string().contains("state"));
}

/// A source that fails after this number of pages.
struct Failing {
    source: LocalSource,
    left: AtomicU32,
}

impl PageSource for Failing {
    fn request(&self, frames: &[FrameIndex], priority: Priority) -> Result<(), SourceError> {
        let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        let taken = |left: u32| left.checked_sub(count);
        match self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken) {
            Ok(_) => self.source.request(frames, priority),
            Err(_) => Err(SourceError::new("the source is gone")),
        }
    }

    fn receive(
        &self,
        wait: Duration,
        deliver: &mut dyn FnMut(Delivery<'_>),
    ) -> Result<(), SourceError> {
        self.source.receive(wait, deliver)
    }
}

fn failing(pages: u32) -> SessionBuilder {
    let source = LocalSource::new(Arc::new(memory()) as _);
    let source = Failing { source, left: AtomicU32::new(pages) };
    let session = Session::builder(
        ColorMap::unknown(layout()),
        source,
        config(&SLOTS, SHARED),
        STATE.to_vec(),
    );
    session.policy(Box::new(Demand))
}

#[test]
fn a_vm_whose_pages_cease_to_come_is_ended() {
    if !can_watch() {
        return;
    }
    // Before the guest runs, and afterwards.
    let mut vmm = Vmm::start("-");
    let error = refused(failing(0), &vmm);
    assert!(error.to_string().contains("the source is gone"), "{error}");
    assert_eq!(vmm.status().code(), Some(exit::FAILED));

    for ends_vmm in [false, true] {
        let mut vmm = Vmm::start("-");
        let session = failing(500).end_vmm(ends_vmm).connect(&vmm.socket).unwrap();
        let error = session.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Ended);
        assert!(error.to_string().contains("the source is gone"), "{error}");
        let status = vmm.status();
        match ends_vmm {
            // It was told, by status 2.
            false => assert_eq!(status.code(), Some(exit::FAILED)),
            true => assert_eq!(status.signal(), Some(9)),
        }
    }
}

#[test]
fn a_session_that_is_dropped_ends_a_vm_that_needs_it() {
    if !can_watch() {
        return;
    }
    let mut vmm = Vmm::start("waits");
    let session = clone().connect(&vmm.socket).unwrap();
    session.stop();
    assert_eq!(session.wait().unwrap_err().kind(), ErrorKind::Ended);
    assert_eq!(vmm.status().signal(), Some(9));
    let mut vmm = Vmm::start("waits");
    drop(clone().connect(&vmm.socket).unwrap());
    assert_eq!(vmm.status().signal(), Some(9));
}

#[test]
fn a_vmm_that_is_killed_ends_its_session() {
    if !can_watch() {
        return;
    }
    let mut vmm = Vmm::start("waits");
    let session = clone().connect(&vmm.socket).unwrap();
    vmm.child.kill().unwrap();
    assert_eq!(session.wait().unwrap(), Ended::Closed);
}

#[test]
fn configurations_that_are_not_the_images_are_errors_before_a_vmm_is_sought() {
    let nowhere = |builder: SessionBuilder| {
        builder.timeout(Duration::ZERO).connect("/nonexistent/s").map(drop).unwrap_err()
    };
    let of = |slots: &[Slot], layout: MemoryLayout| {
        let source = LocalSource::new(Arc::new(memory()) as _);
        let config = config(slots, SHARED);
        Session::builder(ColorMap::unknown(layout), source, config, STATE.to_vec())
    };
    let mut moved = SLOTS;
    moved[2].1 = 7 << 20;
    for (builder, kind, text) in [
        (of(&SLOTS[..2], layout()), ErrorKind::InvalidInput, "another snapshot's"),
        (of(&moved, layout()), ErrorKind::InvalidInput, "no RAM there"),
        (of(&[SLOTS[0]; 2], layout()), ErrorKind::InvalidInput, "its number"),
        (
            clone_with(r#"{"size":7340032,"shared":true,"prefault":true}"#),
            ErrorKind::Unsupported,
            "prefault=on",
        ),
    ] {
        let error = nowhere(builder);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    if can_watch() {
        let error = nowhere(clone());
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    }
}
