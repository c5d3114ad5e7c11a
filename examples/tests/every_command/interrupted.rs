//! Signals, and standard errors that are not read.

use crate::table::{End, Entry, TABLE};
use crate::unwritable::is_whole;
use crate::world::{Run, is_root, skipped, wait_until, world};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Instants at which each command gets each signal.
const INSTANTS: u64 = 2;

/// Longest time until a signal: commands that take longer have begun all that they do by then.
const LONGEST: Duration = Duration::from_millis(1500);

/// The seed of the instants, which a failure names.
const SEED: u64 = 0x5eed_2024;

/// Knuth's MMIX generator.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit.max(1)
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn signals_leave_nothing() {
    let _world = world();
    let mut dice = Dice(SEED);
    for entry in TABLE {
        let usual = match entry.end {
            End::Code(_) => Run::new(entry, entry.run).finish().took.min(LONGEST),
            End::Either | End::Stays | End::Hangs => LONGEST,
        };
        for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
            for _ in 0..INSTANTS {
                let millis = dice.below(u64::try_from(usual.as_millis()).unwrap() + 1);
                interrupt(entry, signal, Duration::from_millis(millis));
            }
        }
    }
}

fn interrupt(entry: &Entry, signal: Signal, after: Duration) {
    let what = format!("{} {signal:?} after {after:?}", entry.words);
    let mut run = Run::new(entry, entry.run);
    for (name, _) in entry.written.iter().filter(|(_, inside)| *inside == 1) {
        fs::write(run.output(name), "old").unwrap();
    }
    let start = Instant::now();
    let child = run.start();
    std::thread::sleep(after);
    send(&child, signal);
    let ended = run.wait(child, start);
    let died = ended.status.signal() == Some(signal.as_raw());
    let usual = match entry.end {
        // It had ended before.
        End::Code(code) => ended.status.code() == Some(code),
        End::Either => matches!(ended.status.code(), Some(0 | 2)),
        End::Stays => ended.status.code() == Some(0),
        End::Hangs => false,
    };
    assert!(died || usual, "{what}: {ended:?}");
    // A command whose end is an error may have said it just before.
    let may_fail = matches!(entry.end, End::Code(1..) | End::Either);
    assert!(!died || may_fail || !ended.said.contains("error:"), "{what}: {ended:?}");
    for (name, _) in entry.written.iter().filter(|(_, inside)| *inside == 1) {
        let found = fs::read(run.output(name)).unwrap();
        assert!(found == b"old" || is_whole(name, &found), "{what}: half of {name}");
    }
    run.assert_clean(entry, &ended);
}

fn entry(words: &str) -> &'static Entry {
    TABLE.iter().find(|entry| entry.words == words).unwrap()
}

#[test]
fn killed_commands_leave_nothing_either() {
    let _world = world();
    // A guest's memory, before it is whole; and the lab, whose programs hang.
    let slow =
        ["unix:{w}/parent.sock", "-o", "{o}/copy.bin", "--rate", "500", "--policy", "demand"];
    for (words, arguments) in [("pull", &slow[..]), ("lab run", entry("lab run").run)] {
        for signal in [Signal::KILL, Signal::TERM] {
            let entry = entry(words);
            let mut run = Run::new(entry, arguments);
            let start = Instant::now();
            let child = run.start();
            if words == "lab run" {
                wait_until("the lab's folder", || run.output("guest.partial").exists());
            }
            std::thread::sleep(Duration::from_millis(300));
            send(&child, signal);
            let ended = run.wait(child, start);
            assert_eq!(ended.status.signal(), Some(signal.as_raw()), "{words}: {ended:?}");
            if signal == Signal::KILL {
                // What another process does for it takes a moment.
                wait_until("all is gone", || !run.output("guest.partial").exists());
            }
            run.assert_clean(entry, &ended);
        }
    }
}

#[test]
fn a_second_signal_ends_a_server_at_once() {
    let _world = world();
    let entry = entry("serve");
    let mut run = Run::new(entry, entry.run);
    let start = Instant::now();
    let child = run.start();
    wait_until("it serves", || run.output("s.sock").exists());
    send(&child, Signal::INT);
    send(&child, Signal::INT);
    let ended = run.wait(child, start);
    // The second one may come too late, or be the same.
    let died = ended.status.signal() == Some(Signal::INT.as_raw());
    assert!(died || ended.status.success(), "{ended:?}");
}

#[test]
fn ignored_signals_stay_ignored() {
    let _world = world();
    let entry = entry("serve");
    let mut run = Run::new(entry, entry.run);
    run.wrap("nohup", &[]);
    let start = Instant::now();
    let mut child = run.start();
    wait_until("it serves", || run.output("s.sock").exists());
    send(&child, Signal::HUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    send(&child, Signal::TERM);
    let ended = run.wait(child, start);
    assert!(ended.status.success(), "{ended:?}");
    run.assert_clean(entry, &ended);
}

#[test]
fn settings_of_the_kernel_come_back() {
    let _world = world();
    if !is_root() || !fs::exists("/sys/kernel/mm/ksm").unwrap() {
        return skipped("a kernel's settings take root, and a kernel with KSM");
    }
    let settings = [
        ("run", "0"),
        ("sleep_millisecs", "20"),
        ("pages_to_scan", "100"),
        ("smart_scan", "1"),
        ("use_zero_pages", "0"),
        ("full_scans", "7"),
        ("pages_sharing", "3"),
        ("pages_shared", "3"),
    ];
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL] {
        let entry = entry("dedup");
        let mut run = Run::new(entry, &["{w}/guest", "{w}/other", "--ksm"]);
        let fake = run.path("ksm");
        fs::create_dir(&fake).unwrap();
        for (name, value) in settings {
            fs::write(fake.join(name), value).unwrap();
        }
        // In place of the kernel's, which are the whole host's: for this run alone.
        let script = "mount --bind \"$KSM\" /sys/kernel/mm/ksm && exec \"$0\" \"$@\"";
        run.wrap("unshare", &["--mount", "sh", "-c", script]);
        run.command.env("KSM", &fake);
        let start = Instant::now();
        let mut child = run.start();
        let read = |name: &str| fs::read_to_string(fake.join(name)).unwrap();
        wait_until("KSM is switched on", || {
            assert!(child.try_wait().unwrap().is_none(), "it ended");
            read("run") == "1"
        });
        send(&child, signal);
        let ended = run.wait(child, start);
        assert_eq!(ended.status.signal(), Some(signal.as_raw()), "{ended:?}");
        if signal == Signal::KILL {
            wait_until("the guard does its part", || read("run") == "0");
            wait_until("and the rest", || read("sleep_millisecs") == "20");
        }
        for (name, value) in settings {
            assert_eq!(read(name), value, "{name} after {signal:?}");
        }
        run.assert_clean(entry, &ended);
    }
}

#[test]
fn a_server_whose_messages_nobody_reads_serves_on() {
    if !is_root() {
        return skipped("clients of another user take root");
    }
    let world = world();
    let program = world.public_program("client");
    for what in ["gone", "full", "unread"] {
        let entry = entry("serve");
        let words = [entry.run, &["--user", "12345"]].concat();
        let mut run = Run::new(entry, &words);
        let (reader, mut writer) = std::io::pipe().unwrap();
        match what {
            "gone" => drop(reader),
            "unread" => {
                // A pipe that is full already.
                rustix::io::ioctl_fionbio(&writer, true).unwrap();
                while writer.write(&[b'x'; 4096]).is_ok() {}
                rustix::io::ioctl_fionbio(&writer, false).unwrap();
                std::mem::forget(reader);
            }
            _ => writer.write_all(b"").unwrap(),
        }
        if what == "full" {
            run.command.stderr(fs::File::options().write(true).open("/dev/full").unwrap());
        } else {
            run.command.stderr(writer);
        }
        let start = Instant::now();
        let child = run.start();
        wait_until("it serves", || run.output("s.sock").exists());
        let address = format!("unix:{}", run.output("s.sock").display());
        let pull = |uid: Option<u32>| {
            let mut client = Command::new(&program);
            client.args(["pull", &address, "-o", "/dev/null", "--timeout", "20"]);
            client.env("TMPDIR", "/tmp").stdin(Stdio::null());
            if let Some(uid) = uid {
                client.uid(uid).gid(uid);
            }
            client.output().unwrap()
        };
        for _ in 0..3 {
            assert!(!pull(Some(65_534)).status.success(), "{what}");
        }
        let pulled = pull(None);
        let said = String::from_utf8_lossy(&pulled.stderr);
        assert!(pulled.status.success(), "{what}: {said}");
        send(&child, Signal::TERM);
        let ended = run.wait(child, start);
        assert!(ended.status.success(), "{what}: {ended:?}");
    }
}
