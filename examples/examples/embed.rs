//! A minimal VMM that runs clones, in a hundred lines.
//!
//! ```text
//! kaleidoscope serve ram.bin --listen unix:/tmp/parent.sock     # in one terminal
//! cargo run --example embed -- unix:/tmp/parent.sock            # in another one
//! ```
//!
//! A VMM has memory and vCPUs. Here the memory is a vector of pages, and any caller of [`Vm::read`]
//! acts as a vCPU. A real VMM maps its memory into a guest. The processor, `userfaultfd` or the
//! hypervisor reports that the guest touched a missing page, and the VMM then does what `read` does
//! here.

use kaleidoscope_core::addr::{FrameIndex, Gpa};
use kaleidoscope_core::clone::ports::{InstallError, Installed, PageInstaller};
use kaleidoscope_core::clone::{
    Background, Descriptor, DescriptorLimits, Engine, EngineOptions, EngineParts,
};
use kaleidoscope_core::memory::{MemoryLayout, Page, ZERO_PAGE};
use kaleidoscope_core::prefetch::{Access, ColorGuide, Colored, Settings};
use kaleidoscope_core::wire::client::{Addresses, Client, ClientOptions};
use kaleidoscope_core::wire::transport::ConnectOptions;
use std::error::Error;
use std::io::Write;
use std::sync::{Arc, OnceLock};

/// The clone's memory. At first no page is resident.
struct Ram(Vec<OnceLock<Box<Page>>>);

/// The engine installs pages from several threads, but never a page that is resident already.
impl PageInstaller for Ram {
    fn install(&self, frame: FrameIndex, page: &Page) -> Result<Installed, InstallError> {
        let slot = self.0.get(frame.as_usize());
        let slot =
            slot.ok_or_else(|| InstallError::new(format!("frame {frame} does not exist")))?;
        // A vCPU must never see part of a page: the page is copied first and then published
        // atomically.
        Ok(if slot.set(Box::new(*page)).is_ok() {
            Installed::Installed
        } else {
            Installed::AlreadyPresent
        })
    }

    fn zero(&self, frame: FrameIndex) -> Result<Installed, InstallError> {
        self.install(frame, &ZERO_PAGE)
    }

    // No thread sleeps in a fault on this memory: `Engine::fault` returns once the page is
    // resident.
    fn wake(&self, _frame: FrameIndex) -> Result<(), InstallError> {
        Ok(())
    }
}

/// A running clone.
struct Vm {
    ram: Arc<Ram>,
    layout: MemoryLayout,
    engine: Engine,
}

impl Vm {
    /// Starts a clone of the image that the page server at `address` serves. The clone runs at
    /// once. Its pages are fetched on demand or ahead of demand.
    fn start(address: &str) -> Result<Self, Box<dyn Error>> {
        // The source of pages. With several addresses, the client fails over to another server.
        let servers =
            Addresses { servers: vec![address.parse()?], options: ConnectOptions::default() };
        let client = Client::connect(Arc::new(servers), ClientOptions::default())?;

        // The descriptor has the memory's layout and colors, and the state of vCPUs and devices,
        // which a real VMM restores now (`descriptor.state()`).
        let limits = DescriptorLimits::for_frames(client.frames());
        let descriptor = Descriptor::from_bytes(&client.fetch_descriptor()?, &limits)?;
        let layout = descriptor.layout().clone();
        let ram = Arc::new(Ram((0..layout.frames()).map(|_| OnceLock::new()).collect()));

        // The policy chooses the pages to prefetch: related pages that are likely to be used.
        // `Demand` would prefetch nothing.
        let locality = descriptor.locality()?;
        let guide = Arc::new(ColorGuide::new(
            Arc::clone(&locality),
            Settings::shipped_for(locality.map().kernel()),
        ));
        // A memory that reports faults by itself (userfaultfd) is a `FaultQueue`, given by
        // `EngineParts::queue`, and a thread calls `Engine::serve`. With many clones on a host, an
        // `alloc::Host` says how much each may have: `EngineParts::reservation`.
        let parts = EngineParts::new(
            locality,
            Box::new(Colored::new(guide)),
            Arc::new(client),
            Arc::clone(&ram) as Arc<dyn PageInstaller>,
        );
        // Fetch all other pages when the connection is idle. Afterwards the clone no longer needs
        // the server. Free frames are not fetched but zeroed where the server's descriptor allows it
        // (`FreeFrames::Auto`).
        let options = EngineOptions::default().background(Background::Full);
        let engine = Engine::start(parts, options)?;
        Ok(Self { ram, layout, engine })
    }

    /// Reads memory as a vCPU does, and faults on missing pages. Callable from several threads at
    /// once.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), Box<dyn Error>> {
        let frame = self.layout.index_of(gpa.gfn()).ok_or("no RAM there")?;
        let slot = self.ram.0.get(frame.as_usize()).ok_or("no RAM there")?;
        while slot.get().is_none() {
            // Returns once the page is resident, or an error: a clone never runs with a wrong
            // page.
            self.engine.fault(frame, Access::Read)?;
        }
        let page = slot.get().ok_or("the page is missing")?;
        let bytes = page.get(gpa.offset_in_frame()..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or("the read crosses the end of a page")?);
        Ok(())
    }
}

/// Starts a clone, reads a word of every 16th page, and prints fault statistics.
pub fn run(address: &str, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let vm = Vm::start(address)?;
    for (_, gfn) in vm.layout.iter().step_by(16) {
        let mut word = [0; 8];
        vm.read(gfn.gpa(), &mut word)?;
        writeln!(out, "{} {:016x}", gfn.gpa(), u64::from_le_bytes(word))?;
    }
    let (statistics, total) = (vm.engine.statistics(), vm.engine.statistics().total());
    let ahead = total.prefetched + total.filled;
    writeln!(
        out,
        "{} faults, {ahead} pages ahead of them, longest wait {:?}",
        total.faults + total.late,
        statistics.stall(1.0).unwrap_or_default()
    )?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("usage: embed unix:PATH|tcp:HOST:PORT")?;
    run(&address, &mut std::io::stdout().lock())
}
