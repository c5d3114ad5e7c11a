//! Which frames a clone wrote, according to its trace.

use super::TraceError;
use super::trace::BoundedLines;
use crate::addr::{FrameIndex, Gfn};
use crate::memory::MemoryLayout;
use bitvec::vec::BitVec;
use std::io::Read;

/// The frames that a clone wrote after the freeze, ascending: those with a row for a write, which
/// is a `touch` with 1 in `access_write` or `written`, or a `firstwrite`. Reads the CSV of
/// [`Trace::from_csv`](super::Trace::from_csv); only the column `gfn` is required. Takes one bit
/// per frame of the guest and a buffer for one line, for any input.
///
/// # Errors
/// [`TraceError`] names the line.
pub fn written_frames(
    input: impl Read,
    layout: &MemoryLayout,
) -> Result<Vec<FrameIndex>, TraceError> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .quoting(false)
        .from_reader(BoundedLines { input, line: 0 });
    let header = reader.byte_headers().map_err(TraceError::csv)?;
    let find = |name: &str| header.iter().position(|field| field == name.as_bytes());
    let gfn = find("gfn").ok_or(TraceError::Column("gfn"))?;
    let (event, flags) = (find("event"), [find("access_write"), find("written")]);
    let mut written: BitVec = BitVec::repeat(false, layout.frames() as usize);
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(TraceError::csv)? {
        let line = record.position().map_or(0, csv::Position::line);
        let field = |column: usize| record.get(column).unwrap_or(b"");
        let is_set = |column: &Option<usize>| column.is_some_and(|column| field(column) == b"1");
        let is_first_write = event.is_some_and(|column| field(column) == b"firstwrite");
        if !is_first_write && !flags.iter().any(is_set) {
            continue;
        }
        let text = std::str::from_utf8(field(gfn)).unwrap_or("?");
        let number = u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16);
        let number = Gfn(number.map_err(|_| TraceError::Field {
            line,
            what: "frame number",
            text: text.chars().take(40).collect(),
        })?);
        let frame = layout.index_of(number).ok_or(TraceError::NotRam { line, gfn: number })?;
        if let Some(mut written) = written.get_mut(frame.as_usize()) {
            *written = true;
        }
    }
    let numbers = written.iter_ones().filter_map(|frame| u32::try_from(frame).ok());
    Ok(numbers.map(FrameIndex).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_to_say_so_count() {
        let text = "t_us,gfn,event,access_write,written\n\
                    0,1,touch,0,0\n0,2,touch,1,0\n0,3,touch,,1\n\
                    1,0x4,firstwrite,,\n1,2,touch,0,0\n";
        let layout = MemoryLayout::contiguous(0x10000).unwrap();
        let read = |text: &str| written_frames(text.as_bytes(), &layout);
        assert_eq!(read(text).unwrap(), [FrameIndex(2), FrameIndex(3), FrameIndex(4)]);
        assert!(read("gfn,t_us\n1,0\n").unwrap().is_empty());
        assert!(read("event\ntouch\n").unwrap_err().to_string().contains("no column `gfn`"));
        let error = read("gfn,written\n1,0\n10,1\n").unwrap_err().to_string();
        assert!(error.starts_with("line 3: the guest has no RAM at frame 0x10"), "{error}");
        assert!(read("gfn,written\nzz,1\n").unwrap_err().to_string().contains("`zz` is no frame"));
    }
}
