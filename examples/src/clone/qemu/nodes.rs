//! The block nodes that a command line names, and which of them belong to a disk that is replaced.

use crate::qemu::folder::Disk;
use crate::qemu::options::Options;
use serde_json::{Map, Value};
use std::path::Path;

/// Most nodes below each other.
const DEEPEST: usize = 64;

/// A node of `-blockdev`, or of `-drive`, which has no name.
#[derive(Default, Debug)]
pub(super) struct Node {
    name: String,
    /// The name of the device that a drive makes.
    device: Option<String>,
    /// Its own image.
    image: Option<String>,
    /// The name of the node with its image.
    file: Option<String>,
    /// The names of all nodes below it.
    below: Vec<String>,
    /// Whether the guest cannot write to it.
    is_read_only: bool,
}

/// What a clone has in place of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Replacement {
    /// The overlay of the disk with this number.
    Overlay(usize),
    /// Nothing: the overlay names what is below it.
    Nothing,
    /// The node as it is.
    Same,
}

impl Node {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn blockdev(value: &str) -> Self {
        match serde_json::from_str(value) {
            Ok(Value::Object(map)) => Self::of_json(&map),
            _ => Self::of_list(&Options::parse(value)),
        }
    }

    pub(super) fn drive(options: &Options) -> Self {
        let image = options.get("file").or(options.get("file.filename")).map(str::to_owned);
        let below = options.get("backing").map(str::to_owned).into_iter().collect();
        let is_read_only = is_on(options, "readonly")
            || is_on(options, "read-only")
            || options.get("media") == Some("cdrom");
        let device = options.get("id").map(str::to_owned);
        Self { device, image, below, is_read_only, ..Self::default() }
    }

    fn of_json(map: &Map<String, Value>) -> Self {
        let text = |key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
        let within = map.get("file").and_then(|file| file.get("filename")).and_then(Value::as_str);
        let is_read_only = map
            .get("read-only")
            .is_some_and(|value| value.as_bool() == Some(true) || value.as_str() == Some("on"));
        Self {
            name: text("node-name").unwrap_or_default(),
            device: None,
            image: text("filename").or(within.map(str::to_owned)).or(text("file.filename")),
            file: text("file"),
            below: map
                .iter()
                .filter(|(key, _)| is_child(key))
                .filter_map(|(_, value)| value.as_str().map(str::to_owned))
                .collect(),
            is_read_only,
        }
    }

    fn of_list(options: &Options) -> Self {
        let text = |key: &str| options.get(key).map(str::to_owned);
        Self {
            name: text("node-name").unwrap_or_default(),
            device: None,
            image: text("filename").or(text("file.filename")),
            file: text("file"),
            below: options.keys().filter(|key| is_child(key)).filter_map(text).collect(),
            is_read_only: is_on(options, "read-only"),
        }
    }
}

/// Whether the value of this key is the name of a node below.
fn is_child(key: &str) -> bool {
    ["file", "backing", "data-file"].contains(&key)
}

/// Whether a key has the value `on`, or none, which is the same.
fn is_on(options: &Options, key: &str) -> bool {
    options.keys().any(|found| found == key) && matches!(options.get(key), None | Some("on"))
}

/// All nodes of a command line.
#[derive(Default)]
pub(super) struct Nodes(Vec<Node>);

impl Nodes {
    /// The nodes of these arguments.
    pub(super) fn of(words: &[String]) -> Self {
        let pairs = words.iter().zip(words.iter().skip(1));
        let nodes = pairs.filter_map(|(word, value)| match word.trim_start_matches('-') {
            "blockdev" => Some(Node::blockdev(value)),
            "drive" => Some(Node::drive(&Options::parse(value))),
            _ => None,
        });
        Self(nodes.collect())
    }

    fn named(&self, name: &str) -> Option<&Node> {
        self.0.iter().find(|node| node.name == name)
    }

    /// The nodes that have `node` below them.
    fn above<'s>(&'s self, node: &'s Node) -> impl Iterator<Item = &'s Node> {
        let is_named = !node.name.is_empty();
        self.0.iter().filter(move |other| is_named && other.below.contains(&node.name))
    }

    /// The image at the end of a node's files.
    fn image<'s>(&'s self, node: &'s Node) -> Option<&'s str> {
        let mut node = node;
        for _ in 0..DEEPEST {
            if let Some(image) = &node.image {
                return Some(image);
            }
            node = self.named(node.file.as_deref()?)?;
        }
        None
    }

    /// What a clone has in place of a node.
    pub(super) fn replacement(&self, node: &Node, disks: &[Disk], folder: &Path) -> Replacement {
        self.replacement_within(node, disks, folder, DEEPEST)
    }

    fn replacement_within(
        &self,
        node: &Node,
        disks: &[Disk],
        folder: &Path,
        depth: usize,
    ) -> Replacement {
        let mut above = self.above(node).peekable();
        if above.peek().is_some() {
            // Nodes that refer to each other in a circle are QEMU's to refuse.
            let is_left_out = |other: &Node| {
                let below = depth.checked_sub(1);
                below.is_some_and(|depth| {
                    self.replacement_within(other, disks, folder, depth) != Replacement::Same
                })
            };
            return if above.all(is_left_out) { Replacement::Nothing } else { Replacement::Same };
        }
        if node.is_read_only {
            return Replacement::Same;
        }
        let has_name = |disk: &Disk| {
            let is_device = node.device.as_ref().is_some_and(|name| *name == disk.device);
            is_device || (!node.name.is_empty() && node.name == disk.node)
        };
        if let Some(found) = disks.iter().position(has_name) {
            return Replacement::Overlay(found);
        }
        let Some(image) = self.image(node).map(|image| folder.join(image)) else {
            return Replacement::Same;
        };
        // After an earlier capture, the image that the command line names is below others.
        let depths = disks.iter().enumerate().filter_map(|(number, disk)| {
            let depth = disk.chain.iter().position(|file| folder.join(file) == image)?;
            Some((depth, number))
        });
        depths.min().map_or(Replacement::Same, |(_, number)| Replacement::Overlay(number))
    }
}
