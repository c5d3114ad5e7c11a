//! A whole guest, with words changed where its structures are. Each nine bytes of input are a place, a kind of change and what it
//! needs. The first byte says which guest, and whether registers are known.
#![no_main]

use kaleidoscope_core::addr::{FrameIndex, Gfn, Gpa};
use kaleidoscope_core::coloring::{ColoringError, ColoringOptions, color};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::registers::VcpuRegisters;
use kaleidoscope_fuzz::{Input, guest};
use kaleidoscope_mock::linux::{KernelStyle, MockGuest, Role};
use libfuzzer_sys::fuzz_target;
use std::sync::{LazyLock, Mutex, PoisonError};

/// A guest, and the frames of each kind of structure.
struct Base {
    guest: MockGuest,
    registers: Vec<VcpuRegisters>,
    places: Vec<Vec<Gfn>>,
}

static BASES: LazyLock<Mutex<[Base; 4]>> = LazyLock::new(|| Mutex::new(KernelStyle::ALL.map(base)));

fn base(style: KernelStyle) -> Base {
    let guest = guest(style);
    let of = |wanted: &dyn Fn(Role) -> bool| -> Vec<Gfn> {
        let frames = guest.truth.layout().iter().zip(guest.truth.roles());
        frames.filter(|(_, role)| wanted(**role)).map(|((_, gfn), _)| gfn).collect()
    };
    let mut places = vec![
        of(&|role| role == Role::FrameTable),
        of(&|role| {
            matches!(role, Role::PageTable { .. } | Role::BootTable { .. } | Role::UserRoot)
        }),
        of(&|role| matches!(role, Role::Slab { .. })),
        of(&|role| matches!(role, Role::KernelData | Role::PerCpu)),
        of(&|role| role == Role::KernelRodata),
        vec![guest.truth.kernel.vmcoreinfo.gfn()],
        of(&|_| true),
    ];
    places.retain(|frames| !frames.is_empty());
    assert!(color(&guest.memory, &ColoringOptions::default()).is_ok(), "else little is fuzzed");
    Base { registers: guest.registers.clone(), guest, places }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let choice = input.u8();
    let has_registers = choice & 4 == 0;
    let mut bases = BASES.lock().unwrap_or_else(PoisonError::into_inner);
    let base = &mut bases[usize::from(choice % 4)];
    let (memory, truth) = (&mut base.guest.memory, &base.guest.truth);
    let mut undo = Vec::new();
    // More changes take time and teach nothing.
    for _ in 0..256 {
        if input.is_empty() {
            break;
        }
        let (place, kind, frame, word) = (input.u8(), input.u8(), input.u16(), input.u16());
        let place = &base.places[usize::from(place) % base.places.len()];
        let gfn = place[usize::from(frame) % place.len()];
        let at = Gpa(gfn.gpa().0 + u64::from(word % 512) * 8);
        let mut old = [0; 8];
        memory.read(at, &mut old).expect("it is RAM");
        undo.push((at, old));
        let old = u64::from_le_bytes(old);
        let ram = |index: u16| {
            let layout = truth.layout();
            let index = FrameIndex(u32::from(index) % layout.frames());
            layout.gfn_of(index).expect("it is below the number of frames").gpa().0
        };
        let new = match kind % 9 {
            0 => 0,
            1 => u64::MAX,
            2 => old ^ (1 << (input.u8() % 64)),
            3 => old.wrapping_add_signed(i64::from(input.u8().cast_signed())),
            4 => input.u64(),
            // A page-table entry, perhaps of a large page, perhaps for its own table.
            5 => ram(input.u16()) | 0x67,
            6 => ram(input.u16()) | 0xe7,
            7 => gfn.gpa().0 | 0x67,
            // A pointer into the direct map, at any word.
            _ => truth.kernel.page_offset.0 + ram(input.u16()) + u64::from(input.u16() % 512) * 8,
        };
        memory.write(at, &new.to_le_bytes()).expect("it is RAM");
    }
    let registers = if has_registers { base.registers.clone() } else { Vec::new() };
    let options = ColoringOptions::default().registers(registers);
    let frames = memory.layout().frames() as usize;
    match color(memory, &options) {
        Ok(coloring) => {
            assert_eq!((coloring.map.len(), coloring.facts.frames.len()), (frames, frames));
            let regions = coloring.map.regions();
            let counted: u64 = regions.iter().map(|r| u64::from(r.frames)).sum();
            assert!(counted <= frames as u64);
            assert!(regions.iter().all(|r| !r.name.contains(char::is_control)));
        }
        Err(ColoringError::Map(error)) => panic!("{error}"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    for (at, old) in undo.into_iter().rev() {
        memory.write(at, &old).expect("it is RAM");
    }
});
