//! What has to be known of a VM before it is captured.

use super::disks::{self, Moved};
use crate::failure::Failure;
use crate::lab::layout::Layout;
use crate::qemu::folder::Machine;
use crate::qemu::options::Options;
use crate::qemu::qmp::Qmp;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long QEMU may take to greet.
const CONNECT: Duration = Duration::from_secs(5);

/// What a VM needs for its memory to be captured.
const SHARED: &str = "start QEMU with its RAM in a shared backend: -object \
     memory-backend-memfd,id=ram,size=1G,share=on -machine memory-backend=ram";

/// A running VM.
pub(super) struct Parent {
    pub(super) qmp: Qmp,
    pub(super) pid: i32,
    pub(super) machine: Machine,
    pub(super) layout: Layout,
    /// Where the RAM is, if it has a name.
    pub(super) memory_file: Option<PathBuf>,
    /// Whether the RAM begins within its file.
    pub(super) is_offset: bool,
    /// Whether its disks were moved to overlays.
    pub(super) moved: Moved,
    /// Whether it ran when it was found.
    pub(super) is_running: bool,
    /// Its capabilities for migrations, as they were found.
    pub(super) capabilities: Vec<(String, bool)>,
    /// Its limit of migrations, in bytes a second.
    pub(super) bandwidth: u64,
}

impl Parent {
    /// Connects to a VM, and refuses it if it cannot be cloned.
    pub(super) fn find(socket: &Path, pid: Option<i32>) -> Result<Self, Failure> {
        let mut qmp = Qmp::connect(socket, CONNECT)?;
        let pid = match pid {
            Some(pid) => pid,
            None => qmp.peer()?,
        };
        let of = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
        let link = |name: &str| {
            fs::read_link(of(name)).map_err(|error| {
                Failure::at(&of(name), error).hint("--pid names the process of QEMU")
            })
        };
        let mut machine = Machine::new(qmp.version()?, link("exe")?, link("cwd")?);
        machine.arguments = arguments(&of("cmdline"))?;
        let status = qmp.execute("query-status", json!({}))?;
        let is_running = match status.get("status").and_then(Value::as_str) {
            Some("running") => true,
            Some("paused") => false,
            status => {
                let status = status.unwrap_or("unknown");
                let what = format!("the VM is in the state `{status}`, not running or paused");
                return Err(Failure::at(socket, what));
            }
        };
        let (memory_file, is_offset) = memory(&mut qmp, &mut machine)?;
        if !machine.arguments.iter().any(|word| has_id(word, &machine.backend)) {
            let what = format!("the process has no memory backend {}", machine.backend);
            return Err(Failure::at(&of("cmdline"), what)
                .hint("--pid names the process of QEMU at this socket"));
        }
        let blocks = qmp.human("info ramblock")?;
        machine.ram_block = ram_block(&blocks, &machine.backend)
            .ok_or_else(|| Failure::at(socket, "`info ramblock` does not list the RAM"))?;
        let views = qmp.human("info mtree -f")?;
        let layout = Layout::from_mtree(&views, &machine.backend, machine.ram_bytes)
            .map_err(|error| Failure::at(socket, error))?;
        // Pages are found by their number in the layout.
        let mut end = 0;
        for region in &layout.regions {
            if region.file_offset != end {
                return Err(Failure::at(socket, "the VM's RAM is not in order of addresses"));
            }
            end = region.file_offset.saturating_add(region.size);
        }
        machine.disks = disks::of(&qmp.execute("query-block", json!({}))?)?;
        let capabilities = capabilities(&qmp.execute("query-migrate-capabilities", json!({}))?);
        let parameters = qmp.execute("query-migrate-parameters", json!({}))?;
        let bandwidth = parameters.get("max-bandwidth").and_then(Value::as_u64).unwrap_or(0);
        Ok(Self {
            qmp,
            pid,
            machine,
            layout,
            memory_file,
            is_offset,
            moved: Moved::No,
            is_running,
            capabilities,
            bandwidth,
        })
    }
}

/// The arguments of a process, without its name.
fn arguments(path: &Path) -> Result<Vec<String>, Failure> {
    let bytes = fs::read(path).map_err(|error| Failure::at(path, error))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::at(path, "the command line has words that are not UTF-8"))?;
    let mut words: Vec<_> = text.split('\0').map(str::to_owned).collect();
    // The last word is ended, too.
    words.pop();
    if words.len() < 2 {
        return Err(Failure::at(path, "the process has no arguments")
            .hint("--pid names the process of QEMU"));
    }
    Ok(words.split_off(1))
}

/// Whether an argument names an object with this name.
fn has_id(word: &str, id: &str) -> bool {
    match serde_json::from_str::<Value>(word) {
        Ok(Value::Object(map)) => map.get("id").and_then(Value::as_str) == Some(id),
        _ => Options::parse(word).get("id") == Some(id),
    }
}

/// Finds the RAM's memory backend: its file if that has a name, and whether the RAM begins within
/// its file.
fn memory(qmp: &mut Qmp, machine: &mut Machine) -> Result<(Option<PathBuf>, bool), Failure> {
    let refused = |qmp: &Qmp, what: &str| Err(Failure::at(qmp.path(), what).hint(SHARED));
    let property = |name: &str| json!({ "path": "/machine", "property": name });
    let path = qmp.execute("qom-get", property("memory-backend"))?;
    let Some(path) = path.as_str().filter(|path| !path.is_empty()).map(str::to_owned) else {
        return refused(qmp, "the VM's RAM is in no memory backend");
    };
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let backends = qmp.execute("query-memdev", json!({}))?;
    let backends = backends.as_array().cloned().unwrap_or_default();
    let [backend] = backends.as_slice() else {
        return refused(qmp, "the VM has several memory backends, or none");
    };
    let is_shared = backend.get("share").and_then(Value::as_bool) == Some(true);
    if !is_shared || backend.get("id").and_then(Value::as_str) != Some(&name) {
        return refused(qmp, "the VM's RAM is in a memory backend that is not shared");
    }
    let bytes = backend.get("size").and_then(Value::as_u64).unwrap_or(0);
    if bytes == 0 || bytes % 4096 != 0 {
        return refused(qmp, "the VM's memory backend has no size");
    }
    machine.backend = name;
    machine.ram_bytes = bytes;
    // Only files have this property.
    let file = qmp.execute("qom-get", json!({ "path": path, "property": "mem-path" }));
    let file = file.ok().and_then(|file| file.as_str().map(PathBuf::from));
    let file = file.map(|file| machine.folder.join(file)).filter(|file| file.is_file());
    // QEMU 7.2 has none.
    let offset = qmp.execute("qom-get", json!({ "path": path, "property": "offset" }));
    Ok((file, offset.is_ok_and(|offset| offset.as_u64() != Some(0))))
}

/// The RAM's name in migration streams: that of its backend, or its path in older machines.
fn ram_block(text: &str, backend: &str) -> Option<String> {
    let names = [backend.to_owned(), format!("/objects/{backend}")];
    let mut found = text.lines().filter_map(|line| line.split_whitespace().next());
    found.find(|name| names.iter().any(|expected| expected == name)).map(str::to_owned)
}

fn capabilities(answer: &Value) -> Vec<(String, bool)> {
    let all = answer.as_array().into_iter().flatten();
    all.filter_map(|one| {
        let name = one.get("capability")?.as_str()?;
        Some((name.to_owned(), one.get("state")?.as_bool()?))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let blocks = " Block Name PSize\n  /objects/ram 4 KiB 0x0\n pc.bios 4 KiB\n";
        assert_eq!(ram_block(blocks, "ram").as_deref(), Some("/objects/ram"));
        assert_eq!(ram_block("ram 4 KiB\n", "ram").as_deref(), Some("ram"));
        assert_eq!(ram_block("vga 4 KiB\n", "ram"), None);
        let answer = json!([{"capability": "x", "state": true}, {"capability": 7}]);
        assert_eq!(capabilities(&answer), [("x".to_owned(), true)]);
        for word in ["memory-backend-memfd,size=1G,id=ram", r#"{"qom-type":"x","id":"ram"}"#] {
            assert!(has_id(word, "ram") && !has_id(word, "ra"), "{word}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cmdline");
        fs::write(&path, b"qemu\0-m\0\0x y\0").unwrap();
        assert_eq!(arguments(&path).unwrap(), ["-m", "", "x y"]);
        fs::write(&path, b"").unwrap();
        assert!(arguments(&path).is_err());
    }
}
