//! What a server says when it serves, and when it has stopped.

use super::parent::Parent;
use crate::map_output::statistics::thousands;
use crate::map_output::table::{finish, heading, printable, size, table};
use comfy_table::CellAlignment::{Left, Right};
use kaleidoscope_core::clone::{FreeFrames, ServerAddress};
use kaleidoscope_core::wire::server::ServerStatistics;
use kaleidoscope_core::wire::transport::{Peer, Refusal};
use serde::{Serialize, Serializer};
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

/// What is served, and where.
#[derive(Serialize)]
pub(super) struct Serving {
    event: &'static str,
    image: String,
    identity: String,
    frames: u32,
    colored: bool,
    free_memory: &'static str,
    descriptor_bytes: usize,
    #[serde(serialize_with = "as_texts")]
    listening: Vec<ServerAddress>,
    #[serde(skip)]
    heading: String,
    #[serde(skip)]
    trust: String,
}

impl Serving {
    /// What is served at these addresses.
    pub(super) fn new(
        image: &Path,
        parent: &Parent,
        listening: Vec<ServerAddress>,
        descriptor_bytes: usize,
    ) -> Self {
        let descriptor = &parent.descriptor;
        let layout = descriptor.layout();
        let uncolored =
            || format!("{}, {} frames, without colors\n", size(layout.bytes()), layout.frames());
        let free_frames = descriptor.free_frames();
        Self {
            event: "serving",
            image: image.display().to_string(),
            identity: descriptor.identity().to_string(),
            frames: layout.frames(),
            colored: descriptor.map().is_some(),
            free_memory: free_frames.name(),
            descriptor_bytes,
            listening,
            heading: descriptor.map().map_or_else(uncolored, heading),
            trust: parent.trust.map_or_else(String::new, |trust| {
                let may = match free_frames {
                    FreeFrames::Zero => "clones may fill them with zeros",
                    FreeFrames::Auto | FreeFrames::Fetch => "clones fetch them",
                };
                format!("free frames: {may} ({trust})\n")
            }),
        }
    }

    /// For people; `is_tls` where clients need certificates over TCP.
    pub(super) fn text(&self, is_tls: bool) -> String {
        let Self { image, heading, identity, trust, descriptor_bytes, .. } = self;
        let mut out =
            format!("serving {}: {heading}identity {identity}\n{trust}", printable(image));
        let bytes = thousands(u64::try_from(*descriptor_bytes).unwrap_or(u64::MAX));
        let _ = writeln!(out, "clones start from a descriptor of {bytes} bytes");
        for address in &self.listening {
            let _ = writeln!(out, "listening at {}", printable(&address.to_string()));
        }
        out.push_str(&pulling(&self.listening, is_tls));
        out
    }

    /// For programs: one line.
    pub(super) fn json(&self) -> String {
        line(self)
    }
}

/// How clients get at it, one line for all that takes the same words.
fn pulling(listening: &[ServerAddress], is_tls: bool) -> String {
    let needs_keys = |at: &&ServerAddress| is_tls && matches!(at, ServerAddress::Tcp(_));
    let (with, without): (Vec<_>, Vec<_>) = listening.iter().partition(needs_keys);
    let keys = " --cert client.pem --key client-key.pem --ca ca.pem";
    let mut out = String::new();
    for (addresses, keys) in [(without, ""), (with, keys)] {
        if addresses.is_empty() {
            continue;
        }
        let addresses: Vec<_> = addresses.into_iter().map(dialed).collect();
        let addresses = addresses.join(" ");
        let _ = writeln!(out, "pull with: kaleidoscope pull {addresses} -o copy.bin{keys}");
        if addresses.contains(ANY) {
            let _ = writeln!(
                out,
                "  {ANY} is a name or an address of this host{}",
                match keys {
                    "" => "",
                    _ => ", one that the certificate is for",
                }
            );
        }
    }
    out
}

/// What stands for this host where a server listens at all of its addresses.
const ANY: &str = "HOST";

/// The address as a client takes it, as a word of a shell.
fn dialed(address: &ServerAddress) -> String {
    let any = match address {
        ServerAddress::Tcp(at) => {
            at.parse().ok().filter(|at: &SocketAddr| at.ip().is_unspecified())
        }
        ServerAddress::Unix(_) => None,
    };
    match any {
        Some(at) => format!("tcp:{ANY}:{}", at.port()),
        None => quoted(&printable(&address.to_string())),
    }
}

/// The peer that the server refused, and the flag that admits it.
pub(super) fn turned_away(refusal: &Refusal) -> String {
    let hint = match refusal {
        Refusal::User(Peer::Unix { uid, .. }) => format!(" (--user {uid} lets it in)"),
        Refusal::Handshake(..) => {
            " (clients need a certificate of the authority that --ca names; `kaleidoscope keys` makes them)".to_owned()
        }
        Refusal::User(Peer::Tcp { .. }) | Refusal::Broken(..) | _ => String::new(),
    };
    format!("turned away: {refusal}{hint}")
}

fn as_texts<S: Serializer>(addresses: &[ServerAddress], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(addresses.iter().map(ToString::to_string))
}

/// As a shell takes it.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:".contains(c);
    if text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// An object on a line. Numbers and texts always serialize.
fn line(object: &impl Serialize) -> String {
    let mut text = serde_json::to_string(object).unwrap_or_default();
    text.push('\n');
    text
}

/// The counters, each with its name for programs and for people.
fn counters(statistics: &ServerStatistics) -> [(&'static str, &'static str, u64); 12] {
    let s = statistics;
    [
        ("connections", "connections", s.connections),
        ("refused", "refused", s.refused),
        ("violations", "broke the protocol", s.violations),
        ("broken", "broken by the network", s.broken),
        ("idle", "closed when idle", s.idle),
        ("frames", "pages", s.pages),
        ("urgent_frames", "  waited for", s.urgent_pages),
        ("zero_frames", "  zeros", s.zero_pages),
        ("compressed_frames", "  compressed", s.compressed_pages),
        ("unavailable_frames", "  not in the image", s.unavailable_pages),
        ("bytes", "bytes of pages", s.bytes),
        ("descriptor_bytes", "bytes of descriptors", s.descriptor_bytes),
    ]
}

/// What a server has done, for people.
pub(super) fn text(statistics: &ServerStatistics) -> String {
    let mut table = table([("served", Left), ("", Right)]);
    for (_, name, count) in counters(statistics) {
        table.add_row(vec![name.to_owned(), thousands(count)]);
    }
    finish(&table)
}

/// What a server has done, for programs: one line.
pub(super) fn json(statistics: &ServerStatistics) -> String {
    let mut object = serde_json::Map::new();
    object.insert("event".to_owned(), "stopped".into());
    for (name, _, count) in counters(statistics) {
        object.insert(name.to_owned(), count.into());
    }
    line(&object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_can_be_pasted() {
        assert_eq!(quoted("unix:/run/a-b_c.sock"), "unix:/run/a-b_c.sock");
        assert_eq!(quoted("tcp:[::1]:7411"), "'tcp:[::1]:7411'");
        assert_eq!(quoted("unix:/a b'c"), r"'unix:/a b'\''c'");
    }

    #[test]
    fn a_pull_line_can_be_pasted_on_another_host() {
        let at = |text: &str| text.parse::<ServerAddress>().unwrap();
        let here = [at("unix:/run/a"), at("tcp:127.0.0.1:1")];
        let line = pulling(&here, false);
        assert_eq!(line, "pull with: kaleidoscope pull unix:/run/a tcp:127.0.0.1:1 -o copy.bin\n");
        for any in ["tcp:0.0.0.0:7411", "tcp:[::]:7411"] {
            let lines = pulling(&[at("unix:/run/a"), at(any)], true);
            assert!(lines.contains("pull unix:/run/a -o copy.bin\n"), "{lines}");
            let keys = "--cert client.pem --key client-key.pem --ca ca.pem";
            let there = format!("pull tcp:HOST:7411 -o copy.bin {keys}\n");
            assert!(lines.contains(&there), "{lines}");
            assert!(lines.ends_with("one that the certificate is for\n"), "{lines}");
            assert!(!lines.contains("0.0.0.0") && !lines.contains("::"), "{lines}");
        }
    }

    #[test]
    fn who_is_turned_away_can_be_let_in() {
        let peer = Peer::Unix { uid: 1234, gid: 1, pid: 7 };
        let text = turned_away(&Refusal::User(peer));
        assert!(text.contains("--user 1234"), "{text}");
    }

    #[test]
    fn counters_are_told() {
        let mut statistics = ServerStatistics::default();
        (statistics.pages, statistics.zero_pages) = (12_345, 67);
        let text = text(&statistics);
        assert!(text.contains("12,345") && text.contains("67"), "{text}");
        let object: serde_json::Value = serde_json::from_str(&json(&statistics)).unwrap();
        assert_eq!((&object["event"], &object["frames"]), (&"stopped".into(), &12_345.into()));
    }
}
