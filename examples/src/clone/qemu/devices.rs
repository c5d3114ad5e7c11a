//! Devices, networks and objects of a clone, in place of its parent's.

use super::arguments::{Own, refused, text};
use crate::failure::Failure;
use crate::qemu::folder::Captured;
use crate::qemu::options::Options;
use serde_json::{Map, Value};

/// Devices whose state, or whose access to the memory, is outside of QEMU.
const OUTSIDE: [&str; 4] = ["vfio", "vhost-user", "ivshmem", "x-remote"];

/// Networks that are the same for each VM, once these are replaced.
const NETWORKS: [&str; 6] = ["user", "tap", "bridge", "hubport", "nic", "none"];

/// An object that is taken apart: QEMU takes lists and JSON.
enum Form {
    List(Options),
    Json(Map<String, Value>),
}

impl Form {
    fn parse(text: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Self::Json(map),
            _ => Self::List(Options::parse(text)),
        }
    }

    /// The first word of a list, or the value of `key`.
    fn kind(&self, key: &str) -> &str {
        match self {
            Self::List(options) => options.first().or(options.get(key)).unwrap_or_default(),
            Self::Json(map) => map.get(key).and_then(Value::as_str).unwrap_or_default(),
        }
    }

    fn has(&self, key: &str) -> bool {
        match self {
            Self::List(options) => options.get(key).is_some(),
            Self::Json(map) => map.contains_key(key),
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        match self {
            Self::List(options) => options.set(key, value),
            Self::Json(map) => drop(map.insert(key.to_owned(), value.into())),
        }
    }

    fn text(self) -> String {
        match self {
            Self::List(options) => options.to_string(),
            Self::Json(map) => Value::Object(map).to_string(),
        }
    }
}

/// The value of `-object`: the memory backend becomes a private mapping of the image.
pub(super) fn object(value: &str, captured: &Captured, own: &Own) -> Result<String, Failure> {
    let object = Form::parse(value);
    let machine = &captured.machine;
    let id = match &object {
        Form::List(options) => options.get("id").map(str::to_owned),
        Form::Json(map) => map.get("id").and_then(Value::as_str).map(str::to_owned),
    };
    let is_memory = object.kind("qom-type").starts_with("memory-backend");
    if !is_memory || id.as_deref() != Some(&machine.backend) {
        return Ok(value.to_owned());
    }
    let mut backend = Options::parse("memory-backend-file");
    backend.set("id", &machine.backend);
    backend.set("size", &machine.ram_bytes.to_string());
    backend.set("mem-path", text(&own.image)?);
    backend.set("share", "off");
    // Decides the name of the RAM in the state.
    if let Form::List(options) = &object
        && let Some(name) = options.get("x-use-canonical-path-for-ramblock-id")
    {
        backend.set("x-use-canonical-path-for-ramblock-id", name);
    }
    Ok(backend.to_string())
}

/// The value of `-device`.
pub(super) fn device(value: &str, macs: &mut u32, generation: &str) -> Result<String, Failure> {
    let mut device = Form::parse(value);
    let kind = device.kind("driver").to_owned();
    if OUTSIDE.iter().any(|outside| kind.starts_with(outside)) {
        let why = "the device is another process's, or the host's";
        return Err(refused(&format!("-device {value}"), why));
    }
    let is_generation = kind == "vmgenid";
    if !device.has("mac") && !is_generation {
        return Ok(value.to_owned());
    }
    if device.has("mac") {
        device.set("mac", &mac(macs));
    }
    if is_generation {
        device.set("guid", generation);
    }
    Ok(device.text())
}

/// The value of `-netdev`, `-nic` or `-net`.
pub(super) fn net(option: &str, value: &str, macs: &mut u32) -> Result<String, Failure> {
    let word = format!("-{option} {value}");
    if value.starts_with('{') {
        return Err(refused(&word, "networks in JSON are not understood"));
    }
    let mut options = Options::parse(value);
    let kind = options.first().or(options.get("type")).unwrap_or_default();
    if !NETWORKS.contains(&kind) {
        return Err(refused(&word, "the network is a socket, or another process's"));
    }
    if ["fd", "fds", "vhostfd", "vhostfds"].iter().any(|key| options.get(key).is_some()) {
        return Err(refused(&word, "it has a descriptor from another process"));
    }
    // The system finds a name for each.
    options.remove(&["ifname"]);
    for rule in options.values_mut("hostfwd") {
        // PROTOCOL:[ADDRESS]:PORT-[ADDRESS]:PORT; port 0 is any free one.
        if let Some((host, guest)) = rule.split_once('-')
            && let Some((address, _)) = host.rsplit_once(':')
        {
            *rule = format!("{address}:0-{guest}");
        }
    }
    for key in ["mac", "macaddr"] {
        if options.get(key).is_some() {
            options.set(key, &mac(macs));
        }
    }
    Ok(options.to_string())
}

/// The next MAC address, of those that QEMU's guests have.
fn mac(next: &mut u32) -> String {
    let [_, a, b, c] = next.to_be_bytes();
    *next = next.wrapping_add(1);
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}
