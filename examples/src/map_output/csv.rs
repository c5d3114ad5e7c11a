//! Frames and regions as CSV (RFC 4180), for programs that do not read manifests.

use kaleidoscope_core::color::ColorMap;
use kaleidoscope_core::guest_os::name::shown;
use std::io::{self, BufWriter, Write};

/// Writes `gfn,kind,color,region,position`, one row per frame by ascending frame number. Numbers
/// are decimal; region and position are empty for frames without a region.
pub(crate) fn write_frames(map: &ColorMap, out: impl Write) -> io::Result<()> {
    // A row per frame is the hot path: no field can need quoting, so rows are put together by hand.
    let mut out = BufWriter::with_capacity(1 << 20, out);
    let mut number = itoa::Buffer::new();
    out.write_all(b"gfn,kind,color,region,position\n")?;
    for (_, gfn, frame) in map.iter() {
        out.write_all(number.format(gfn.0).as_bytes())?;
        out.write_all(b",")?;
        out.write_all(frame.kind.name().as_bytes())?;
        out.write_all(b",")?;
        out.write_all(frame.color.name().as_bytes())?;
        out.write_all(b",")?;
        if let Some(region) = frame.region {
            out.write_all(number.format(region.0).as_bytes())?;
        }
        out.write_all(b",")?;
        if frame.region.is_some() {
            out.write_all(number.format(frame.position).as_bytes())?;
        }
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Writes `region,kind,name,frames`, one row per region. Names are quoted where they must be.
pub(crate) fn write_regions(map: &ColorMap, out: impl Write) -> io::Result<()> {
    let mut out = csv::Writer::from_writer(out);
    out.write_record(["region", "kind", "name", "frames"])?;
    let (mut id, mut frames) = (itoa::Buffer::new(), itoa::Buffer::new());
    for (number, region) in map.regions().iter().enumerate() {
        let (id, frames) = (id.format(number), frames.format(region.frames));
        let name = shown(&region.name);
        out.write_record([id, region.kind.name(), &name, frames])?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map_output::test_map;

    #[test]
    fn frames_are_rows() {
        let mut out = Vec::new();
        write_frames(&test_map::small(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 41);
        assert_eq!(rows[0], "gfn,kind,color,region,position");
        assert_eq!(rows[1], "0,unknown,unknown,,");
        assert_eq!(rows[7], "6,file,file-code,0,0");
        assert_eq!(rows[18], "17,file,file-cache,1,3");
        assert_eq!(rows[25], "256,free,free,,", "behind the hole");
        assert_eq!(rows[28], "259,anonymous,anonymous,3,349552");
    }

    #[test]
    fn region_names_are_quoted() {
        let mut out = Vec::new();
        write_regions(&test_map::small(), &mut out).unwrap();
        let expected = "region,kind,name,frames\n\
            0,file,\"ext4:65024:12:/usr/bin/perl, \"\"quoted\"\": too\",9\n\
            1,file,ext4:65024:77:,3\n\
            2,slab,dentry,5\n\
            3,anonymous,perl[812],10\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
