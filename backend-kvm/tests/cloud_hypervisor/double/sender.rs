//! The sender of a local migration, as cloud-hypervisor with `local=on,preserve_source=on` is.

use super::{PAGE, SHARED, SLOTS, STATE, Slot, config, exit, page, wire};
use kaleidoscope_kvm::uffd;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

/// Sends a VM with [`SLOTS`], and returns the exit status. `orders` are words:
///
/// - `paused`: the VM does not run
/// - `later`, `memory`, `unknown`, `early`: another version, memory in messages, an unknown command,
///   a state before the configuration
/// - `twice`, `none`, `fewer`, `short`, `pipe`, `disk`, `two`, `bare`, `extra`: slots and files that
///   are wrong
/// - `STEP=dies`, `STEP=hangs`, `STEP=abandons`: for `start`, `fd`, `config`, `state`, `complete`
pub fn run(mut stream: UnixStream, orders: &str) -> i32 {
    match walk(&mut stream, orders) {
        Ok(()) => exit::GOOD,
        Err(status) => status,
    }
}

fn walk(stream: &mut UnixStream, orders: &str) -> Result<(), i32> {
    let is = |word: &str| orders.split(' ').any(|known| known == word);
    let special = |stream: &mut UnixStream, step: &str| {
        if is(&format!("{step}=dies")) {
            return Err(exit::DIED);
        }
        if is(&format!("{step}=hangs")) {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            return Err(if rest.starts_with(&[2, 0]) { exit::FAILED } else { exit::CLOSED });
        }
        if is(&format!("{step}=abandons")) {
            send(stream, 6, &[])?;
        }
        Ok(())
    };
    special(stream, "start")?;
    if is("later") {
        stream.write_all(&[1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        answered(stream)?;
    }
    send(stream, if is("unknown") { 99 } else { 1 }, &[])?;

    let mut slots = SLOTS.to_vec();
    if is("twice") {
        slots.push(SLOTS[0]);
    }
    if is("extra") {
        slots.push((9, 0, 4096, 0));
    }
    if is("fewer") {
        slots.pop();
    }
    if is("none") {
        slots.clear();
    }
    let mut files = Vec::new();
    for slot in slots {
        special(stream, "fd")?;
        let file = file(slot, is("short"));
        let (pipe, _writer) = std::io::pipe().unwrap();
        let disk = std::fs::File::open("/proc/self/status").unwrap();
        let mut descriptors = vec![file.as_fd()];
        if is("pipe") {
            descriptors = vec![pipe.as_fd()];
        }
        if is("disk") {
            descriptors = vec![disk.as_fd()];
        }
        if is("two") {
            descriptors.push(pipe.as_fd());
        }
        let mut header = [0; 16];
        (header[0], header[8]) = (7, 4);
        stream.write_all(&header).map_err(|_| exit::CLOSED)?;
        let number = slot.0.to_le_bytes();
        if is("bare") {
            stream.write_all(&number).map_err(|_| exit::CLOSED)?;
        } else {
            uffd::send(stream, &number, &descriptors).map_err(|_| exit::CLOSED)?;
        }
        answered(stream)?;
        files.push((slot, file));
    }
    if is("early") {
        send(stream, 3, STATE)?;
    }
    special(stream, "config")?;
    send(stream, 2, &config(&SLOTS, SHARED))?;
    if is("memory") {
        send(stream, 4, &[0; 16])?;
    }
    special(stream, "state")?;
    send(stream, 3, STATE)?;
    special(stream, "complete")?;
    let done = send(stream, if is("paused") { 8 } else { 5 }, &[]);
    // The VM runs on, and writes.
    for ((_, _, size, offset), file) in files {
        file.write_all_at(&vec![0x11; size as usize], offset).unwrap();
    }
    done
}

/// Sends a request, and waits for the answer.
fn send(stream: &mut UnixStream, command: u16, payload: &[u8]) -> Result<(), i32> {
    wire::send(stream, command, payload).map_err(|_| exit::CLOSED)?;
    answered(stream)
}

fn answered(stream: &mut UnixStream) -> Result<(), i32> {
    match wire::answered(stream) {
        Some((1, 0)) => Ok(()),
        Some((2, 0)) => Err(exit::FAILED),
        None => Err(exit::CLOSED),
        other => panic!("{other:?}"),
    }
}

/// A memory file with a slot's bytes. Other bytes are before the slot's.
fn file((_, gpa, size, offset): Slot, is_short: bool) -> File {
    let file = File::from(memfd_create("ram", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(offset + size).unwrap();
    file.write_all_at(&vec![0x77; offset as usize], 0).unwrap();
    for at in (0..size).step_by(PAGE) {
        let page = page(gpa + at);
        // Pages of zeros are written, too, but for every other one.
        if page != [0; PAGE] || at % (2 * PAGE as u64) == 0 {
            file.write_all_at(&page, offset + at).unwrap();
        }
    }
    if is_short {
        file.set_len(offset + size - 1).unwrap();
    }
    file
}
