//! Deaths of the handler and of its supervisor, while VMs run.

use crate::double::WATCHDOG;
use crate::handler::{Handler, kill};
use crate::{Snapshot, Vmm};
use std::time::{Duration, Instant};

/// Deaths in the test of many, unless KALEIDOSCOPE_DEATHS says how many.
const DEATHS: usize = 12;

fn deaths() -> usize {
    std::env::var("KALEIDOSCOPE_DEATHS").map_or(DEATHS, |deaths| deaths.parse().unwrap())
}

/// Numbers of the two processes, which each start tells.
struct Pair {
    handler: u32,
    supervisor: u32,
}

impl Pair {
    fn of(handler: &Handler) -> Self {
        let number = |name: &str| u32::try_from(handler.serving[name].as_u64().unwrap()).unwrap();
        Self { handler: number("handler"), supervisor: number("parent") }
    }

    /// Kills the handler, and waits for the next one.
    fn kill_handler(&mut self, handler: &Handler, vms: usize) {
        kill(self.handler, "-KILL");
        let serving = handler.next("serving");
        self.handler = u32::try_from(serving["handler"].as_u64().unwrap()).unwrap();
        for _ in 0..vms {
            assert_eq!(handler.next("started")["taken_over"], true);
        }
    }

    /// Kills the supervisor, and waits for the next one.
    fn kill_supervisor(&mut self, handler: &Handler) {
        kill(self.supervisor, "-KILL");
        handler.next("supervisor_replaced");
        let is_supervisor = |pid: &u32| {
            let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            variables.split(|byte| *byte == 0).any(|v| v == b"KALEIDOSCOPE_ROLE=supervisor")
        };
        let find = || {
            // By the thread that has started each.
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.handler)).unwrap();
            let children = threads.filter_map(|thread| {
                std::fs::read_to_string(thread.unwrap().path().join("children")).ok()
            });
            let all: Vec<u32> = children
                .flat_map(|all| {
                    all.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<_>>()
                })
                .collect();
            all.into_iter().find(is_supervisor)
        };
        // While it executes the program, it has no variables.
        let end = Instant::now() + WATCHDOG;
        self.supervisor = loop {
            assert!(Instant::now() < end, "no supervisor runs");
            match find() {
                Some(supervisor) => break supervisor,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
    }
}

/// Waits until a process has ended.
fn gone(pid: u32) {
    let end = Instant::now() + WATCHDOG;
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    while state().rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z')) {
        assert!(Instant::now() < end, "process {pid} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn any_single_death_is_survived() {
    let snapshot = Snapshot::new(48);
    let mut handler = snapshot.serve(&["--fetch-free"]);
    let mut pair = Pair::of(&handler);
    let mut vms: [Vmm; 2] = std::array::from_fn(|_| {
        let vm = snapshot.load(&handler, "");
        handler.event("started");
        vm
    });
    for round in 0..deaths() {
        let command = format!("churn {round} 1500");
        vms.iter_mut().for_each(|vm| vm.begin(&command));
        std::thread::sleep(Duration::from_millis(7 * round as u64 % 40));
        if round % 3 == 2 {
            pair.kill_supervisor(&handler);
        } else {
            pair.kill_handler(&handler, vms.len());
        }
        vms.iter_mut().for_each(|vm| vm.finish(&command));
    }
    // A VM that begins afterwards is served as well.
    let mut late = snapshot.load(&handler, "");
    assert_eq!(handler.next("started")["taken_over"], false);
    late.run("check");
    pair.kill_handler(&handler, 3);
    for mut vm in vms.into_iter().chain([late]) {
        vm.run("check");
        vm.shut_down();
        let ended = handler.next("ended");
        assert_eq!(ended["error"], serde_json::Value::Null, "{ended}");
    }
    // The first supervisor has died long ago: its successor ends with the handler.
    kill(pair.handler, "-TERM");
    gone(pair.handler);
    gone(pair.supervisor);
    assert!(!handler.socket.exists());
    assert!(!snapshot.path("uffd.sock.notify").exists());
    handler.ended();
}

#[test]
fn what_was_given_back_stays_zeros_for_the_next_handler() {
    let snapshot = Snapshot::new(48);
    let handler = snapshot.serve(&["--fetch-free"]);
    let mut pair = Pair::of(&handler);
    let mut vm = snapshot.load(&handler, "");
    handler.event("started");
    vm.run("first 2000");
    vm.run("give-back 1000 9000");
    pair.kill_handler(&handler, 1);
    vm.run("give-back 10000 11000");
    pair.kill_handler(&handler, 1);
    vm.run("check");
    // Everything is resident: nothing is lost, and zeros come again.
    vm.run("give-back 0 500");
    pair.kill_handler(&handler, 1);
    vm.run("check");
    vm.shut_down();
}

#[test]
fn when_both_die_the_vmms_end() {
    let snapshot = Snapshot::new(48);
    let mut handler = snapshot.serve(&["--fetch-free"]);
    let mut pair = Pair::of(&handler);
    let mut vms = [snapshot.load(&handler, ""), snapshot.load(&handler, "")];
    vms.iter().for_each(|_| drop(handler.event("started")));
    pair.kill_handler(&handler, 2);
    vms.iter_mut().for_each(|vm| vm.run("first 10"));
    // One that ended by itself is not anybody's any more.
    let [first, mut second] = vms;
    first.shut_down();
    handler.event("ended");
    // The supervisor is stopped, so that it starts no other.
    kill(pair.supervisor, "-STOP");
    kill(pair.handler, "-KILL");
    kill(pair.supervisor, "-KILL");
    assert!(!second.ended().success());
    handler.ended();
}

#[test]
fn a_new_handler_takes_over_on_request() {
    let snapshot = Snapshot::new(48);
    let mut handler = snapshot.serve(&["--fetch-free"]);
    let mut vm = snapshot.load(&handler, "");
    handler.event("started");
    vm.begin("churn 5 3000");
    // The snapshot's file has been replaced meanwhile: the VM's is the old one.
    let other = snapshot.path("other");
    std::fs::write(&other, vec![1; 48 << 20]).unwrap();
    let old = snapshot.path("old");
    std::fs::rename(snapshot.path("memory"), &old).unwrap();
    std::fs::rename(&other, snapshot.path("memory")).unwrap();
    // Colors that are found anew, too, do not make another file of it.
    std::fs::remove_file(snapshot.path("memory.kscope")).unwrap();
    handler.signal("-USR2");
    assert_eq!(handler.next("started")["taken_over"], true);
    vm.finish("churn 5 3000");
    vm.run("check");
    handler.signal("-TERM");
    handler.event("waiting");
    vm.shut_down();
    assert!(handler.ended().success());
}

#[test]
fn a_guard_that_dies_is_replaced() {
    let snapshot = Snapshot::new(48);
    let mut handler = snapshot.serve(&["--fetch-free"]);
    let mut pair = Pair::of(&handler);
    let mut vm = snapshot.load(&handler, "");
    handler.event("started");
    let notify = snapshot.path("uffd.sock.notify").display().to_string();
    let guard = || {
        let all = std::fs::read_dir("/proc").unwrap();
        let pids = all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
        let read = |pid: u32, what: &str| {
            let bytes = std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let mut ours = pids.filter(|pid| {
            read(*pid, "cmdline").contains("undo-guard") && read(*pid, "environ").contains(&notify)
        });
        ours.next()
    };
    let first = guard().expect("no guard runs");
    kill(first, "-KILL");
    let end = Instant::now() + WATCHDOG;
    while guard().is_none_or(|guard| guard == first) {
        assert!(Instant::now() < end, "no guard replaces the one that died");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The supervisor has an end of its pipe: a new handler goes on, and so does the VM.
    pair.kill_handler(&handler, 1);
    vm.run("first 500");
    kill(pair.supervisor, "-STOP");
    kill(pair.handler, "-KILL");
    kill(pair.supervisor, "-KILL");
    assert!(!vm.ended().success());
    handler.ended();
}
