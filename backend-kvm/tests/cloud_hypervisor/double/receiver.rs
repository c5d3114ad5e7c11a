//! The receiver of a postcopy migration, as cloud-hypervisor 53.0 and later are.

use super::memory::{Ram, resolve, watch};
use super::{PAGE, STATE, Slot, exit, page, wire};
use kaleidoscope_kvm::uffd::receive;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use userfaultfd::{Event, Uffd};

/// What a receiver is told to do.
///
/// - `minor`: faults on pages that are in their file are asked for, too (after 53.0)
/// - `private`: it gets no files
/// - `sweeps`: it asks for all of RAM in the background
/// - `precopy`: it asks for nothing
/// - `waits`: the guest touches nothing until there is a file PATH.go
/// - `balloon`: in the end the guest gives memory back, and reads it again
/// - `paused`: the VM is to be left paused; the guest runs all the same, once it was told so
/// - `STEP=hangs`, `STEP=dies`, `STEP=refuses`, `STEP=garbles`: for `start`, `fd`, `config`,
///   `state`, `complete`
/// - `fault=KIND`: the first fault is asked for in a wrong way
struct Orders {
    socket: PathBuf,
    words: Vec<String>,
}

impl Orders {
    fn is(&self, word: &str) -> bool {
        self.words.iter().any(|known| known == word)
    }

    fn beside(&self, extension: &str) -> PathBuf {
        beside(&self.socket, extension)
    }

    /// What a step does: `None` for what it should.
    fn answer(&self, step: &str, control: &mut UnixStream) {
        let special = self.words.iter().find_map(|word| word.strip_prefix(&format!("{step}=")));
        match special {
            None => wire::answer(control, 1).unwrap_or_else(|_| exit(exit::CLOSED)),
            Some("hangs") => hang(control),
            Some("dies") => exit(exit::DIED),
            Some("refuses") => {
                wire::answer(control, 2).unwrap();
                exit(exit::FAILED);
            }
            Some("garbles") => {
                control.write_all(&[0xff; 16]).unwrap();
                hang(control);
            }
            Some(other) => panic!("{other}"),
        }
    }
}

/// A file beside the socket.
pub fn beside(socket: &Path, extension: &str) -> PathBuf {
    socket.with_extension(extension)
}

/// Does nothing until the other end has closed.
fn hang(stream: &mut UnixStream) -> ! {
    let _ = stream.read_to_end(&mut Vec::new());
    exit(exit::CLOSED)
}

/// Receives a VM at a socket, and ends the process. `what` is the socket and [`Orders`].
pub fn run(what: &str) -> ! {
    let mut words = what.split(' ').map(str::to_owned);
    let socket = PathBuf::from(words.next().unwrap());
    let orders = Arc::new(Orders { socket, words: words.collect() });
    let listener = UnixListener::bind(&orders.socket).unwrap();
    let (mut control, _) = listener.accept().unwrap();
    let mut files = BTreeMap::new();
    let (mut ram, mut requests) = (Arc::new(Vec::new()), None);
    loop {
        let Some((command, length)) = wire::request(&mut control) else { exit(exit::CLOSED) };
        let payload = |control: &mut UnixStream| {
            let mut bytes = vec![0; length as usize];
            control.read_exact(&mut bytes).unwrap();
            bytes
        };
        match command {
            1 => orders.answer("start", &mut control),
            7 => {
                let hello = receive(&control).unwrap();
                let slot = u32::from_le_bytes(hello.message.try_into().unwrap());
                let [file] = <[OwnedFd; 1]>::try_from(hello.descriptors).unwrap();
                files.insert(slot, file);
                orders.answer("fd", &mut control);
            }
            2 => {
                assert_eq!(files.is_empty(), orders.is("private"), "files come where they should");
                ram = Arc::new(map(&payload(&mut control), &mut files));
                orders.answer("config", &mut control);
            }
            3 => {
                assert_eq!(payload(&mut control), STATE);
                if !orders.is("precopy") {
                    let (mut faults, _) = listener.accept().unwrap();
                    let mut role = [0; 2];
                    faults.read_exact(&mut role).unwrap();
                    assert_eq!(role, [2, 0]);
                    requests = Some(serve(Arc::clone(&orders), Arc::clone(&ram), faults));
                    // Devices are restored, and look at their queues.
                    assert_eq!(ram[0].read(0), page(ram[0].gpa));
                } else if !orders.is("late") {
                    // It takes the connection for pages, and drops it.
                    drop(listener.accept());
                }
                orders.answer("state", &mut control);
            }
            5 | 8 => {
                assert_eq!(command == 8, orders.is("paused"));
                orders.answer("complete", &mut control);
                drop(control);
                look(&orders, &ram);
                let count = requests.unwrap().load(Ordering::Acquire);
                std::fs::write(orders.beside("requests"), count.to_string()).unwrap();
                exit(exit::GOOD);
            }
            6 => {
                let _ = wire::answer(&mut control, 1);
                exit(exit::ABANDONED);
            }
            other => panic!("command {other}"),
        }
    }
}

/// Maps the RAM of a configuration.
fn map(config: &[u8], files: &mut BTreeMap<u32, OwnedFd>) -> Vec<Ram> {
    let config: Value = serde_json::from_slice(config).unwrap();
    let slots = config["memory_manager_data"]["guest_ram_mappings"].as_array().unwrap();
    let ram = slots.iter().map(|slot| {
        let number = |name: &str| slot[name].as_u64().unwrap();
        let slot: Slot =
            (number("slot") as u32, number("gpa"), number("size"), number("file_offset"));
        Ram::map(slot, files.remove(&slot.0))
    });
    let ram = ram.collect();
    assert!(files.is_empty());
    ram
}

/// Watches the memory, and asks for its pages on a thread. Returns the number of requests.
fn serve(orders: Arc<Orders>, ram: Arc<Vec<Ram>>, mut faults: UnixStream) -> Arc<AtomicU64> {
    let uffd = watch(&ram, orders.is("minor"));
    let requests = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&requests);
    std::thread::spawn(move || {
        let mut left: Vec<(usize, usize)> = Vec::new();
        if orders.is("sweeps") {
            left = (0..ram.len())
                .flat_map(|n| (0..ram[n].len).step_by(PAGE).map(move |at| (n, at)))
                .collect();
            left.reverse();
        }
        let mut done = BTreeSet::new();
        let is_sweeping = !left.is_empty();
        loop {
            let Some((n, at)) = next_fault(&uffd, &ram, is_sweeping).or_else(|| left.pop()) else {
                if is_sweeping {
                    // All of RAM is there, and is watched no more.
                    faults.shutdown(std::net::Shutdown::Both).unwrap();
                    return;
                }
                continue;
            };
            if is_sweeping && !done.insert((n, at)) {
                // It is there, and a thread may wait for it.
                resolve(&uffd, &ram[n], at, false, None);
                continue;
            }
            count.fetch_add(1, Ordering::AcqRel);
            ask(&orders, &mut faults, ram[n].gpa + at as u64);
            let mut inline = [0; PAGE];
            let page = match wire::answered(&mut faults) {
                Some((1, 0)) if !orders.is("private") => None,
                Some((1, 4096)) if orders.is("private") => {
                    faults.read_exact(&mut inline).unwrap_or_else(|_| exit(exit::FAILED));
                    Some(&inline[..])
                }
                Some((2, 0)) | None => exit(exit::FAILED),
                other => panic!("{other:?}"),
            };
            resolve(&uffd, &ram[n], at, orders.is("minor"), page);
        }
    });
    requests
}

/// The next fault of the guest, as a slot and an offset.
fn next_fault(uffd: &Uffd, ram: &[Ram], is_sweeping: bool) -> Option<(usize, usize)> {
    let mut fds = [PollFd::new(uffd, PollFlags::IN)];
    let wait = Timespec { tv_sec: 0, tv_nsec: if is_sweeping { 0 } else { 10_000_000 } };
    poll(&mut fds, Some(&wait)).unwrap();
    match uffd.read_event().unwrap()? {
        Event::Pagefault { addr, .. } => {
            let address = addr.addr();
            ram.iter().enumerate().find_map(|(n, ram)| Some((n, ram.offset_of(address)?)))
        }
        other => panic!("{other:?}"),
    }
}

/// Asks for a page, or does what the orders say.
fn ask(orders: &Orders, faults: &mut UnixStream, gpa: u64) {
    let range = |gpa: u64, length: u64| [gpa.to_le_bytes(), length.to_le_bytes()].concat();
    let special = orders.words.iter().find_map(|word| word.strip_prefix("fault="));
    let sent = match special {
        None => wire::send(faults, 9, &range(gpa, 4096)),
        Some("nowhere") => wire::send(faults, 9, &range(5 << 20, 4096)),
        Some("across") => wire::send(faults, 9, &range((4 << 20) - 4096, 8192)),
        Some("huge") => wire::send(faults, 9, &range(0, 1 << 30)),
        Some("unaligned") => wire::send(faults, 9, &range(1, 4096)),
        Some("long") => wire::send(faults, 9, &[0; 24]),
        Some("other") => wire::send(faults, 4, &[]),
        Some("unknown") => wire::send(faults, 77, &[]),
        Some("half") => {
            faults.write_all(&[9, 0, 0]).unwrap();
            hang(faults);
        }
        Some("dies") => exit(exit::DIED),
        Some("abandons") => {
            wire::send(faults, 6, &[]).unwrap();
            assert_eq!(wire::answered(faults), Some((1, 0)));
            hang(faults);
        }
        Some(other) => panic!("{other}"),
    };
    sent.unwrap_or_else(|_| exit(exit::FAILED));
}

/// What the guest does.
fn look(orders: &Orders, ram: &[Ram]) {
    while orders.is("waits") && !orders.beside("go").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Not in order, so that most pages are faults under any policy.
    for ram in ram.iter().rev() {
        for at in (0..ram.len).step_by(PAGE).rev() {
            if at % (3 * PAGE) == 0 {
                // What the guest writes is not overwritten.
                ram.write(at + 5, 0xee);
                assert_eq!(ram.read(at)[5], 0xee);
            }
            let mut expected = page(ram.gpa + at as u64);
            if at % (3 * PAGE) == 0 {
                expected[5] = 0xee;
            }
            assert!(ram.read(at) == expected, "{:#x}", ram.gpa + at as u64);
        }
    }
    if orders.is("balloon") {
        let ram = &ram[1];
        for _ in 0..2 {
            ram.give_back();
            for at in (0..ram.len).step_by(PAGE) {
                assert!(ram.read(at) == [0; PAGE], "what was given back is zeros");
            }
        }
    }
}
