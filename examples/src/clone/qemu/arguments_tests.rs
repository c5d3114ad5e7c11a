//! Command lines of clones.

use super::*;
use crate::qemu::folder::{Disk, Machine};

fn captured(arguments: &str) -> Captured {
    let mut machine = Machine::new("7.2".into(), "/usr/bin/qemu".into(), "/vm".into());
    machine.arguments = arguments.split(' ').map(str::to_owned).collect();
    machine.backend = "ram".into();
    machine.ram_bytes = 4096;
    machine.disks = vec![
        Disk {
            device: "d0".into(),
            node: "#1".into(),
            image: "/vm/root.after-1-0.qcow2".into(),
            format: "qcow2".into(),
            chain: vec!["/vm/root.after-1-0.qcow2".into(), "root.img".into()],
        },
        Disk {
            device: String::new(),
            node: "top".into(),
            image: "/d/data.qcow2".into(),
            format: "qcow2".into(),
            chain: vec!["/d/data.qcow2".into(), "/d/base.img".into()],
        },
    ];
    Captured { folder: "/s".into(), machine }
}

fn own() -> Own {
    Own {
        folder: "/c".into(),
        image: "/s/ram.bin".into(),
        overlays: vec!["/c/0".into(), "/c/1,x".into()],
        mac: 0x0102ff,
        generation: "G".into(),
    }
}

/// The arguments of a clone of a VM that has the disks which its arguments name.
fn line(arguments: &str) -> Result<String, String> {
    let mut captured = captured(arguments);
    let mut own = own();
    let names = [["d0", "root"], ["top", "data"]];
    let has = names.map(|names| names.iter().any(|name| arguments.contains(name)));
    let mut kept = has.iter();
    captured.machine.disks.retain(|_| *kept.next().unwrap());
    let mut kept = has.iter();
    own.overlays.retain(|_| *kept.next().unwrap());
    derived(&captured, &own)
}

fn derived(captured: &Captured, own: &Own) -> Result<String, String> {
    let words = derive(captured, own, Path::new("/c/qmp.sock"));
    let words = words.map_err(|failure| failure.to_string())?.join(" ");
    let end = " -qmp unix:/c/qmp.sock,server=on,wait=off -incoming defer -S";
    Ok(words.strip_suffix(end).unwrap().to_owned())
}

#[test]
fn what_two_vms_cannot_share_is_replaced() {
    for (of, expected) in [
        ("-M pc,memory-backend=ram -m 1G", "-M pc,memory-backend=ram -m 1G"),
        (
            "-object memory-backend-memfd,id=ram,size=4K,share=on -object iothread,id=i",
            "-object memory-backend-file,id=ram,size=4096,mem-path=/s/ram.bin,share=off \
             -object iothread,id=i",
        ),
        (
            r#"-object {"qom-type":"memory-backend-file","id":"ram"}"#,
            "-object memory-backend-file,id=ram,size=4096,mem-path=/s/ram.bin,share=off",
        ),
        (
            "-drive file=root.img,if=none,id=d0,format=raw -drive file=cd.iso,media=cdrom",
            "-drive file=/c/0,if=none,id=d0,format=qcow2 -drive file=cd.iso,media=cdrom",
        ),
        // Without a name, and as it was before an earlier capture.
        ("-hdb /vm/root.img", "-drive media=disk,index=1,file=/c/0,format=qcow2"),
        ("root.img", "-drive media=disk,index=0,file=/c/0,format=qcow2"),
        (
            "-drive driver=raw,file.filename=root.img,file.driver=file,if=virtio",
            "-drive if=virtio,file=/c/0,format=qcow2",
        ),
        (
            "-blockdev driver=file,node-name=f,filename=/d/data.qcow2 \
             -blockdev driver=qcow2,node-name=top,file=f",
            "-blockdev driver=qcow2,node-name=top,file.driver=file,file.filename=/c/1,,x",
        ),
        (
            r#"-blockdev {"driver":"qcow2","node-name":"top","file":{"filename":"/d/data.qcow2"}}"#,
            "-blockdev driver=qcow2,node-name=top,file.driver=file,file.filename=/c/1,,x",
        ),
        // A lower image has a node of its own, or a drive that only reads it.
        (
            "-blockdev driver=file,node-name=bf,filename=/d/base.img \
             -blockdev driver=raw,node-name=base,file=bf,read-only=on \
             -blockdev driver=file,node-name=f,filename=/d/data.qcow2 \
             -blockdev driver=qcow2,node-name=top,file=f,backing=base",
            "-blockdev driver=qcow2,node-name=top,file.driver=file,file.filename=/c/1,,x",
        ),
        (
            r#"-blockdev {"driver":"raw","node-name":"base","file":{"filename":"/d/base.img"}} -blockdev {"driver":"qcow2","node-name":"top","file":{"filename":"/d/data.qcow2"},"backing":"base"}"#,
            "-blockdev driver=qcow2,node-name=top,file.driver=file,file.filename=/c/1,,x",
        ),
        (
            "-blockdev driver=raw,node-name=base,file.filename=root.img \
             -drive file=/vm/root.after-1-0.qcow2,id=d0,backing=base",
            "-drive file=/c/0,id=d0,format=qcow2",
        ),
        (
            "-drive file=/d/base.img,readonly=on,id=r -drive file=/d/data.qcow2",
            "-drive file=/d/base.img,readonly=on,id=r -drive file=/c/1,,x,format=qcow2",
        ),
        // A node of which another disk that is only read needs the file.
        (
            "-blockdev driver=file,node-name=bf,filename=/d/base.img \
             -blockdev driver=raw,node-name=base,file=bf,read-only=on \
             -blockdev driver=raw,node-name=other,file=bf,read-only=on \
             -blockdev driver=qcow2,node-name=top,file.filename=/d/data.qcow2,backing=base",
            "-blockdev driver=file,node-name=bf,filename=/d/base.img \
             -blockdev driver=raw,node-name=other,file=bf,read-only=on \
             -blockdev driver=qcow2,node-name=top,file.driver=file,file.filename=/c/1,,x",
        ),
        ("-fda root.img", "-drive if=floppy,index=0,file=/c/0,format=qcow2"),
        ("-fdb /d/data.qcow2", "-drive if=floppy,index=1,file=/c/1,,x,format=qcow2"),
        ("-sd root.img", "-drive if=sd,index=0,file=/c/0,format=qcow2"),
        ("-mtdblock root.img", "-drive if=mtd,index=0,file=/c/0,format=qcow2"),
        (
            "-device virtio-net-pci,netdev=n,mac=52:54:00:12:34:56 -device e1000,mac=a",
            "-device virtio-net-pci,netdev=n,mac=52:54:00:01:02:ff -device e1000,mac=52:54:00:01:03:00",
        ),
        ("-device vmgenid,guid=auto,id=v", "-device vmgenid,guid=G,id=v"),
        (
            r#"-device {"driver":"e1000","mac":"a"}"#,
            r#"-device {"driver":"e1000","mac":"52:54:00:01:02:ff"}"#,
        ),
        (
            "-netdev user,id=n,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-10.0.2.15:53",
            "-netdev user,id=n,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=udp::0-10.0.2.15:53",
        ),
        ("-netdev tap,id=n,ifname=tap3", "-netdev tap,id=n"),
        ("-nic user,mac=a", "-nic user,mac=52:54:00:01:02:ff"),
        ("-net nic,macaddr=a", "-net nic,macaddr=52:54:00:01:02:ff"),
        (
            "-chardev socket,id=ser,path=/p,server=on -chardev file,id=l,path=/p -chardev stdio,id=s,mux=on",
            "-chardev socket,id=ser,path=/c/ser.sock,server=on,wait=off -chardev file,id=l,path=/c/l.log \
             -chardev null,id=s,mux=on",
        ),
        (
            "-serial unix:/p,server=on -serial file:/p -serial mon:stdio -serial chardev:ser",
            "-serial unix:/c/serial0.sock,server=on,wait=off -serial file:/c/serial1.log \
             -serial null -serial chardev:ser",
        ),
        ("-nographic -vnc :1", "-display none -vnc unix:/c/vnc.sock"),
        (
            "-S -daemonize -D log -d in_asm -pidfile p -qmp q -monitor stdio -incoming x -smp 2",
            "-smp 2",
        ),
    ] {
        assert_eq!(line(of).unwrap(), expected, "{of}");
    }
}

#[test]
fn what_cannot_be_replaced_is_refused() {
    for (of, expected) in [
        ("-snapshot", "temporary"),
        ("-device vfio-pci,host=1", "`-device vfio-pci,host=1` cannot be cloned"),
        ("-device vhost-user-fs-pci,chardev=c", "another process"),
        ("-netdev tap,id=n,fd=3", "descriptor"),
        ("-netdev socket,id=n,listen=:1", "socket"),
        ("-smp", "no value"),
    ] {
        let error = line(of).unwrap_err();
        assert!(error.contains(expected), "{of}: {error}");
    }
}

#[test]
fn each_disk_is_replaced_once() {
    for (of, expected) in [
        ("-m 1G -drive file=root.img", "`disk top` cannot be cloned on one host: no argument"),
        ("-blockdev driver=qcow2,node-name=top,file.filename=/d/data.qcow2", "`disk d0` cannot"),
        ("-drive file=root.img -hda root.img -hdb /d/data.qcow2", "`disk d0` cannot"),
        ("-drive file=root.img,id=d0 -drive file=/d/base.img -hda /d/data.qcow2", "several"),
    ] {
        let error = derived(&captured(of), &own()).unwrap_err();
        assert!(error.contains(expected), "{of}: {error}");
    }
}
