//! Traces: the frames that a clone touched, in order of their first touch.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::addr::{FrameIndex, Gfn};
use crate::memory::MemoryLayout;
use crate::prefetch::Access;
use bitvec::vec::BitVec;
use std::io::{self, Read};
use thiserror::Error;

/// Most bytes of a line, which bounds the memory for reading one.
const MAX_LINE: usize = 1 << 16;

/// A first touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Touch {
    /// Microseconds since the clone was resumed, in the clone's own time, without any waits for
    /// pages.
    pub at_us: u64,
    /// The frame.
    pub frame: FrameIndex,
    /// How it was accessed.
    pub access: Access,
    /// Number of the vCPU that touched it; 0 if the trace does not say, and for accesses by
    /// devices.
    pub vcpu: u16,
}

/// The frames that a clone touched, in order, each once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trace {
    touches: Vec<Touch>,
}

/// Why a trace cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be read as CSV.
    #[error("not a trace: {0}")]
    Csv(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A column is missing.
    #[error("not a trace: there is no column `{0}`")]
    Column(&'static str),
    /// A field has an invalid value.
    #[error("line {line}: `{text}` is no {what}")]
    Field {
        /// Line of the file, from 1.
        line: u64,
        /// The expected kind of value.
        what: &'static str,
        /// The invalid text.
        text: String,
    },
    /// A frame is not in the guest's RAM.
    #[error("line {line}: the guest has no RAM at frame {gfn}; is the trace of another guest?")]
    NotRam {
        /// Line of the file, from 1.
        line: u64,
        /// The frame.
        gfn: Gfn,
    },
    /// A time is before that of the previous line.
    #[error("line {line}: the time {at_us} us is before that of the line above")]
    Time {
        /// Line of the file, from 1.
        line: u64,
        /// The time.
        at_us: u64,
    },
}

impl TraceError {
    pub(super) fn csv(error: csv::Error) -> Self {
        Self::Csv(Box::new(error))
    }
}

impl Trace {
    /// A trace of these touches. Only the first touch of a frame is kept. A time before the
    /// previous one is raised to it.
    #[must_use]
    pub fn new(touches: impl IntoIterator<Item = Touch>, layout: &MemoryLayout) -> Self {
        let mut seen: BitVec = BitVec::repeat(false, layout.frames() as usize);
        let mut now = 0;
        let mut kept = Vec::new();
        for mut touch in touches {
            now = touch.at_us.max(now);
            touch.at_us = now;
            if let Some(mut seen) = seen.get_mut(touch.frame.as_usize())
                && !seen.replace(true)
            {
                kept.push(touch);
            }
        }
        Self { touches: kept }
    }

    /// Reads a trace in CSV: a header line, and one line per touch. Required columns: `t_us`, `gfn`
    /// (hexadecimal). Optional columns: `event` (only `touch` counts), `access_write` (0 or 1),
    /// `vcpu`. Others are ignored. Quoting is not supported. Takes at most 50 bytes of memory per
    /// frame of the guest and a buffer for one line, for any input.
    ///
    /// # Errors
    /// [`TraceError`] names the line.
    pub fn from_csv(input: impl Read, layout: &MemoryLayout) -> Result<Self, TraceError> {
        // A quoted field could span many lines, which would all be buffered.
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .quoting(false)
            .from_reader(BoundedLines { input, line: 0 });
        let columns = Columns::find(reader.byte_headers().map_err(TraceError::csv)?)?;
        let mut seen: BitVec = BitVec::repeat(false, layout.frames() as usize);
        let mut touches: Vec<Touch> = Vec::new();
        let mut record = csv::ByteRecord::new();
        while reader.read_byte_record(&mut record).map_err(TraceError::csv)? {
            let line = record.position().map_or(0, csv::Position::line);
            let Some(touch) = columns.touch(&record, line, layout)? else { continue };
            if touches.last().is_some_and(|last| last.at_us > touch.at_us) {
                return Err(TraceError::Time { line, at_us: touch.at_us });
            }
            if let Some(mut seen) = seen.get_mut(touch.frame.as_usize())
                && !seen.replace(true)
            {
                touches.push(touch);
            }
        }
        Ok(Self { touches })
    }

    /// The touches in order.
    #[must_use]
    pub fn touches(&self) -> &[Touch] {
        &self.touches
    }

    /// The touches with time running `factor` times as fast, for traces from a slow emulator.
    /// Factors that are not positive and finite count as 1.
    #[must_use]
    pub fn sped_up(mut self, factor: f64) -> Self {
        if factor.is_finite() && factor > 0.0 {
            for touch in &mut self.touches {
                touch.at_us = to_us(from_us(touch.at_us) / factor);
            }
        }
        self
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a replay are below 2^53")]
fn from_us(us: u64) -> f64 {
    us as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturation is intended; times are not negative"
)]
fn to_us(us: f64) -> u64 {
    us as u64
}

/// A reader that fails at a line that is too long.
pub(super) struct BoundedLines<R> {
    pub(super) input: R,
    /// Bytes of the line so far.
    pub(super) line: usize,
}

impl<R: Read> Read for BoundedLines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        for byte in buffer.iter().take(read) {
            self.line = if matches!(byte, b'\n' | b'\r') { 0 } else { self.line.saturating_add(1) };
            if self.line > MAX_LINE {
                let text = format!("a line has more than {MAX_LINE} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        Ok(read)
    }
}

/// Indices of the columns.
struct Columns {
    time: usize,
    gfn: usize,
    event: Option<usize>,
    write: Option<usize>,
    vcpu: Option<usize>,
}

impl Columns {
    fn find(header: &csv::ByteRecord) -> Result<Self, TraceError> {
        let find = |name: &'static str| header.iter().position(|field| field == name.as_bytes());
        let need = |name: &'static str| find(name).ok_or(TraceError::Column(name));
        Ok(Self {
            time: need("t_us")?,
            gfn: need("gfn")?,
            event: find("event"),
            write: find("access_write"),
            vcpu: find("vcpu"),
        })
    }

    /// The touch of a line; `None` for another event.
    fn touch(
        &self,
        record: &csv::ByteRecord,
        line: u64,
        layout: &MemoryLayout,
    ) -> Result<Option<Touch>, TraceError> {
        let text =
            |column: usize| std::str::from_utf8(record.get(column).unwrap_or(b"")).unwrap_or("?");
        if self.event.is_some_and(|column| text(column) != "touch") {
            return Ok(None);
        }
        let invalid = |what, column| TraceError::Field {
            line,
            what,
            text: text(column).chars().take(40).collect(),
        };
        let at_us =
            text(self.time).parse().map_err(|_| invalid("time in microseconds", self.time))?;
        let digits = text(self.gfn);
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        let gfn = u64::from_str_radix(digits, 16).map_err(|_| invalid("frame number", self.gfn))?;
        let gfn = Gfn(gfn);
        let frame = layout.index_of(gfn).ok_or(TraceError::NotRam { line, gfn })?;
        let access = match self.write.map(text) {
            None | Some("") => Access::Unknown,
            Some("0") => Access::Read,
            Some("1") => Access::Write,
            Some(_) => return Err(invalid("0 or 1", self.write.unwrap_or(0))),
        };
        let vcpu = match self.vcpu.map(text) {
            None | Some("") => 0,
            Some(number) => {
                number.parse().map_err(|_| invalid("vCPU number", self.vcpu.unwrap_or(0)))?
            }
        };
        Ok(Some(Touch { at_us, frame, access, vcpu }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Trace, TraceError> {
        Trace::from_csv(text.as_bytes(), &MemoryLayout::contiguous(0x10000).unwrap())
    }

    #[test]
    fn first_touches_are_read() {
        let text = "seq,t_us,gfn,event,access_write,source\n\
                    0,5,a,firstwrite,1,host\n1,7,a,touch,0,vcpu\n\
                    2,9,0xf,touch,1,vcpu\n3,9,a,touch,1,vcpu\n";
        let trace = parse(text).unwrap();
        let touch =
            |at_us, frame, access| Touch { at_us, frame: FrameIndex(frame), access, vcpu: 0 };
        assert_eq!(trace.touches(), [touch(7, 10, Access::Read), touch(9, 15, Access::Write)]);
        assert_eq!(trace.sped_up(3.0).touches()[1].at_us, 3);
        let trace = parse("gfn,vcpu,t_us\n1,3,0\n").unwrap();
        assert_eq!(trace.touches()[0].vcpu, 3);
        assert_eq!(trace.touches()[0].access, Access::Unknown);
    }

    #[test]
    fn bad_lines_are_named() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(error("t_us\n1\n"), "not a trace: there is no column `gfn`");
        assert_eq!(error("t_us,gfn\n1,2\n1,zz\n"), "line 3: `zz` is no frame number");
        assert_eq!(error("t_us,gfn\n-1,2\n"), "line 2: `-1` is no time in microseconds");
        assert!(
            error("t_us,gfn\n1,10\n").starts_with("line 2: the guest has no RAM at frame 0x10")
        );
        assert!(error("t_us,gfn\n5,1\n4,2\n").contains("line 3: the time 4 us is before"));
        assert!(error("t_us,gfn\n5\n").starts_with("not a trace: CSV error"));
    }

    #[test]
    fn endless_lines_end() {
        let layout = MemoryLayout::contiguous(0x10000).unwrap();
        for endless in [b'1', b'"', b',', b' '] {
            let input = b"t_us,gfn\n1,\"".chain(io::repeat(endless));
            let error = Trace::from_csv(input, &layout).unwrap_err().to_string();
            assert_eq!(error, "not a trace: a line has more than 65536 bytes");
        }
        let long = format!("t_us,gfn,rest\n1,2,{}\n", "x".repeat(60_000));
        assert_eq!(Trace::from_csv(long.as_bytes(), &layout).unwrap().touches().len(), 1);
    }
}
