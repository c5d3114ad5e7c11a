//! `kaleidoscope serve qemu`.

use crate::command::{Run, text, wait_until};
use crate::guest::{FILLED, Guest, Incoming, RAM, assert_same, disk_is, fill, has_qemu};
use rustix::process::{Signal, geteuid};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Captures a guest that has filled its memory with `x`.
fn captured(folder: &Path) -> Guest {
    captured_with(folder, &[])
}

/// The same, with more arguments.
fn captured_with(folder: &Path, more: &[&str]) -> Guest {
    let mut parent = Guest::start(folder, "on", more);
    parent.fill(b'x');
    let (socket, snapshot) = (parent.socket.clone(), folder.join("s"));
    let words = ["clone", "qemu", "--qmp", text(&socket), "-o", text(&snapshot)];
    let words = [&words[..], &["--clones", "0", "--json", "--way", "copy"]].concat();
    let (code, said) = parent.lend(|| Run::start(&words).end());
    assert_eq!(code, Some(0), "{said}");
    parent
}

/// Postcopy needs a userfaultfd that handles faults of the kernel, too.
fn has_postcopy() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        println!("******** SKIPPED: postcopy migrations take root ********");
    }
    has_qemu() && is_root
}

#[test]
fn a_guest_runs_before_it_has_its_memory() {
    if !has_postcopy() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _parent = captured(folder.path());
    let snapshot = folder.path().join("s");
    let image = fs::read(snapshot.join("ram.bin")).unwrap();
    for (policy, rate) in [("demand", "0"), ("predicted", "100000000"), ("region", "2000")] {
        // It stays paused, so that its memory can be compared.
        let mut clone = Incoming::start(folder.path(), &snapshot, true);
        let words = ["serve", "qemu", "--from", text(&snapshot), "--to", text(&clone.socket)];
        let more = ["--policy", policy, "--rate", rate, "--json"];
        let mut run = Run::start(&[&words[..], &more].concat());
        assert_eq!(run.event("serving")["memory_bytes"], RAM);
        wait_until("the clone has its devices", || {
            // Then it is paused, as it was told.
            clone.qmp.status() == "paused"
        });
        assert_same(&clone.qmp.memory(0, RAM), &image, policy);
        clone.qmp.run("cont", json!({}));
        fill(&mut clone.serial, b'y');
        let filled = clone.qmp.memory(FILLED.start as u64, FILLED.len() as u64);
        assert!(filled.iter().all(|byte| *byte == b'y'), "{policy}");
        assert!(disk_is(&mut clone.serial, &mut clone.qmp, b'y'), "{policy}");
        // What is missing is sent, and the clone runs on alone.
        run.signal(Signal::TERM);
        let ended = run.event("ended");
        assert_eq!((&ended["complete"], &ended["error"]), (&true.into(), &().into()), "{ended}");
        assert!(ended["requests"].as_u64().unwrap() > 0, "{ended}");
        let sent = ended["sent_pages"].as_u64().unwrap() + ended["zeroed_frames"].as_u64().unwrap();
        assert_eq!(sent, RAM / 4096, "each page is sent once: {ended}");
        let (code, said) = run.end();
        assert_eq!(code, Some(0), "{policy}: {said}");
        let before = clone.qmp.counter();
        wait_until("the clone counts", || clone.qmp.counter() != before);
        wait_until("QEMU has ended the migration", || {
            clone.qmp.run("query-migrate", json!({}))["status"] == "completed"
        });
    }
    assert!(fs::read(snapshot.join("ram.bin")).unwrap() == image);
}

#[test]
fn a_clone_that_ends_early_is_no_failure() {
    if !has_postcopy() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _parent = captured(folder.path());
    let snapshot = folder.path().join("s");
    let mut clone = Incoming::start(folder.path(), &snapshot, false);
    let words = ["serve", "qemu", "--from", text(&snapshot), "--to", text(&clone.socket)];
    let mut run = Run::start(&[&words[..], &["--rate", "0", "--json"]].concat());
    run.event("serving");
    // Its serial line is the captured one from then on.
    wait_until("the clone runs", || clone.qmp.status() == "running");
    fill(&mut clone.serial, b'z');
    drop(clone);
    let ended = run.event("ended");
    assert_eq!((&ended["complete"], &ended["error"]), (&false.into(), &().into()), "{ended}");
    assert_eq!(run.end().0, Some(0));
}

#[test]
fn a_clone_that_cannot_load_the_devices_is_a_failure() {
    if !has_postcopy() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _parent = captured_with(folder.path(), &["-device", "e1000,romfile="]);
    let snapshot = folder.path().join("s");
    for rate in [None, Some("0")] {
        // It has no such device.
        let clone = Incoming::start(folder.path(), &snapshot, false);
        let words = ["serve", "qemu", "--from", text(&snapshot), "--to", text(&clone.socket)];
        let rate: Vec<_> = rate.into_iter().flat_map(|rate| ["--rate", rate]).collect();
        let mut run = Run::start(&[&words[..], &["--json"], &rate].concat());
        run.event("serving");
        let ended = run.event("ended");
        assert_eq!(ended["complete"], false);
        assert!(ended["error"].as_str().unwrap().contains("before the guest ran"), "{ended}");
        assert_eq!(run.end().0, Some(2));
    }
}

#[test]
fn signals_end_the_command_whatever_qemu_does() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _parent = captured(folder.path());
    let (snapshot, socket) = (folder.path().join("s"), folder.path().join("to"));
    let none = folder.path().join("none");
    let listener = UnixListener::bind(&socket).unwrap();
    let words = ["serve", "qemu", "--from", text(&snapshot), "--to", text(&socket), "--json"];

    // While it waits for the second VM to listen.
    let more = ["--to", text(&none), "--timeout", "100000"];
    let run = Run::start(&[&words[..], &more].concat());
    let _connection = listener.accept().unwrap();
    run.signal(Signal::TERM);
    let (code, said) = run.end();
    assert_eq!(code, None, "{said}");

    // While a VM takes nothing: one that has not begun, and one that has.
    for begin in [&[][..], &[0, 2, 0, 4, 0, 0, 0, 1]] {
        let mut run = Run::start(&words);
        let (mut connection, _) = listener.accept().unwrap();
        connection.write_all(begin).unwrap();
        run.event("serving");
        wait_until("it ends", || {
            run.signal_if_running(Signal::INT);
            !run.is_running()
        });
        let event = if begin.is_empty() { "failed" } else { "ended" };
        let failed = run.event(event)["error"].as_str().unwrap().to_owned();
        assert!(failed.contains("abandoned"), "{failed}");
        assert_eq!(run.end().0, Some(2));
    }
}

#[test]
fn wrong_input_is_named_at_once() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none");
    let serve = |image: &Path, to: &Path| {
        Run::start(&["serve", "qemu", "--from", text(image), "--to", text(to)]).end()
    };
    let (code, said) = serve(&none, &none);
    assert!(code == Some(2) && said.contains("hint: `kaleidoscope clone qemu"), "{said}");
    let _parent = captured(folder.path());
    let snapshot = folder.path().join("s");
    let (code, said) = serve(&snapshot, &none);
    assert!(code == Some(2) && said.contains("hint: QEMU listens there after"), "{said}");
    // Without the capability.
    let clone = Incoming::without_postcopy(folder.path(), &snapshot);
    let words = ["serve", "qemu", "--from", text(&snapshot), "--to", text(&clone.socket)];
    let mut run = Run::start(&[&words[..], &["--json"]].concat());
    run.event("serving");
    let failed = run.event("failed");
    assert!(failed["error"].as_str().unwrap().contains("postcopy-ram"), "{failed}");
    assert_eq!(run.end().0, Some(2));
    fs::write(snapshot.join("state"), "QEVM").unwrap();
    let (code, said) = serve(&snapshot, &clone.socket);
    assert!(code == Some(2) && said.contains("state: the stream at offset 0x4"), "{said}");
}
