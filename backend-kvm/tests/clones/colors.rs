//! Coloring a guest of which only the page tables are known.

use crate::common::{TestResult, host, wait_for_rounds};
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::color::{Color, Temperature};
use kaleidoscope_core::coloring::{ColoringOptions, color, color_by_page_tables};
use kaleidoscope_kvm::guest::{Plan, boot};
use std::time::Duration;

#[test]
fn page_tables_tell_a_guest_s_colors() -> TestResult<()> {
    let Some(host) = host() else { return Ok(()) };
    let plan = Plan::new(32, 2, 6, 256, 256, 2)?;
    let (mut machine, check_port) = boot(&host, &plan)?;
    machine.resume()?;
    wait_for_rounds(&plan, &machine, &check_port, 300);
    let mut registers = Vec::new();
    for _ in 0..60 {
        registers.extend(machine.look()?);
        std::thread::sleep(Duration::from_micros(1300));
    }
    wait_for_rounds(&plan, &machine, &check_port, 10);
    let snapshot = machine.freeze()?;
    registers.extend(snapshot.state.registers());
    let options = ColoringOptions::default().registers(registers);
    assert!(color(&*snapshot.image, &options).is_err(), "it is no Linux");
    let coloring = color_by_page_tables(&*snapshot.image, &options)?;
    assert_eq!(coloring.processes().len(), 6, "the timer brought each to a vCPU while we looked");
    assert!(coloring.notes().is_empty());

    let map = &coloring.map;
    let frame =
        |gpa: Gpa| map.layout().index_of(gpa.gfn()).and_then(|index| map.frame(index)).unwrap();
    let mut hot = [0; 2];
    for process in plan.processes() {
        let region = frame(process.heap[0]).region;
        assert!(region.is_some());
        for (page, gpa) in process.heap.iter().enumerate() {
            let frame = frame(*gpa);
            assert_eq!((frame.color, frame.region), (Color::Anonymous, region), "{gpa}");
            hot[usize::from(page >= process.heap.len() / 8)] +=
                u32::from(frame.temperature.contains(Temperature::DIRTY));
        }
        assert_eq!(frame(process.status).color, Color::Anonymous);
        assert_eq!(frame(process.code()).color, Color::AnonymousCode);
    }
    println!("written: {} frames of the heaps' hot eighths, {} of the rest", hot[0], hot[1]);
    assert!(plan.file().all(|gpa| frame(gpa).color == Color::Shared));
    assert_eq!(frame(Gpa(0x10000)).color, Color::KernelText);
    assert_eq!(frame(Gpa(0x14000)).color, Color::KernelData);
    assert_eq!(frame(Gpa(0x10_0000)).color, Color::PageTable);
    assert_eq!(frame(plan.end()).color, Color::Unknown);
    Ok(())
}
