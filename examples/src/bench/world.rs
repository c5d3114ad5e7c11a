//! Fixtures of the benchmarks: an image, a clone's memory, and a page server between them.

use crate::interrupt::Scratch;
use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE, FrameIndex, Gpa};
use kaleidoscope_core::clone::ports::{InstallError, Installed, PageInstaller};
use kaleidoscope_core::clone::ports::{PageSource, SourceError};
use kaleidoscope_core::clone::{Engine, EngineOptions, EngineParts, ServerAddress};
use kaleidoscope_core::color::{Color, ColorMap, Frame, KernelIdentity};
use kaleidoscope_core::memory::{
    GuestMemory, MemoryError, MemoryLayout, Page, VecMemory, ZERO_PAGE,
};
use kaleidoscope_core::prefetch::{LocalityOrder, PrefetchPolicy};
use kaleidoscope_core::wire::Features;
use kaleidoscope_core::wire::client::{Addresses, Client, ClientOptions};
use kaleidoscope_core::wire::server::{ServedImage, Server, ServerOptions};
use kaleidoscope_core::wire::transport::{ConnectOptions, ListenOptions, Listener};
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

/// Results with errors that are only printed.
pub(super) type Outcome<T> = Result<T, Box<dyn Error>>;

/// The digest that identifies the image to the page server.
const DIGEST: [u8; 32] = [7; 32];

/// A layout of `frames` frames from address 0.
pub(super) fn layout(frames: u32) -> Outcome<MemoryLayout> {
    Ok(MemoryLayout::contiguous(u64::from(frames) * FRAME_SIZE)?)
}

/// The locality order of a guest with only anonymous memory.
pub(super) fn locality(frames: u32) -> Outcome<Arc<LocalityOrder>> {
    let frame = Frame { color: Color::Anonymous, ..Frame::default() };
    let records = (0..frames).map(|_| frame);
    let map = ColorMap::new(layout(frames)?, KernelIdentity::default(), records, Vec::new())?;
    Ok(Arc::new(LocalityOrder::new(map)))
}

/// An image without a zero byte.
pub(super) fn image(frames: u32) -> Outcome<Arc<VecMemory>> {
    let mut memory = VecMemory::zeroed(layout(frames)?);
    for (n, page) in (0u32..).zip(memory.bytes_mut().chunks_exact_mut(FRAME_BYTES)) {
        for (offset, word) in (0u32..).zip(page.chunks_exact_mut(4)) {
            word.copy_from_slice(&(n.wrapping_mul(1024) | offset | 1 << 31).to_le_bytes());
        }
    }
    Ok(Arc::new(memory))
}

/// A generated image of any size: each page starts with its frame number.
#[derive(Debug)]
pub(super) struct GeneratedImage {
    layout: MemoryLayout,
}

impl GeneratedImage {
    pub(super) fn new(frames: u32) -> Outcome<Self> {
        Ok(Self { layout: layout(frames)? })
    }
}

impl GuestMemory for GeneratedImage {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let number = gpa.gfn().0.to_le_bytes();
        buf.fill(1);
        buf.iter_mut().zip(number).for_each(|(to, from)| *to = from);
        Ok(())
    }
}

/// An image of any size that repeats the pages of a smaller one.
#[derive(Debug)]
pub(super) struct RepeatedImage {
    layout: MemoryLayout,
    image: Arc<VecMemory>,
}

impl RepeatedImage {
    pub(super) fn new(frames: u32, image: Arc<VecMemory>) -> Outcome<Self> {
        Ok(Self { layout: layout(frames)?, image })
    }

    fn inner(&self, gpa: Gpa) -> Gpa {
        Gpa(gpa.0 % self.image.layout().bytes().max(1))
    }
}

impl GuestMemory for RepeatedImage {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.image.read(self.inner(gpa), buf)
    }

    fn slice(&self, gpa: Gpa, len: usize) -> Option<&[u8]> {
        self.image.slice(self.inner(gpa), len)
    }
}

/// A clone's memory, as an array of pages.
#[derive(Debug)]
pub(super) struct Arena(Vec<Mutex<Page>>);

impl Arena {
    pub(super) fn new(frames: u32) -> Self {
        Self((0..frames).map(|_| Mutex::new([1; FRAME_BYTES])).collect())
    }

    /// Whether a frame equals the image's.
    pub(super) fn matches(&self, frame: FrameIndex, image: &VecMemory) -> bool {
        let start = frame.as_usize() * FRAME_BYTES;
        let expected = image.bytes().get(start..start + FRAME_BYTES);
        let page =
            self.0.get(frame.as_usize()).map(|p| p.lock().unwrap_or_else(PoisonError::into_inner));
        page.is_some_and(|page| expected == Some(page.as_slice()))
    }
}

impl PageInstaller for Arena {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        let slot =
            self.0.get(frame.as_usize()).ok_or_else(|| InstallError::new("no such frame"))?;
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = *page;
        Ok(Installed::Installed)
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        self.install(frame, &ZERO_PAGE)
    }

    fn wake(&self, _frame: FrameIndex) -> Result<(), InstallError> {
        Ok(())
    }
}

/// A page server on a Unix socket.
pub(super) struct PageServer {
    server: Server,
    address: ServerAddress,
    _folder: Scratch,
}

impl PageServer {
    pub(super) fn serve(memory: Arc<dyn GuestMemory>) -> Outcome<Self> {
        let folder = Scratch::new("kaleidoscope-bench-")?;
        let address = ServerAddress::Unix(folder.path().join("pages.sock"));
        let listener = Listener::bind(&address, ListenOptions::default())?;
        let image = ServedImage::new(memory, DIGEST);
        let server = Server::start(vec![image], vec![listener], ServerOptions::default())?;
        Ok(Self { server, address, _folder: folder })
    }

    pub(super) fn connect(&self, checksums: bool) -> Result<Client, SourceError> {
        let servers = vec![self.address.clone()];
        let dial = Addresses { servers, options: ConnectOptions::default() };
        let defaults = ClientOptions::default();
        let features = Features { checksums, ..defaults.features };
        Client::connect(Arc::new(dial), defaults.features(features))
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        self.server.stop();
    }
}

/// Starts an engine.
pub(super) fn start(
    locality: &Arc<LocalityOrder>,
    policy: Box<dyn PrefetchPolicy>,
    source: Arc<dyn PageSource>,
    installer: Arc<dyn PageInstaller>,
    options: EngineOptions,
) -> Outcome<Engine> {
    let parts = EngineParts::new(Arc::clone(locality), policy, source, installer);
    Ok(Engine::start(parts, options)?)
}
