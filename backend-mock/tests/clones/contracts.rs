//! The mock passes its own contract tests, and the tests detect defective implementations.

use kaleidoscope_core::addr::FrameIndex;
use kaleidoscope_core::clone::LocalSource;
use kaleidoscope_core::clone::ports::{
    Event, Eviction, FaultQueue, InstallError, Installed, PageInstaller, PageSource,
};
use kaleidoscope_core::clone::shared::Shared;
use kaleidoscope_core::memory::Page;
use kaleidoscope_mock::clone::contract::{self, ContractTarget};
use kaleidoscope_mock::clone::{
    Call, Failure, FaultyInstaller, FaultyQueue, FaultySource, MockMemory, Script, When,
};
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[test]
fn the_mock_memory_keeps_the_installer_contract() {
    contract::installer(&|frames| Ok(MockMemory::new(frames)?)).unwrap();
}

#[test]
fn the_mock_queue_keeps_the_queue_contract() {
    contract::fault_queue(&|frames| Ok(MockMemory::new(frames)?)).unwrap();
}

#[test]
fn the_local_source_keeps_the_source_contract() {
    contract::source(&|memory| Ok(Arc::new(LocalSource::new(memory)))).unwrap();
}

#[test]
fn siblings_keep_the_source_contract() {
    contract::source(&|memory| {
        let frames = memory.layout().frames();
        let shared = Shared::new(Arc::new(LocalSource::new(memory)), frames, 100)?;
        Ok(Arc::new(shared.sibling()))
    })
    .unwrap();
}

/// A memory behind decorators that inject failures.
struct Wrapped {
    memory: Arc<MockMemory>,
    installer: Box<dyn PageInstaller>,
    queue: FaultyQueue,
}

fn wrapped(frames: u32, script: &Script) -> Result<Wrapped> {
    let memory = Arc::new(MockMemory::new(frames)?);
    let installer = Box::new(FaultyInstaller::new(Arc::clone(&memory) as _, script.clone()));
    let queue = FaultyQueue::new(Arc::new(memory.queue()), frames, script.clone());
    Ok(Wrapped { memory, installer, queue })
}

impl ContractTarget for Wrapped {
    fn installer(&self) -> &dyn PageInstaller {
        &*self.installer
    }
    fn queue(&self) -> &dyn FaultQueue {
        &self.queue
    }
    fn read(&self, frame: FrameIndex, offset: usize, buf: &mut [u8]) -> Result<()> {
        Ok(self.memory.read(frame, offset, buf)?)
    }
    fn write(&self, frame: FrameIndex, offset: usize, buf: &[u8]) -> Result<()> {
        Ok(self.memory.write(frame, offset, buf)?)
    }
    fn give_back(&self, frames: Range<u32>) -> Result<bool> {
        self.memory.give_back(frames)?;
        Ok(true)
    }
    fn close(&self) {
        self.memory.close("the test is over");
    }
}

#[test]
fn decorators_without_failures_change_nothing() {
    let script = Script::new(1);
    contract::installer(&|frames| wrapped(frames, &script)).unwrap();
    contract::fault_queue(&|frames| wrapped(frames, &script)).unwrap();
    contract::source(&|memory| {
        let inner: Arc<dyn PageSource> = Arc::new(LocalSource::new(memory));
        Ok(Arc::new(FaultySource::new(inner, 4096, script.clone())))
    })
    .unwrap();
    let log = script.log().to_string();
    assert!(log.contains("event fault 5"), "{log}");
    assert!(log.contains("install 5 -> AlreadyPresent"), "{log}");
}

/// Delays and reordering do not violate the contract.
#[test]
fn slow_sources_keep_the_source_contract() {
    let delay = Failure::Delay(Duration::from_micros(300));
    contract::source(&|memory| {
        let script = Script::new(5)
            .on(Call::Deliver, When::OneIn(5), Failure::Reorder)
            .on(Call::Deliver, When::OneIn(50), delay)
            .on(Call::Receive, When::OneIn(20), delay);
        let inner: Arc<dyn PageSource> = Arc::new(LocalSource::new(memory));
        Ok(Arc::new(FaultySource::new(inner, 4096, script)))
    })
    .unwrap();
}

#[test]
fn the_source_suite_detects_failures() {
    let broken = |call, failure| {
        let result = contract::source(&|memory| {
            let script = Script::new(5).on(call, When::Every(100), failure);
            let inner: Arc<dyn PageSource> = Arc::new(LocalSource::new(memory));
            Ok(Arc::new(FaultySource::new(inner, 4096, script)))
        });
        result.unwrap_err().to_string()
    };
    let message = broken(Call::Deliver, Failure::Corrupt);
    assert!(message.contains("1 wrong bytes of no known page"), "{message}");
    assert!(broken(Call::Request, Failure::Fail).contains("fails, as scripted"));
    assert!(broken(Call::Deliver, Failure::Unavailable).contains("unavailable"));
}

/// A page installer with one defect.
struct BrokenInstaller {
    memory: MockMemory,
    defect: Defect,
}

#[derive(Clone, Copy)]
enum Defect {
    ChangesByte,
    SkipsInstall,
    HidesAlreadyPresent,
    EvictsAnything,
    WrongFrame,
}

impl PageInstaller for BrokenInstaller {
    fn install(
        &self,
        frame: FrameIndex,
        page: &Page,
    ) -> std::result::Result<Installed, InstallError> {
        let mut page = *page;
        match self.defect {
            Defect::ChangesByte => page[4095] ^= 1,
            Defect::SkipsInstall if frame.0 == 14 => return Ok(Installed::Installed),
            Defect::WrongFrame if frame.0 == 63 => {
                return self.memory.install(FrameIndex(0), &page);
            }
            Defect::HidesAlreadyPresent => {
                return self.memory.install(frame, &page).map(|_| Installed::Installed);
            }
            Defect::SkipsInstall | Defect::WrongFrame | Defect::EvictsAnything => {}
        }
        self.memory.install(frame, &page)
    }
    fn zero(&self, frame: FrameIndex) -> std::result::Result<Installed, InstallError> {
        self.memory.zero(frame)
    }
    fn wake(&self, frame: FrameIndex) -> std::result::Result<(), InstallError> {
        self.memory.wake(frame)
    }
    fn evict(&self, frame: FrameIndex) -> std::result::Result<Eviction, InstallError> {
        match self.defect {
            Defect::EvictsAnything if frame.0 < 64 => Ok(Eviction::Evicted),
            Defect::EvictsAnything
            | Defect::ChangesByte
            | Defect::SkipsInstall
            | Defect::HidesAlreadyPresent
            | Defect::WrongFrame => self.memory.evict(frame),
        }
    }
}

impl ContractTarget for BrokenInstaller {
    fn installer(&self) -> &dyn PageInstaller {
        self
    }
    fn queue(&self) -> &dyn FaultQueue {
        ContractTarget::queue(&self.memory)
    }
    fn read(&self, frame: FrameIndex, offset: usize, buf: &mut [u8]) -> Result<()> {
        Ok(self.memory.read(frame, offset, buf)?)
    }
    fn write(&self, frame: FrameIndex, offset: usize, buf: &[u8]) -> Result<()> {
        Ok(self.memory.write(frame, offset, buf)?)
    }
    fn give_back(&self, _: Range<u32>) -> Result<bool> {
        Ok(false)
    }
    fn close(&self) {
        self.memory.close("the test is over");
    }
}

#[test]
fn the_installer_suite_detects_defects() {
    let broken = |defect| {
        let make = |frames| {
            let timeout = Duration::from_secs(1);
            Ok(BrokenInstaller { memory: MockMemory::with_patience(frames, timeout)?, defect })
        };
        contract::installer(&make).unwrap_err().to_string()
    };
    let message = broken(Defect::ChangesByte);
    assert!(
        message.starts_with("an installed frame holds the page's bytes: frame 0, byte 0xfff"),
        "{message}"
    );
    let message = broken(Defect::SkipsInstall);
    assert!(message.contains("frame 14 was not filled within "), "{message}");
    let message = broken(Defect::HidesAlreadyPresent);
    assert!(message.starts_with("a frame that has bytes keeps them: Installed"), "{message}");
    let message = broken(Defect::EvictsAnything);
    assert!(message.starts_with("only untouched frames are evicted"), "{message}");
    let message = broken(Defect::WrongFrame);
    assert!(message.contains("frame 63"), "{message}");
}

/// A vCPU whose fault is lost reports it, and nothing hangs.
#[test]
fn a_lost_fault_is_named() {
    let memory = MockMemory::with_patience(32, Duration::from_millis(50)).unwrap();
    let message = memory.read(FrameIndex(17), 0, &mut [0]).unwrap_err().to_string();
    assert!(
        message.starts_with("frame 17 was not filled within ") && message.ends_with("a lost fault"),
        "{message}"
    );
    let message = memory.give_back(3..5).unwrap_err().to_string();
    assert!(message.contains("the removal of frames 3..5 was not read within "), "{message}");
    assert!(memory.read(FrameIndex(32), 0, &mut [0]).is_err());
    assert!(memory.read(FrameIndex(0), 4095, &mut [0; 2]).is_err());
    assert!(memory.give_back(31..33).is_err());
}

#[test]
fn nothing_is_placed_while_a_removal_is_unread() {
    let memory = MockMemory::new(32).unwrap();
    std::thread::scope(|scope| {
        assert_eq!(memory.zero(FrameIndex(3)).unwrap(), Installed::Installed);
        let balloon = scope.spawn(|| memory.give_back(3..4));
        while memory.queue().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(memory.zero(FrameIndex(20)).unwrap(), Installed::TryAgain);
        assert_eq!(memory.queue().read().unwrap(), Some(Event::Removed(3..4)));
        assert_eq!(memory.zero(FrameIndex(20)).unwrap(), Installed::Installed);
        balloon.join().unwrap().unwrap();
        assert!(!memory.is_present(FrameIndex(3)));
    });
    let statistics = memory.statistics();
    assert_eq!((statistics.again, statistics.given_back, statistics.present()), (1, 1, 1));
}

#[test]
fn footprint_coverage_and_accuracy_are_true() {
    let memory = MockMemory::new(16 << 20).unwrap();
    for frame in (0..100).map(FrameIndex) {
        assert_eq!(memory.install(frame, &[1; 4096]).unwrap(), Installed::Installed);
    }
    assert_eq!(memory.zero(FrameIndex(100)).unwrap(), Installed::Installed);
    assert_eq!(memory.resident_pages().unwrap(), 100, "zeros take no memory");
    for frame in (0..30).map(FrameIndex) {
        memory.read(frame, 0, &mut [0]).unwrap();
    }
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| memory.write(FrameIndex(5000), 0, &[1]));
        while memory.awaited().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(memory.zero(FrameIndex(5000)).unwrap(), Installed::Installed);
        vcpu.join().unwrap().unwrap();
    });
    let statistics = memory.statistics();
    assert_eq!(statistics.coverage(), 30.0 / 31.0);
    assert_eq!(statistics.accuracy(), 30.0 / 101.0);
    assert!(memory.is_dirty(FrameIndex(5000)) && !memory.is_dirty(FrameIndex(5)));
    assert_eq!(memory.evict(FrameIndex(5)).unwrap(), Eviction::InUse);
    assert_eq!(memory.evict(FrameIndex(50)).unwrap(), Eviction::Evicted);
    assert_eq!(memory.resident_pages().unwrap(), 100, "one was added and one evicted");
}
