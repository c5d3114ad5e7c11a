//! `kaleidoscope clone qemu`.

use crate::command::{Run, path, text, wait_until};
use crate::guest::{FILLED, Guest, Qmp, RAM, assert_same, connect, disk_is, fill, has_qemu};
use rustix::process::{Signal, geteuid};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Ways that are possible everywhere, and the one that root adds.
fn ways() -> Vec<&'static str> {
    let mut ways = vec!["copy", "precopy"];
    if geteuid().is_root() {
        ways.push("snapshot");
    } else {
        println!("******** SKIPPED: background snapshots take root ********");
    }
    ways
}

#[test]
fn clones_have_the_memory_and_the_disk_of_the_instant() {
    if !has_qemu() {
        return;
    }
    for way in ways() {
        let folder = tempfile::tempdir().unwrap();
        let mut parent = Guest::start(folder.path(), "on", &[]);
        parent.fill(b'a');
        let snapshot = folder.path().join("s");
        let words = ["--clones", "2", "--paused", "--json", "--way", way, "-o", text(&snapshot)];
        let socket = parent.socket.clone();
        let words = [&["clone", "qemu", "--qmp", text(&socket)][..], &words].concat();
        let (mut run, captured) = parent.lend(|| {
            let mut run = Run::start(&words);
            let captured = run.event("captured");
            (run, captured)
        });
        assert_eq!(captured["way"], way);
        assert!(captured["pause_us"].as_u64().unwrap() > 0, "{captured}");
        let clones = [run.event("started"), run.event("started")];

        // The parent works on: it counts, and writes to its memory and its disk.
        assert_eq!(parent.qmp.status(), "running", "{way}");
        let before = parent.qmp.counter();
        wait_until("the parent counts", || parent.qmp.counter() != before);
        parent.fill(b'b');

        let image = fs::read(snapshot.join("ram.bin")).unwrap();
        assert!(image[FILLED].iter().all(|byte| *byte == b'a'), "{way}");
        let mut qmps = Vec::new();
        for clone in &clones {
            let mut qmp = Qmp::connect(&path(clone, "qmp"));
            assert_eq!(qmp.status(), "paused", "{way}");
            assert_same(&qmp.memory(0, RAM), &image, way);
            qmp.run("cont", json!({}));
            qmps.push(qmp);
        }
        let mut serials: Vec<_> =
            clones.iter().map(|clone| connect(&path(clone, "folder").join("ser.sock"))).collect();
        for ((serial, qmp), byte) in serials.iter_mut().zip(&mut qmps).zip(*b"cd") {
            assert!(disk_is(serial, qmp, b'a'), "{way}");
            fill(serial, byte);
        }

        // What each of them writes, the others do not see.
        let parents = (&mut parent.qmp, &mut parent.serial);
        let all = qmps.iter_mut().zip(&mut serials).chain([parents]).zip(*b"cdb");
        for ((qmp, serial), byte) in all {
            let memory = qmp.memory(FILLED.start as u64, FILLED.len() as u64);
            assert!(memory.iter().all(|found| *found == byte), "{way}: {}", char::from(byte));
            assert!(disk_is(serial, qmp, byte), "{way}: {}", char::from(byte));
        }
        assert!(fs::read(snapshot.join("ram.bin")).unwrap() == image, "{way}");
        assert!(fs::read(&parent.disk).unwrap()[512..1024].iter().all(|byte| *byte == b'a'));

        run.signal(Signal::TERM);
        let (code, said) = run.end();
        assert_eq!(code, Some(0), "{way}: {said}");
        for clone in &clones {
            assert!(!path(clone, "folder").exists(), "{way}");
            let process = format!("/proc/{}", clone["process"]);
            wait_until("the clones end", || !Path::new(&process).exists());
        }
        assert_eq!(parent.qmp.status(), "running", "{way}");

        // Again, from the folder; a clone that ends by itself is told of.
        let mut run = Run::start(&["clone", "qemu", "--from", text(&snapshot), "--json"]);
        let clone = run.event("started");
        let mut qmp = Qmp::connect(&path(&clone, "qmp"));
        let mut serial = connect(&path(&clone, "folder").join("ser.sock"));
        assert!(disk_is(&mut serial, &mut qmp, b'a'), "{way}");
        qmp.run("quit", json!({}));
        assert_eq!(run.event("ended")["success"], true, "{way}");
        let (code, said) = run.end();
        assert_eq!(code, Some(0), "{way}: {said}");
    }
}

#[test]
fn a_vm_that_is_paused_stays_so() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut parent = Guest::start(folder.path(), "on", &[]);
    for way in ["copy", "precopy", "auto"] {
        parent.fill(b'x');
        parent.qmp.run("stop", json!({}));
        let memory = parent.qmp.memory(0, RAM);
        let snapshot = folder.path().join(way);
        let socket = parent.socket.clone();
        let words = ["--clones", "0", "--json", "--way", way, "-o", text(&snapshot)];
        let words = [&["clone", "qemu", "--qmp", text(&socket)][..], &words].concat();
        let (code, said) = parent.lend(|| Run::start(&words).end());
        assert_eq!(code, Some(0), "{way}: {said}");
        assert_same(&memory, &fs::read(snapshot.join("ram.bin")).unwrap(), way);
        // A VM that was paused stays so.
        assert_eq!(parent.qmp.memory(0, RAM), memory, "{way}");
        assert_ne!(parent.qmp.status(), "running", "{way}");
        parent.qmp.run("cont", json!({}));
    }
}

#[test]
fn each_clone_has_a_generation_and_ports_of_its_own() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let more = ["-device", "vmgenid,guid=auto", "-netdev", "user,id=n,hostfwd=tcp:127.0.0.1:0-:22"];
    let more = [&more[..], &["-device", "virtio-net-pci,netdev=n,mac=52:54:00:11:22:33"]].concat();
    let mut parent = Guest::start(folder.path(), "on", &more);
    let generation = |qmp: &mut Qmp| qmp.run("query-vm-generation-id", json!({}))["guid"].clone();
    let mut generations = vec![generation(&mut parent.qmp)];
    let snapshot = folder.path().join("s");
    let socket = parent.socket.clone();
    let words =
        ["clone", "qemu", "--qmp", text(&socket), "-o", text(&snapshot), "--clones", "2", "--json"];
    let (mut run, captured) = parent.lend(|| {
        let mut run = Run::start(&words);
        let captured = run.event("captured");
        (run, captured)
    });
    assert!(captured["cost"].as_str().is_some_and(|cost| !cost.is_empty()), "{captured}");
    let mut ports = Vec::new();
    for _ in 0..2 {
        let clone = run.event("started");
        ports.push(clone["ports"][0].as_str().unwrap().to_owned());
        generations.push(generation(&mut Qmp::connect(&path(&clone, "qmp"))));
    }
    assert!(ports[0] != ports[1] && ports[0].starts_with("tcp 127.0.0.1:"), "{ports:?}");
    generations.sort_by_key(ToString::to_string);
    generations.dedup();
    assert_eq!(generations.len(), 3, "{generations:?}");
}

#[test]
fn what_cannot_be_cloned_is_refused_and_runs_on() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let clone = |socket: &Path, words: &[&str]| {
        Run::start(&[&["clone", "qemu", "--qmp", text(socket)], words].concat()).end()
    };
    let output = folder.path().join("s");
    let output = ["-o", text(&output)];
    let (code, said) = clone(&folder.path().join("none"), &output);
    assert!(code == Some(2) && said.contains("hint: QEMU listens there"), "{said}");

    let mut private = Guest::start(folder.path(), "off", &[]);
    let socket = private.socket.clone();
    let (code, said) = private.lend(|| clone(&socket, &output));
    assert!(code == Some(2) && said.contains("is not shared\nhint: start QEMU with"), "{said}");
    assert_eq!(private.qmp.status(), "running");
    drop(private);

    let mut parent = Guest::start(folder.path(), "on", &[]);
    let taken = ["-o", text(folder.path())];
    let (code, said) = parent.lend(|| clone(&socket, &taken));
    assert!(code == Some(2) && said.contains("it is there already"), "{said}");
    let (code, said) =
        parent.lend(|| clone(&socket, &[&output[..], &["--way", "copy", "--pid", "1"]].concat()));
    assert!(code == Some(2) && said.contains("error: "), "{said}");
    assert_eq!(parent.qmp.status(), "running");
    assert!(!folder.path().join("s").exists() && !folder.path().join("s.partial").exists());
}

#[test]
fn a_vm_runs_on_when_its_capture_is_killed() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The first socket takes one client at a time, which is the command.
    let more = ["-qmp", "unix:watch.sock,server=on,wait=off"];
    let mut parent = Guest::start(folder.path(), "on", &more);
    let mut watch = Qmp::connect(&folder.path().join("watch.sock"));
    let socket = parent.socket.clone();
    for signal in [Signal::KILL, Signal::TERM] {
        let mut attempts = 0..100;
        let is_caught = attempts.any(|n| {
            let output = folder.path().join(format!("{signal:?}-{n}"));
            let words = ["clone", "qemu", "--qmp", text(&socket), "-o", text(&output)];
            let words = [&words[..], &["--clones", "0", "--way", "copy"]].concat();
            parent.lend(|| {
                let mut run = Run::start(&words);
                let mut is_paused = false;
                while !is_paused && run.is_running() {
                    is_paused = watch.status() != "running";
                }
                run.signal_if_running(signal);
                drop(run.end());
                wait_until("the VM runs on", || watch.status() == "running");
                let partial = output.with_extension("partial");
                wait_until("the folder goes", || !partial.exists());
                // Not if it was complete by then.
                is_paused && !output.exists()
            })
        });
        assert!(is_caught, "{signal:?} comes too late every time");
        assert_eq!(parent.qmp.status(), "running");
        parent.fill(b'k');
    }
}

#[test]
fn no_image_of_the_parent_is_written_by_a_clone() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let make = |words: &[&str]| {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q"]).args(words).current_dir(folder.path());
        assert!(command.status().unwrap().success());
    };
    make(&["-f", "raw", "base.img", "1M"]);
    make(&["-f", "qcow2", "-F", "raw", "-b", "base.img", "top.qcow2"]);
    make(&["-f", "raw", "floppy.img", "1440K"]);
    make(&["-f", "raw", "later.img", "1M"]);
    // The lower image has a node of its own.
    let base = "driver=raw,node-name=base,read-only=on,file.driver=file,file.filename=base.img";
    let top = "driver=qcow2,node-name=top,file.driver=file,file.filename=top.qcow2,backing=base";
    let more = ["-blockdev", base, "-blockdev", top, "-device", "virtio-blk-pci,drive=top"];
    let more = [&more[..], &["-fda", "floppy.img"]].concat();
    let mut parent = Guest::start(folder.path(), "on", &more);
    let (socket, snapshot) = (parent.socket.clone(), folder.path().join("s"));
    let words = ["clone", "qemu", "--qmp", text(&socket), "-o", text(&snapshot), "--json"];
    let (run, clone) = parent.lend(|| {
        let mut run = Run::start(&words);
        assert_eq!(run.event("captured")["disks"], 3);
        let clone = run.event("started");
        (run, clone)
    });
    let own = path(&clone, "folder");
    let disks = Qmp::connect(&path(&clone, "qmp")).run("query-block", json!({}));
    let inserted: Vec<_> =
        disks.as_array().unwrap().iter().filter_map(|disk| disk.get("inserted")).collect();
    assert_eq!(inserted.len(), 3, "{disks}");
    for disk in inserted {
        assert!(Path::new(disk["file"].as_str().unwrap()).starts_with(&own), "{disk}");
    }
    drop(run);

    // A disk that no argument names.
    let file = json!({ "driver": "file", "filename": "later.img" });
    let node = json!({ "driver": "raw", "node-name": "later", "file": file });
    parent.qmp.run("blockdev-add", node);
    parent.qmp.run("device_add", json!({ "driver": "virtio-blk-pci", "drive": "later" }));
    let second = folder.path().join("t");
    let words = [&words[..5], &[text(&second), "--json"]].concat();
    let (code, said) = parent.lend(|| Run::start(&words).end());
    assert!(code == Some(2) && said.contains("`disk later` cannot be cloned"), "{said}");
    assert_eq!(parent.qmp.status(), "running");
}

#[test]
fn a_vm_whose_disks_cannot_be_moved_keeps_them() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // An overlay's name is longer, and too long.
    let name = "n".repeat(245);
    fs::File::create(folder.path().join(&name)).unwrap().set_len(1 << 20).unwrap();
    let drive = format!("file={name},format=raw,if=none,id=d1");
    let more = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d1"];
    let mut parent = Guest::start(folder.path(), "on", &more);
    let (socket, snapshot) = (parent.socket.clone(), folder.path().join("s"));
    let words = ["clone", "qemu", "--qmp", text(&socket), "-o", text(&snapshot), "--way", "copy"];
    let (code, said) = parent.lend(|| Run::start(&words).end());
    assert!(code == Some(2) && said.contains("transaction: "), "{said}");
    assert!(!said.contains("writes to"), "{said}");
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !text(Path::new(name)).contains(".after-")), "{names:?}");
    assert_eq!(parent.qmp.status(), "running");
    parent.fill(b'd');
}

#[test]
fn a_clone_whose_qemu_says_much_runs() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut parent = Guest::start(folder.path(), "on", &[]);
    let (socket, snapshot) = (parent.socket.clone(), folder.path().join("s"));
    let words = ["clone", "qemu", "--qmp", text(&socket), "-o", text(&snapshot), "--clones", "0"];
    let (code, said) = parent.lend(|| Run::start(&words).end());
    assert_eq!(code, Some(0), "{said}");
    let script = folder.path().join("script");
    let lines = "#!/bin/sh\nyes message | head -c 200000 >&2\nexec qemu-system-x86_64 \"$@\"\n";
    fs::write(&script, lines).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let file = snapshot.join("machine.json");
    let mut machine: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    machine["program"] = text(&script).into();
    machine["emulator"] = "0.1".into();
    fs::write(&file, machine.to_string()).unwrap();
    let mut run = Run::start(&["clone", "qemu", "--from", text(&snapshot), "--json"]);
    let clone = run.event("started");
    Qmp::connect(&path(&clone, "qmp")).run("quit", json!({}));
    let ended = run.event("ended");
    assert!(ended["message"].as_str().unwrap().ends_with("message\nmessage"), "{ended}");
    let (code, said) = run.end();
    assert!(code == Some(0) && said.contains("of a VM of QEMU 0.1"), "{said}");
}

#[test]
fn memory_that_is_not_the_vms_is_not_taken_for_it() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let memory = "memory-backend-file,id=ram,size=64M,mem-path=ram,share=on";
    let mut parent = Guest::start_with(folder.path(), memory, &[]);
    let (socket, snapshot) = (parent.socket.clone(), folder.path().join("s"));
    let words = ["clone", "qemu", "--qmp", text(&socket), "-o", text(&snapshot), "--clones", "0"];
    let mut capture = |more: &[&str]| parent.lend(|| Run::start(&[&words, more].concat()).end());

    // Another process, which has no such memory.
    let mut other = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let (code, said) = capture(&["--pid", &other.id().to_string()]);
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(code == Some(2) && said.contains("no memory backend ram\nhint: --pid"), "{said}");

    // Another file has the name.
    fs::remove_file(folder.path().join("ram")).unwrap();
    fs::File::create(folder.path().join("ram")).unwrap().set_len(RAM).unwrap();
    let (code, said) = capture(&["--way", "copy"]);
    assert!(code == Some(2) && said.contains("is not among its files"), "{said}");
    let (code, said) = capture(&["--way", "precopy"]);
    assert_eq!(code, Some(0), "{said}");
    parent.qmp.run("stop", json!({}));
    let image = fs::read(snapshot.join("ram.bin")).unwrap();
    let boot = 0x7c00..0x7c40;
    let found = parent.qmp.memory(0, RAM);
    assert!(found[boot.clone()] == image[boot] && image[0x7c00] != 0);
}

/// What captures change of a VM's settings for migrations.
fn settings(qmp: &mut Qmp) -> [Value; 2] {
    let bandwidth = qmp.run("query-migrate-parameters", json!({}))["max-bandwidth"].clone();
    [qmp.run("query-migrate-capabilities", json!({})), bandwidth]
}

#[test]
fn a_vm_has_its_settings_again_when_its_capture_is_killed() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let more = ["-qmp", "unix:watch.sock,server=on,wait=off"];
    let mut parent = Guest::start(folder.path(), "on", &more);
    let mut watch = Qmp::connect(&folder.path().join("watch.sock"));
    let capabilities = json!([{ "capability": "auto-converge", "state": true }]);
    watch.run("migrate-set-capabilities", json!({ "capabilities": capabilities }));
    watch.run("migrate-set-parameters", json!({ "max-bandwidth": 12_345_678 }));
    let before = settings(&mut watch);
    let socket = parent.socket.clone();
    for (is_paused, signal) in
        [(false, Signal::KILL), (false, Signal::TERM), (true, Signal::KILL), (true, Signal::TERM)]
    {
        let mut attempts = 0..100;
        let is_caught = attempts.any(|n| {
            watch.run(if is_paused { "stop" } else { "cont" }, json!({}));
            let output = folder.path().join(format!("{is_paused}-{signal:?}-{n}"));
            let words = ["clone", "qemu", "--qmp", text(&socket), "-o", text(&output)];
            let words = [&words[..], &["--clones", "0", "--way", "copy"]].concat();
            let is_changed = parent.lend(|| {
                let mut run = Run::start(&words);
                let mut is_changed = false;
                while !is_changed && run.is_running() {
                    is_changed = settings(&mut watch) != before;
                }
                run.signal_if_running(signal);
                drop(run.end());
                wait_until("the settings are back", || settings(&mut watch) == before);
                is_changed
            });
            if is_paused {
                assert_ne!(watch.status(), "running", "{signal:?}");
                // It may be in a state that has to end before the next capture.
                watch.run("cont", json!({}));
            } else {
                wait_until("the VM runs on", || watch.status() == "running");
            }
            is_changed && !output.exists()
        });
        assert!(is_caught, "{signal:?} comes too late every time");
    }
}

/// A file system with reflinks, which is unmounted when this goes.
struct Reflinks(PathBuf);

impl Reflinks {
    /// Makes it in a file of `folder`; `None` where that is not possible.
    fn new(folder: &Path) -> Option<Self> {
        let (image, mount) = (folder.join("xfs"), folder.join("m"));
        fs::create_dir(&mount).unwrap();
        fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let run = |name: &str, words: &[&str]| {
            Command::new(name).args(words).output().is_ok_and(|output| output.status.success())
        };
        let is_made = run("/usr/sbin/mkfs.xfs", &["-q", "-m", "reflink=1", text(&image)])
            && run("mount", &["-o", "loop", text(&image), text(&mount)]);
        is_made.then_some(Self(mount))
    }
}

impl Drop for Reflinks {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", text(&self.0)]).status();
    }
}

#[test]
fn a_reflink_copies_nothing() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(mounted) = Reflinks::new(folder.path()) else {
        return println!(
            "******** SKIPPED: no file system with reflinks (root, xfsprogs) ********"
        );
    };
    let memory = "memory-backend-file,id=ram,size=64M,mem-path=ram,share=on";
    let mut parent = Guest::start_with(&mounted.0, memory, &[]);
    parent.fill(b'a');
    let (socket, snapshot) = (parent.socket.clone(), mounted.0.join("s"));
    let words = ["clone", "qemu", "--qmp", text(&socket), "-o", text(&snapshot), "--json"];
    let words = [&words[..], &["--paused"]].concat();
    let (mut run, captured) = parent.lend(|| {
        let mut run = Run::start(&words);
        let captured = run.event("captured");
        (run, captured)
    });
    assert_eq!((&captured["way"], &captured["written_pages"]), (&"reflink".into(), &0.into()));
    let clone = run.event("started");
    parent.fill(b'b');
    let image = fs::read(snapshot.join("ram.bin")).unwrap();
    assert!(image[FILLED].iter().all(|byte| *byte == b'a'));
    assert_same(&Qmp::connect(&path(&clone, "qmp")).memory(0, RAM), &image, "reflink");
    drop((run, parent));
}
