//! The guest's initramfs: busybox, the modules for its disks, and a script.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "the guest's folder is renamed when it is whole")
)]

use std::path::Path;

use crate::cpio::CpioWriter;
use crate::lab::build::modules::Module;
use crate::lab::error::{Error, Result};

/// Loads the modules in order, and switches to the disk with the serial number `root`.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
fail() { echo "lab: $1"; $b poweroff -f; }
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in $($b cat /modules/order); do
    $b insmod /modules/$module || fail "cannot insert $module"
done
root=
for try in 1 2 3 4 5 6 7 8 9 10; do
    for disk in /sys/block/vd*; do
        [ "$($b cat $disk/serial 2>/dev/null)" = root ] && root=/dev/${disk##*/}
    done
    [ -n "$root" ] && break
    $b sleep 0.5
done
[ -n "$root" ] || fail "found no disk with serial number root"
$b mount -t ext4 $root /root || fail "cannot mount $root"
$b umount /dev
$b umount /sys
$b umount /proc
exec $b switch_root /root /sbin/init
"#;

/// Writes the archive; `busybox` is the statically linked program.
///
/// # Errors
/// If busybox cannot be read or the archive cannot be written.
pub(crate) fn write(path: &Path, busybox: &Path, modules: &[Module]) -> Result<()> {
    let program = std::fs::read(busybox).map_err(Error::io("read", busybox))?;
    let archive = build(&program, modules).map_err(Error::io("build", path))?;
    std::fs::write(path, archive).map_err(Error::io("write", path))
}

fn build(busybox: &[u8], modules: &[Module]) -> std::io::Result<Vec<u8>> {
    let mut cpio = CpioWriter::new(Vec::new());
    for folder in ["bin", "dev", "proc", "sys", "root", "modules"] {
        cpio.directory(folder)?;
    }
    // The kernel opens it as init's standard input and output.
    cpio.device("dev/console", 5, 1)?;
    cpio.file("init", 0o755, INIT.as_bytes())?;
    cpio.file("bin/busybox", 0o755, busybox)?;
    let mut order = String::new();
    for module in modules {
        order.push_str(&module.name);
        order.push_str(".ko\n");
        cpio.file(&format!("modules/{}.ko", module.name), 0o644, &module.data)?;
    }
    cpio.file("modules/order", 0o644, order.as_bytes())?;
    cpio.finish()
}
