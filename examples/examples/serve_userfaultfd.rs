//! A handler: serves a VMM's userfaultfd from a memory file.
//!
//! It listens at `uffd.sock` and serves `mem.bin`, both in the current folder. The VMM may be
//! `userfaultfd_vmm uffd.sock mem.bin`, the example beside this one. The program between the
//! markers is quoted in README.md; a test compares the two, and builds it as a crate of its own.

// door: begin
use kaleidoscope_core::clone::LocalSource;
use kaleidoscope_core::coloring::{ColoringOptions, color};
use kaleidoscope_core::image::{Format, MemoryImage};
use kaleidoscope_kvm::uffd::{Region, Session, receive};
use std::{error::Error, os::unix::net::UnixListener, sync::Arc};

fn main() -> Result<(), Box<dyn Error>> {
    let image = Arc::new(MemoryImage::open("mem.bin", &Format::Auto)?);
    let map = color(&*image, &ColoringOptions::default())?.map;
    let (vmm, _) = UnixListener::bind("uffd.sock")?.accept()?;
    let hello = receive(&vmm)?; // A message, and descriptors by SCM_RIGHTS.
    let address = *hello.message.first_chunk().ok_or("no address")?; // Your own protocol.
    let ram = Region::at_offset(u64::from_le_bytes(address), map.layout().bytes(), 0);
    let mut vm = Session::builder(map, LocalSource::new(image)); // The policy is `predicted`.
    for userfaultfd in hello.descriptors {
        vm = vm.userfaultfd(userfaultfd, [ram]);
    }
    vm.until_exit(hello.process).start()?.wait()?;
    Ok(())
}
// door: end
