//! The demonstration without KVM.

use super::results::{Contest, Results, Way, number, us};
use crate::progress::Status;
use kaleidoscope_core::addr::FRAME_SIZE;
use kaleidoscope_core::clone::{Descriptor, Engine, EngineOptions, EngineParts, LocalSource};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_core::prefetch::{Blind, Demand, PrefetchPolicy};
use kaleidoscope_mock::clone::pattern::Pattern;
use kaleidoscope_mock::clone::{MockMemory, MockParent, MockVm, Program, Threads, Work};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the mock parent.
const BYTES: u64 = 64 << 20;

/// Makes a policy.
type Make = fn() -> Box<dyn PrefetchPolicy>;

pub(super) fn contest(clones: usize, status: &Status) -> Result<Contest, Box<dyn Error>> {
    status.set("a mock parent");
    let parent = MockParent::new(MemoryLayout::contiguous(BYTES)?, Pattern::new(42));
    let snapshot = Arc::new(parent.freeze());
    let _writers = parent.keep_writing(1, 7)?;
    let locality = Descriptor::of(&*snapshot, None)?.locality()?;
    let ways: [(&'static str, Make); 2] = [
        ("on demand", || Box::new(Demand)),
        ("blind, 16 at a time", || Box::new(Blind::aligned(16))),
    ];
    let mut results = Vec::new();
    for (name, make) in ways {
        status.set(name);
        let (mut starts, mut running) = (Duration::ZERO, Vec::new());
        let begin = Instant::now();
        for clone in 0..clones {
            let start = Instant::now();
            let memory = Arc::new(MockMemory::new(locality.frames())?);
            let parts = EngineParts::new(
                Arc::clone(&locality),
                make(),
                Arc::new(LocalSource::new(Arc::clone(&snapshot) as _)),
                Arc::clone(&memory) as _,
            )
            .queue(Some(Arc::new(memory.queue())));
            let engine = Arc::new(Engine::start(parts, EngineOptions::default())?);
            let program = Program { seed: clone as u64, steps: 4000, ..Program::default() };
            let work = Work::Program(program);
            let handler = Arc::clone(&engine) as _;
            let truth = Arc::clone(&snapshot) as _;
            let vm = MockVm::start(memory, handler, truth, work, Threads::default())?;
            starts += start.elapsed();
            running.push((engine, vm));
        }
        let mut engines = Vec::new();
        for (engine, vm) in running {
            vm.join().check()?;
            engines.push(engine.statistics());
        }
        let resident: u64 = engines.iter().map(|engine| engine.total().resident).sum();
        let mut way = Way {
            name: name.to_owned(),
            start_us: us(starts) / number(clones.max(1) as u64),
            took_us: us(begin.elapsed()),
            memory_bytes: number(resident * FRAME_SIZE),
            is_verified: true,
            ..Way::default()
        };
        way.count(&engines);
        results.push(way);
    }
    let guest = format!("a mock machine of {} MiB without colors", BYTES >> 20);
    Ok(Contest { map: None, results: Results { guest, pause_us: None, clones, ways: results } })
}
