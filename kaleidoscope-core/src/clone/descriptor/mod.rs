//! The descriptor: everything that a clone starts from, in a small file (`.kclone`).
//!
//! A descriptor identifies the snapshot image and lists the servers of its pages; it contains no
//! pages. The file is the codec's container around one CBOR map; `docs/formats.md` describes every
//! byte. Files are treated as hostile, as manifests are.

mod decode;
#[cfg(test)]
mod doc_example;
mod encode;
mod error;
mod limits;
#[cfg(test)]
mod tests;

pub use error::DescriptorError;
pub use limits::{DescriptorLimits, MAX_SERVERS, MAX_STATE};

use super::{CloneId, FreeFrames, ServerAddress};
use crate::codec::container::{self, Family};
use crate::codec::{ManifestError, to_u64, within};
use crate::color::{ColorMap, Frame, KernelIdentity};
use crate::fingerprint::Fingerprints;
use crate::identity::ImageIdentity;
use crate::manifest::Manifest;
use crate::memory::{Backing, Extent, GuestMemory, MemoryLayout, extents};
use crate::prefetch::LocalityOrder;
use limits::{MAX_ADDRESS, MAX_HOLES};
use std::fmt;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The file family of descriptors.
const FAMILY: Family = Family { name: "clone descriptor", magic: *b"KCLONE\r\n", version: 1 };

/// The data that a clone starts from. Clones of one parent share everything but their id, so
/// copying a descriptor copies only the id.
#[derive(Clone, PartialEq)]
pub struct Descriptor {
    id: CloneId,
    template: Arc<Template>,
}

/// The part that clones of one parent share.
#[derive(Clone, Debug)]
struct Template {
    frozen_at: Option<SystemTime>,
    state: Vec<u8>,
    layout: MemoryLayout,
    is_colored: bool,
    /// The sorted color map. For an uncolored guest, a map without colors, built on first use.
    locality: OnceLock<Arc<LocalityOrder>>,
    notes: Vec<String>,
    identity: ImageIdentity,
    servers: Vec<ServerAddress>,
    free_frames: FreeFrames,
    fingerprints: Option<Arc<Fingerprints>>,
    /// Frames that the image stores nothing for: ascending ranges that do not touch.
    holes: Vec<Range<u32>>,
}

impl Descriptor {
    /// A new clone of the snapshot `image`, colored or not, without device state and page servers.
    /// Its free frames may be filled with zeros if the map
    /// [says so of this image](ColorMap::trusts_free_frames_of).
    ///
    /// # Errors
    /// [`DescriptorError::Identity`] if the image cannot be read, or the map belongs to another
    /// one; [`DescriptorError::File`] if the system provides no random numbers.
    pub fn of(image: &dyn GuestMemory, map: Option<ColorMap>) -> Result<Self, DescriptorError> {
        let layout = image.layout();
        let (map, is_colored) = match map {
            Some(map) => (map, true),
            None => (without_colors(layout)?, false),
        };
        let identity = ImageIdentity::of(image, &map)?;
        let template = Template::new(layout.clone(), identity);
        let is_trusted = image.snapshot_id().is_some_and(|id| map.trusts_free_frames_of(id));
        let free_frames = if is_trusted { FreeFrames::Zero } else { FreeFrames::Fetch };
        let locality = Arc::new(LocalityOrder::new(map)).into();
        Self::new(Template { is_colored, locality, free_frames, ..template })
    }

    /// A new clone of the guest that a manifest describes. Its free frames may be filled with zeros
    /// if the map [says so](ColorMap::has_trusted_free_frames), which it does not if the manifest
    /// was read and not [verified](Manifest::verify).
    ///
    /// # Errors
    /// [`DescriptorError::File`] if the system provides no random numbers.
    pub fn of_manifest(manifest: Manifest) -> Result<Self, DescriptorError> {
        let template = Template::new(manifest.map.layout().clone(), manifest.identity);
        let free_frames = FreeFrames::Auto.allowed_by(&manifest.map);
        let locality = Arc::new(LocalityOrder::new(manifest.map)).into();
        let fingerprints = manifest.fingerprints.map(Arc::new);
        let notes = manifest.notes;
        let parts = Template { is_colored: true, locality, notes, fingerprints, ..template };
        Self::new(Template { free_frames, ..parts })
    }

    fn new(template: Template) -> Result<Self, DescriptorError> {
        let id = CloneId::random().map_err(ManifestError::from)?;
        Ok(Self { id, template: Arc::new(template) })
    }

    /// The same descriptor for another clone, in constant time.
    #[must_use]
    pub fn for_clone(&self, id: CloneId) -> Self {
        Self { id, template: Arc::clone(&self.template) }
    }

    /// Sets the instant of the freeze, with microsecond resolution. Instants before 1970 or after
    /// 500,000 years are left out.
    #[must_use]
    pub fn snapshot(mut self, at: SystemTime) -> Self {
        let since = at.duration_since(UNIX_EPOCH).ok();
        let micros = since.and_then(|since| u64::try_from(since.as_micros()).ok());
        self.change().frozen_at = micros.and_then(instant);
        self
    }

    /// Sets the state of vCPUs and devices, in the VMM's own format.
    ///
    /// # Errors
    /// [`DescriptorError::File`] with [`ManifestError::Limit`] for more than [`MAX_STATE`] bytes.
    pub fn with_state(mut self, state: Vec<u8>) -> Result<Self, DescriptorError> {
        within("bytes of device state", to_u64(state.len()), to_u64(MAX_STATE))?;
        self.change().state = state;
        Ok(self)
    }

    /// Sets the page servers, in order of preference. Each of them has all pages.
    ///
    /// # Errors
    /// [`DescriptorError::File`] with [`ManifestError::Limit`] for more than [`MAX_SERVERS`];
    /// [`DescriptorError::Address`] for an address that is not valid text, or longer than 4096
    /// bytes.
    pub fn with_servers(mut self, servers: Vec<ServerAddress>) -> Result<Self, DescriptorError> {
        within("page servers", to_u64(servers.len()), to_u64(MAX_SERVERS))?;
        for (number, address) in servers.iter().enumerate() {
            let text = address.to_string();
            if text.len() > MAX_ADDRESS || text.parse().as_ref() != Ok(address) {
                return Err(DescriptorError::Address { number, text });
            }
        }
        self.change().servers = servers;
        Ok(self)
    }

    /// Sets whether free frames may be filled with zeros; see [`FreeFrames`].
    /// [`FreeFrames::Auto`] is what the map says, and [`FreeFrames::Fetch`] for an uncolored guest.
    #[must_use]
    pub fn with_free_frames(mut self, free_frames: FreeFrames) -> Self {
        self.change().free_frames = match (free_frames, self.map()) {
            (FreeFrames::Auto, map) => {
                map.map_or(FreeFrames::Fetch, |map| free_frames.allowed_by(map))
            }
            (FreeFrames::Zero | FreeFrames::Fetch, _) => free_frames,
        };
        self
    }

    /// Sets fingerprints of frames of the snapshot image, by which a host finds pages that it
    /// already has.
    ///
    /// # Errors
    /// [`DescriptorError::File`] with [`ManifestError::Limit`] if they belong to a guest with
    /// another number of frames.
    pub fn with_fingerprints(mut self, table: Fingerprints) -> Result<Self, DescriptorError> {
        let frames = self.layout().frames();
        if table.frames() != frames {
            let (found, limit) = (u64::from(table.frames()), u64::from(frames));
            let what = "frames in the fingerprints of another guest";
            return Err(ManifestError::Limit { what, found, limit }.into());
        }
        self.change().fingerprints = Some(Arc::new(table));
        Ok(self)
    }

    /// Sets the holes of the snapshot image, whose frames are all zeros and need no transfer. Of
    /// an image with more than 65,536 holes, the longest are kept.
    #[must_use]
    pub fn with_holes_of(mut self, image: &dyn GuestMemory) -> Self {
        let image_extents = extents(image, 0..self.layout().frames());
        let mut holes: Vec<Range<u32>> = Vec::new();
        for Extent { frames, .. } in image_extents.filter(|e| e.backing == Backing::Hole) {
            match holes.last_mut().filter(|last| last.end == frames.start) {
                Some(last) => last.end = frames.end,
                None => holes.push(frames),
            }
        }
        if holes.len() > MAX_HOLES {
            holes.sort_by_key(|hole| std::cmp::Reverse(hole.end - hole.start));
            holes.truncate(MAX_HOLES);
            holes.sort_by_key(|hole| hole.start);
        }
        self.change().holes = holes;
        self
    }

    fn change(&mut self) -> &mut Template {
        Arc::make_mut(&mut self.template)
    }

    /// The clone's id.
    #[must_use]
    pub fn id(&self) -> CloneId {
        self.id
    }

    /// When the parent was frozen, if known.
    #[must_use]
    pub fn frozen_at(&self) -> Option<SystemTime> {
        self.template.frozen_at
    }

    /// The state of vCPUs and devices, in the VMM's own format; may be empty.
    #[must_use]
    pub fn state(&self) -> &[u8] {
        &self.template.state
    }

    /// The guest's RAM.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.template.layout
    }

    /// The color map; `None` if the guest was not colored.
    #[must_use]
    pub fn map(&self) -> Option<&ColorMap> {
        self.template
            .locality
            .get()
            .filter(|_| self.template.is_colored)
            .map(|locality| locality.map())
    }

    /// The color map in locality order, shared by all clones. All frames are unknown if the guest
    /// was not colored.
    ///
    /// # Errors
    /// Never for a colored guest. [`DescriptorError::File`] if a map without colors is
    /// inconsistent.
    pub fn locality(&self) -> Result<Arc<LocalityOrder>, DescriptorError> {
        if let Some(locality) = self.template.locality.get() {
            return Ok(Arc::clone(locality));
        }
        let locality = Arc::new(LocalityOrder::new(without_colors(self.layout())?));
        Ok(Arc::clone(self.template.locality.get_or_init(|| locality)))
    }

    /// What was damaged or truncated during coloring, one sentence each, for humans.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.template.notes
    }

    /// Identity of the image.
    #[must_use]
    pub fn identity(&self) -> ImageIdentity {
        self.template.identity
    }

    /// The page servers, in order of preference.
    #[must_use]
    pub fn servers(&self) -> &[ServerAddress] {
        &self.template.servers
    }

    /// Whether its free frames may be filled with zeros: [`FreeFrames::Zero`] or
    /// [`FreeFrames::Fetch`].
    #[must_use]
    pub fn free_frames(&self) -> FreeFrames {
        let setting = self.template.free_frames;
        self.template.map().map_or(setting, |map| setting.allowed_by(map))
    }

    /// Frames that the image stores nothing for, which are all zeros: ascending ranges that do not
    /// touch.
    #[must_use]
    pub fn holes(&self) -> &[Range<u32>] {
        &self.template.holes
    }

    /// Fingerprints of frames of the snapshot image, if they were taken; shared by all clones.
    #[must_use]
    pub fn fingerprints(&self) -> Option<&Arc<Fingerprints>> {
        self.template.fingerprints.as_ref()
    }

    /// Checks that `memory` is the image; see [`ImageIdentity`] for the strength of this check.
    ///
    /// # Errors
    /// [`DescriptorError::Identity`] if `memory` is another image, or cannot be read.
    pub fn verify(&self, memory: &dyn GuestMemory) -> Result<(), DescriptorError> {
        Ok(self.identity().verify(memory, self.locality()?.map())?)
    }

    /// Serializes the descriptor as the bytes of a file.
    ///
    /// Takes time in proportion to color map and state. To serve one template to many clones, keep
    /// the bytes, and let the clones set their ids with [`Descriptor::for_clone`].
    ///
    /// # Errors
    /// [`ManifestError::Limit`] if the descriptor exceeds a limit of the format, i.e. if a reader
    /// with [`DescriptorLimits::for_frames`] would reject it; [`ManifestError::Compression`] if
    /// zstd fails (out of memory).
    pub fn to_bytes(&self) -> Result<Vec<u8>, DescriptorError> {
        encode::check(self)?;
        Ok(container::wrap(&FAMILY, &encode::payload(self))?)
    }

    /// Writes the descriptor.
    ///
    /// # Errors
    /// [`ManifestError::Io`] if `out` fails, and the errors of [`to_bytes`](Self::to_bytes).
    pub fn write_to(&self, mut out: impl Write) -> Result<(), DescriptorError> {
        Ok(out.write_all(&self.to_bytes()?).map_err(ManifestError::from)?)
    }

    /// Writes the descriptor to a file atomically: at every instant the file has either its old or
    /// its new content.
    ///
    /// # Errors
    /// As [`Descriptor::write_to`].
    pub fn write_file(&self, path: &Path) -> Result<(), DescriptorError> {
        Ok(container::write_atomically(path, &self.to_bytes()?)?)
    }

    /// Parses a descriptor that is all of `bytes`. Takes at most [`DescriptorLimits::max_memory`]
    /// bytes of memory and time in proportion, for any input. This is the function to fuzz.
    ///
    /// # Errors
    /// [`DescriptorError`] says what is wrong and where.
    pub fn from_bytes(bytes: &[u8], limits: &DescriptorLimits) -> Result<Self, DescriptorError> {
        decode::payload(&container::unwrap(bytes, &FAMILY, limits.bounds())?, limits)
    }

    /// Reads a descriptor that is all of `input`.
    ///
    /// # Errors
    /// [`DescriptorError`] says what is wrong and where.
    pub fn read_from(input: impl Read, limits: &DescriptorLimits) -> Result<Self, DescriptorError> {
        Self::from_bytes(&container::read_bounded(input, &FAMILY, limits.bounds())?, limits)
    }

    /// Reads a descriptor file.
    ///
    /// # Errors
    /// [`DescriptorError`] says what is wrong and where.
    pub fn read_file(path: &Path, limits: &DescriptorLimits) -> Result<Self, DescriptorError> {
        Self::read_from(std::fs::File::open(path).map_err(ManifestError::from)?, limits)
    }
}

impl Template {
    fn new(layout: MemoryLayout, identity: ImageIdentity) -> Self {
        Self {
            frozen_at: None,
            state: Vec::new(),
            layout,
            is_colored: false,
            locality: OnceLock::new(),
            notes: Vec::new(),
            identity,
            servers: Vec::new(),
            free_frames: FreeFrames::Fetch,
            fingerprints: None,
            holes: Vec::new(),
        }
    }

    fn map(&self) -> Option<&ColorMap> {
        self.locality.get().filter(|_| self.is_colored).map(|locality| locality.map())
    }
}

impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        let parts = |t: &Self| (t.frozen_at, t.identity, t.free_frames);
        parts(self) == parts(other)
            && self.layout == other.layout
            && self.servers == other.servers
            && self.notes == other.notes
            && self.state == other.state
            && self.fingerprints == other.fingerprints
            && self.holes == other.holes
            && self.map() == other.map()
    }
}

impl fmt::Debug for Descriptor {
    /// Omits state and map, which are large.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptor")
            .field("id", &self.id)
            .field("frames", &self.layout().frames())
            .field("is_colored", &self.template.is_colored)
            .field("identity", &self.identity())
            .field("servers", &self.servers())
            .field("free_frames", &self.free_frames())
            .field("fingerprints", &self.fingerprints().map(|table| table.hashed()))
            .finish_non_exhaustive()
    }
}

/// A map in which the use of every frame is unknown.
fn without_colors(layout: &MemoryLayout) -> Result<ColorMap, ManifestError> {
    let frames = std::iter::repeat_n(Frame::default(), layout.frames() as usize);
    Ok(ColorMap::new(layout.clone(), KernelIdentity::default(), frames, Vec::new())?)
}

/// The instant `micros` microseconds after 1970, if the system can represent it.
fn instant(micros: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_micros(micros))
}
