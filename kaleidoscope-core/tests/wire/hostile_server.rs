//! A page server that follows a test's script. It encodes the protocol's bytes from the
//! specification alone.

use crate::image::{DIGEST, page};
use kaleidoscope_core::wire::client::Connector;
use kaleidoscope_core::wire::transport::{Link, Receiver, Sender};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use twox_hash::XxHash3_64;

/// The behavior of a server on one connection. Returning closes the connection.
pub(crate) type Script = Arc<dyn Fn(&mut Wire) -> Option<()> + Send + Sync>;

/// Scripted servers inside this process, with a socket pair per connection.
#[derive(Clone)]
pub(crate) struct Scripted(pub Vec<Script>);

impl Scripted {
    pub(crate) fn one(script: impl Fn(&mut Wire) -> Option<()> + Send + Sync + 'static) -> Self {
        Self(vec![Arc::new(script)])
    }

    /// Adds a server.
    pub(crate) fn and(
        mut self,
        script: impl Fn(&mut Wire) -> Option<()> + Send + Sync + 'static,
    ) -> Self {
        self.0.push(Arc::new(script));
        self
    }

    /// Adds an honest server.
    pub(crate) fn and_honest(self) -> Self {
        self.and(|wire| {
            wire.welcome(&Welcome::default())?;
            wire.serve()
        })
    }
}

impl Connector for Scripted {
    fn replicas(&self) -> usize {
        self.0.len()
    }

    fn dial(&self, replica: usize) -> io::Result<Link> {
        let (ours, theirs) = Link::pair()?;
        let script = self.0[replica].clone();
        let Link { sender, receiver, .. } = theirs;
        thread::spawn(move || script(&mut Wire { sender, receiver }));
        Ok(ours)
    }

    fn name(&self, replica: usize) -> String {
        format!("script {replica}")
    }
}

/// The fields of a welcome.
pub(crate) struct Welcome {
    pub magic: [u8; 8],
    pub version: u32,
    pub status: u32,
    pub features: u32,
    pub frames: u32,
    pub image: [u8; 32],
    pub pending: u32,
    pub batch: u32,
    pub descriptor: u32,
    pub text: u32,
}

impl Default for Welcome {
    fn default() -> Self {
        Self {
            magic: *b"KSWIRE\r\n",
            version: 1,
            status: 0,
            features: 1,
            frames: 100,
            image: DIGEST,
            pending: 1000,
            batch: 64,
            descriptor: 0,
            text: 0,
        }
    }
}

impl Welcome {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        for word in [self.version, self.status, self.features, self.frames] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.image);
        for word in [self.pending, self.batch, self.descriptor, self.text] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }
}

/// A page in a reply.
#[derive(Clone)]
pub(crate) struct Item {
    pub frame: u32,
    pub codec: u8,
    pub reserved: u8,
    /// If set, replaces the payload's length.
    pub stored: Option<u16>,
    pub checksum: u64,
    pub payload: Vec<u8>,
}

/// The correct item for a frame.
pub(crate) fn honest(frame: u32) -> Item {
    let bytes = page(frame);
    let checksum = XxHash3_64::oneshot_with_seed(frame.into(), &bytes);
    let is_zero = bytes.iter().all(|byte| *byte == 0);
    let payload = if is_zero { Vec::new() } else { bytes.to_vec() };
    Item { frame, codec: u8::from(is_zero), reserved: 0, stored: None, checksum, payload }
}

/// Encodes a reply with pages.
pub(crate) fn pages(items: &[Item]) -> Vec<u8> {
    let payloads: usize = items.iter().map(|item| item.payload.len()).sum();
    let mut bytes = vec![1, 0];
    bytes.extend((items.len() as u16).to_le_bytes());
    bytes.extend((payloads as u32 + items.len() as u32 * 16).to_le_bytes());
    for item in items {
        bytes.extend(item.frame.to_le_bytes());
        bytes.extend([item.codec, item.reserved]);
        bytes.extend(item.stored.unwrap_or(item.payload.len() as u16).to_le_bytes());
        bytes.extend(item.checksum.to_le_bytes());
    }
    items.iter().for_each(|item| bytes.extend(&item.payload));
    bytes
}

/// A server's end of a connection. All methods return `None` once the client is gone.
pub(crate) struct Wire {
    pub sender: Sender,
    pub receiver: Receiver,
}

impl Wire {
    pub(crate) fn read(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut have = 0;
        while have < count {
            match self.receiver.receive(&mut bytes[have..], Duration::from_secs(20)).ok()?? {
                0 => return None,
                more => have += more,
            }
        }
        Some(bytes)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Option<()> {
        self.sender.send(&mut [IoSlice::new(bytes)]).ok()
    }

    /// Reads the hello and replies with a welcome.
    pub(crate) fn welcome(&mut self, welcome: &Welcome) -> Option<()> {
        self.read(72)?;
        self.write(&welcome.bytes())
    }

    /// The frames of the next request, and whether it is urgent.
    pub(crate) fn request(&mut self) -> Option<(bool, Vec<u32>)> {
        let head = self.read(8)?;
        assert_eq!(head[0], 1, "a request for pages");
        let runs = u16::from_le_bytes([head[2], head[3]]);
        let body = self.read(usize::from(runs) * 8)?;
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        let runs = body.chunks(8).map(|run| (word(&run[..4]), word(&run[4..])));
        Some((head[1] == 1, runs.flat_map(|(first, frames)| first..first + frames).collect()))
    }

    /// Answers requests honestly until the client is gone.
    pub(crate) fn serve(&mut self) -> Option<()> {
        loop {
            let (_, frames) = self.request()?;
            for batch in frames.chunks(64) {
                let items: Vec<_> = batch.iter().map(|frame| honest(*frame)).collect();
                self.write(&pages(&items))?;
            }
        }
    }

    /// Waits until the client is gone.
    pub(crate) fn linger(&mut self) -> Option<()> {
        loop {
            self.read(1)?;
        }
    }
}
