//! The disks of a VM, and the overlays that it and its clones write to.

use crate::failure::Failure;
use crate::interrupt::child;
use crate::qemu::folder::Disk;
use crate::qemu::qmp::Qmp;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Most images below each other.
const DEEPEST: usize = 64;

/// Disks that the guest may write to, from the answer to `query-block`.
pub(super) fn of(answer: &Value) -> Result<Vec<Disk>, Failure> {
    let mut disks = Vec::new();
    for block in answer.as_array().into_iter().flatten() {
        let Some(inserted) = block.get("inserted") else { continue };
        if inserted.get("ro").and_then(Value::as_bool) != Some(false) {
            // Shared with clones, as nothing writes to it.
            continue;
        }
        let text = |value: &Value, key: &str| {
            value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let device = text(block, "device");
        let name = if device.is_empty() { text(block, "qdev") } else { device.clone() };
        let mut chain = Vec::new();
        let mut image = inserted.get("image");
        while let Some(found) = image.filter(|_| chain.len() < DEEPEST) {
            chain.push(PathBuf::from(text(found, "filename")));
            image = found.get("backing-image");
        }
        let format = text(inserted, "drv");
        let file = chain.first().cloned().unwrap_or_default();
        // Other protocols than files have names such as `nbd://` and `json:{`.
        let is_file = !file.as_os_str().is_empty() && !file.to_string_lossy().contains(':');
        if !is_file || !["raw", "qcow2", "qed", "vmdk", "vdi"].contains(&format.as_str()) {
            let what = format!("disk {name} is not an image file: {} ({format})", file.display());
            return Err(Failure::new(what)
                .hint("clones need disks of image files, or disks that the guest only reads"));
        }
        disks.push(Disk { device, node: text(inserted, "node-name"), image: file, format, chain });
    }
    Ok(disks)
}

/// Makes the images' paths absolute. `folder` is QEMU's.
pub(super) fn locate(disks: &mut [Disk], folder: &Path) -> Result<(), Failure> {
    for disk in disks {
        disk.image = folder.join(&disk.image);
        if !disk.image.exists() {
            return Err(Failure::at(&disk.image, "the disk's image is not there"));
        }
    }
    Ok(())
}

/// Where the VM writes to from now on: a name of each disk that is not taken.
pub(super) fn overlays(
    disks: &[Disk],
    folder: Option<&Path>,
    mark: &str,
) -> Result<Vec<PathBuf>, Failure> {
    let mut paths = Vec::new();
    for (n, disk) in disks.iter().enumerate() {
        let name = disk.image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // One mark for each capture, in place of a longer and longer row of them.
        let name = name.split(".after-").next().unwrap_or_default();
        let beside = disk.image.parent().unwrap_or(Path::new("/"));
        if folder.is_none() && beside.starts_with("/dev") {
            let what = "the disk is a device, beside which there can be no overlay";
            return Err(Failure::at(&disk.image, what).hint("--overlays names a folder for it"));
        }
        let folder = std::path::absolute(folder.unwrap_or(beside))
            .map_err(|error| Failure::at(beside, error))?;
        paths.push(folder.join(format!("{name}.after-{mark}-{n}.qcow2")));
    }
    Ok(paths)
}

/// Whether a VM writes to overlays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Moved {
    No,
    Yes,
    /// QEMU did not say.
    Unknown,
}

/// Has the paused VM write to the overlays: all of its disks at once, or none.
pub(super) fn switch(
    qmp: &mut Qmp,
    disks: &[Disk],
    overlays: &[PathBuf],
    moved: &mut Moved,
) -> Result<(), Failure> {
    if disks.is_empty() {
        return Ok(());
    }
    let mut actions = Vec::new();
    for (disk, overlay) in disks.iter().zip(overlays) {
        let path = overlay.to_str().ok_or_else(|| Failure::at(overlay, "it is not UTF-8"))?;
        let mut data = json!({ "snapshot-file": path, "format": "qcow2" });
        if disk.device.is_empty() {
            data["node-name"] = disk.node.as_str().into();
            let name = overlay.file_stem().unwrap_or_default().to_string_lossy();
            // At most 31 characters: the end of the name has the mark.
            let name: String = name.chars().skip(name.chars().count().saturating_sub(24)).collect();
            let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
            let name: String = name.chars().map(plain).collect();
            data["snapshot-node-name"] = format!("k{name}").into();
        } else {
            data["device"] = disk.device.as_str().into();
        }
        actions.push(json!({ "type": "blockdev-snapshot-sync", "data": data }));
    }
    let done = qmp.execute("transaction", json!({ "actions": actions })).map(drop);
    *moved = match &done {
        Ok(()) => Moved::Yes,
        Err(_) if !qmp.is_lost() => Moved::No,
        // QEMU replies in order, so that the transaction is done by then.
        Err(_) => qmp
            .execute("query-block", json!({}))
            .map_or(Moved::Unknown, |answer| writes_to(&answer, overlays)),
    };
    done
}

/// Whether an answer to `query-block` has these overlays.
fn writes_to(answer: &Value, overlays: &[PathBuf]) -> Moved {
    let blocks = answer.as_array().into_iter().flatten();
    let files: Vec<_> =
        blocks.filter_map(|block| block.pointer("/inserted/image/filename")?.as_str()).collect();
    match overlays.iter().any(|overlay| files.iter().any(|file| overlay == Path::new(file))) {
        true => Moved::Yes,
        false => Moved::No,
    }
}

/// Makes an overlay for a clone.
pub(super) fn make(overlay: &Path, disk: &Disk) -> Result<(), Failure> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", &disk.format, "-b"]);
    command.arg(&disk.image).arg(overlay).stdin(Stdio::null());
    let output = child::output(&mut command).map_err(|error| {
        Failure::new(format_args!("cannot start qemu-img: {error}"))
            .hint("install qemu-utils (Debian) for VMs with disks")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::at(&disk.image, format_args!("no overlay can be made: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_are_written_are_found() {
        let inserted = json!({"ro": false, "drv": "qcow2", "node-name": "#block7",
            "image": {"filename": "top", "backing-image": {"filename": "/base"}}});
        let answer = json!([
            {"device": "cd"},
            {"device": "rom", "inserted": {"ro": true}},
            {"device": "d0", "inserted": inserted},
        ]);
        let mut disks = of(&answer).unwrap();
        let [disk] = disks.as_slice() else { panic!("{disks:?}") };
        assert_eq!((disk.device.as_str(), disk.format.as_str()), ("d0", "qcow2"));
        assert_eq!(disk.chain, [PathBuf::from("top"), PathBuf::from("/base")]);
        assert!(locate(&mut disks, Path::new("/nowhere")).is_err());
        let inserted = json!({"ro": false, "drv": "raw", "image": {"filename": "nbd://host"}});
        let error = of(&json!([{"device": "n", "inserted": inserted}])).unwrap_err().to_string();
        assert!(error.contains("disk n is not an image file"), "{error}");
    }

    #[test]
    fn a_vm_that_was_moved_is_recognized() {
        let file = |name: &str| json!({ "inserted": { "image": { "filename": name } } });
        let answer = json!([{ "device": "cd" }, file("/d/a"), file("/d/b.after")]);
        let writes_to = |overlay: &str| writes_to(&answer, &[PathBuf::from(overlay)]);
        assert_eq!(writes_to("/d/b.after"), Moved::Yes);
        assert_eq!(writes_to("/d/b"), Moved::No);
    }

    #[test]
    fn overlays_have_names_of_their_own() {
        let disk = |image: &str| Disk {
            device: "d".into(),
            node: String::new(),
            image: image.into(),
            format: "raw".into(),
            chain: vec![image.into()],
        };
        let disks = [disk("/a/root.img"), disk("/b/root.after-12-0.qcow2")];
        let paths = overlays(&disks, None, "34").unwrap();
        let expected = ["/a/root.after-34-0.qcow2", "/b/root.after-34-1.qcow2"];
        assert_eq!(paths, expected.map(PathBuf::from));
        let error = overlays(&[disk("/dev/vg/x")], None, "1").unwrap_err().to_string();
        assert!(error.contains("hint: --overlays"), "{error}");
        let paths = overlays(&[disk("/dev/vg/x")], Some(Path::new("/o")), "1").unwrap();
        assert_eq!(paths, [PathBuf::from("/o/x.after-1-0.qcow2")]);
    }
}
