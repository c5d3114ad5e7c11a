//! Traces as CSV.

use std::collections::HashSet;
use std::io::Write;
use std::time::Instant;

use super::recorder::{FRAME, Touch};
use crate::lab::layout::Layout;

/// The columns of a trace. Those that this recorder cannot fill are empty or zero, so that traces
/// of all recorders have the same format.
const COLUMNS: [&str; 13] = [
    "seq",
    "t_us",
    "gfn",
    "event",
    "access_write",
    "source",
    "kind",
    "cpl",
    "rip",
    "vaddr",
    "icount",
    "vcpu",
    "written",
];

/// A finished recording.
#[derive(Debug)]
pub(crate) struct Trace<'a> {
    /// First touches in order.
    pub(crate) touches: &'a [Touch],
    /// When the clone was resumed.
    pub(crate) resumed: Instant,
    /// The RAM file's regions and their guest-physical addresses.
    pub(crate) layout: &'a Layout,
    /// The thread of each vCPU.
    pub(crate) vcpus: &'a [u32],
    /// Pages of the file that were written to by the end.
    pub(crate) written: &'a HashSet<u64>,
}

impl Trace<'_> {
    /// Writes the touches, one per line.
    ///
    /// # Errors
    /// If `out` fails, or a touch is outside of the layout.
    pub(crate) fn write(&self, out: impl Write) -> csv::Result<()> {
        let mut table = csv::Writer::from_writer(out);
        table.write_record(COLUMNS)?;
        for (seq, touch) in self.touches.iter().enumerate() {
            let gfn = gfn(self.layout, touch.page).ok_or_else(|| {
                let what = format!("page {:#x} of the RAM file is in no RAM region", touch.page);
                std::io::Error::other(what)
            })?;
            let micros = touch.at.saturating_duration_since(self.resumed).as_micros();
            let vcpu = self.vcpu(touch);
            let source = if vcpu.is_some() { "vcpu" } else { "host" };
            let written = u8::from(self.written.contains(&touch.page));
            table.write_record([
                &seq.to_string(),
                &micros.to_string(),
                &format!("{gfn:x}"),
                "touch",
                "",
                source,
                "",
                "0",
                "0",
                "0",
                "0",
                &vcpu.map(|vcpu| vcpu.to_string()).unwrap_or_default(),
                &written.to_string(),
            ])?;
        }
        table.flush().map_err(csv::Error::from)
    }

    /// The vCPU of a touch, or `None` for the emulator's other threads.
    pub(crate) fn vcpu(&self, touch: &Touch) -> Option<usize> {
        self.vcpus.iter().position(|thread| *thread == touch.thread)
    }
}

/// The guest frame number of page `page` of the RAM file.
fn gfn(layout: &Layout, page: u64) -> Option<u64> {
    let offset = page.checked_mul(FRAME)?;
    layout.regions.iter().find_map(|region| {
        let inside = offset.checked_sub(region.file_offset)?;
        (inside < region.size).then(|| region.gpa.checked_add(inside))?.map(|gpa| gpa / FRAME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn layout() -> Layout {
        let text = "\
FlatView #0
 AS \"memory\", root: system
  0000000000000000-000000000000ffff (prio 0, ram): guest-ram
  0000000100000000-000000010000ffff (prio 0, ram): guest-ram @0000000000010000
";
        Layout::from_mtree(text, "guest-ram", 0x2_0000).unwrap()
    }

    fn written(pages: &[(u64, u32)]) -> csv::Result<String> {
        let resumed = Instant::now();
        let touches: Vec<_> = pages
            .iter()
            .zip(0..)
            .map(|((page, thread), index)| {
                // The first one is before the clone runs.
                let at = (resumed + Duration::from_micros(40 * index))
                    .checked_sub(Duration::from_micros(10))
                    .unwrap();
                Touch { at, page: *page, thread: *thread }
            })
            .collect();
        let trace = Trace {
            touches: &touches,
            resumed,
            layout: &layout(),
            vcpus: &[70, 71],
            written: &HashSet::from([0x1f]),
        };
        let mut out = Vec::new();
        trace.write(&mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn touches_become_lines() {
        let expected = "\
seq,t_us,gfn,event,access_write,source,kind,cpl,rip,vaddr,icount,vcpu,written
0,0,1,touch,,host,,0,0,0,0,,0
1,30,10000f,touch,,vcpu,,0,0,0,0,1,1
2,70,0,touch,,vcpu,,0,0,0,0,0,0
";
        assert_eq!(written(&[(1, 5), (0x1f, 71), (0, 70)]).unwrap(), expected);
    }

    #[test]
    fn a_page_outside_of_the_layout_is_an_error() {
        let message = written(&[(0x20, 5)]).unwrap_err().to_string();
        assert!(message.contains("0x20"), "{message}");
        assert!(written(&[(u64::MAX, 5)]).is_err());
    }
}
