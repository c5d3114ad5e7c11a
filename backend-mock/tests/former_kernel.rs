//! Memory with pages of more than one kernel: a reset does not clear RAM, and a crash kernel runs
//! beside the crashed one.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not see as tests"
)]

use kaleidoscope_core::addr::Gfn;
use kaleidoscope_core::color::FrameKind;
use kaleidoscope_core::coloring::{Coloring, ColoringError, ColoringOptions, color};
use kaleidoscope_core::guest_os::IntrospectErrorKind;
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::registers::VcpuRegisters;
use kaleidoscope_mock::linux::{GuestBuilder, KernelStyle, MockGuest, Role};

fn try_color(guest: &MockGuest, registers: &[VcpuRegisters]) -> Result<Coloring, ColoringError> {
    color(&guest.memory, &ColoringOptions::default().registers(registers.to_vec()))
}

/// How long ago the former kernel ran, which determines what is left of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Age {
    /// All frames that the running kernel has not allocated.
    JustNow,
    /// Of these, one page in sixteen was reused and freed since.
    Hours,
    /// Of these, every other page was reused and freed since.
    Weeks,
}

const AGES: [Age; 3] = [Age::JustNow, Age::Hours, Age::Weeks];

fn is_free(guest: &MockGuest, gfn: Gfn) -> bool {
    matches!(guest.truth.role(gfn), Some(Role::Free { .. } | Role::PerCpuFree { .. }))
}

/// Fills free frames of a guest with the former guest's pages.
fn keep_remains(former: &MockGuest, running: &mut MockGuest, age: Age) {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for (_, gfn) in former.truth.layout().clone().iter() {
        // Knuth's MMIX generator.
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let is_used_since = match age {
            Age::JustNow => false,
            Age::Hours => word >> 60 == 0,
            Age::Weeks => word >> 63 == 0,
        };
        if is_free(running, gfn) && !is_used_since {
            let mut page = [0; 4096];
            former.memory.read(gfn.gpa(), &mut page).unwrap();
            running.memory.write(gfn.gpa(), &page).unwrap();
        }
    }
}

/// Numbers of frames with a wrong kind, and of those wrongly called free.
fn wrong(guest: &MockGuest, coloring: &Coloring) -> (usize, usize) {
    let truth = |index| guest.truth.kind(index);
    let wrong = coloring.map.iter().filter(|(index, _, frame)| {
        frame.kind != FrameKind::Unknown && frame.kind != truth(*index)
    });
    wrong.fold((0, 0), |(all, free), (_, _, frame)| {
        (all + 1, free + usize::from(frame.kind == FrameKind::Free))
    })
}

/// Results of coloring without registers.
#[derive(Debug, Default)]
struct Tally {
    right: usize,
    ties: Vec<String>,
}

fn sweep(style: KernelStyle, seeds: std::ops::Range<u64>, tally: &mut Tally) {
    for seed in seeds {
        let old_style = KernelStyle::ALL[usize::try_from(seed).unwrap() % KernelStyle::ALL.len()];
        let age = AGES[usize::try_from(seed / 4).unwrap() % AGES.len()];
        // Every third former kernel had the same amount of RAM.
        let old_bytes = if seed % 3 == 0 { 192 << 20 } else { 64 << 20 };
        let old = GuestBuilder::new(old_style).ram_bytes(old_bytes).seed(100 + seed);
        let old = old.build().unwrap();
        let new = GuestBuilder::new(style).ram_bytes(192 << 20).files(20).processes(2);
        let mut new = new.seed(500 + seed).build().unwrap();
        keep_remains(&old, &mut new, age);
        let name = format!("{style:?} after {old_style:?}, {age:?}, seed {seed}");
        let with = try_color(&new, &new.registers).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(wrong(&new, &with), (0, 0), "{name}: with registers");
        // A vCPU stopped by a crash still has the former kernel's registers.
        let stopped: Vec<_> = old.registers.iter().chain(&new.registers).cloned().collect();
        match try_color(&new, &stopped) {
            Ok(coloring) => assert_eq!(wrong(&new, &coloring), (0, 0), "{name}: both registers"),
            Err(error) => assert!(error.to_string().contains("kernels"), "{name}: {error}"),
        }
        match try_color(&new, &[]) {
            Ok(coloring) => {
                assert_eq!(wrong(&new, &coloring), (0, 0), "{name}: {:?}", coloring.notes());
                assert_eq!(coloring.map.kernel().release, new.truth.kernel.release, "{name}");
                tally.right += 1;
            }
            Err(ColoringError::Introspect(error))
                if error.kind() == IntrospectErrorKind::Ambiguous =>
            {
                tally.ties.push(format!("{name}: {error}"))
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// Coloring never finds a former kernel, and almost always the running one.
#[test]
fn the_running_kernel_is_found_after_a_reset() {
    let seeds: u64 = std::env::var("FORMER_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(8);
    let mut tally = Tally::default();
    for style in KernelStyle::ALL {
        sweep(style, 0..seeds, &mut tally);
    }
    println!("{tally:?}");
    let ties = tally.ties.len();
    assert!(ties * 50 <= tally.right + ties, "{tally:?}");
}
