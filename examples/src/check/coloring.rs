//! The coloring under test: a color map, or the two CSV files that `kaleidoscope color` writes.
use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::Error;
use kaleidoscope_core::color::{ColorMap, FrameKind};

/// The kind of a frame by the coloring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Free in the guest's allocator.
    Free,
    /// Slab memory.
    Slab,
    /// Page table.
    PageTable,
    /// Anonymous memory of a process.
    Anonymous,
    /// Shared memory: tmpfs, memfd, System V.
    Shared,
    /// Page cache of a file.
    File,
    /// Page cache of a block device.
    BlockDevice,
    /// Other memory of the kernel.
    Kernel,
    /// A page of the hugetlb pool.
    Hugetlb,
    /// Returned to the host (balloon) or unplugged.
    Offline,
    /// Not known.
    Unknown,
}

impl Kind {
    /// The name used in the CSV files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Slab => "slab",
            Self::PageTable => "page-table",
            Self::Anonymous => "anonymous",
            Self::Shared => "shared",
            Self::File => "file",
            Self::BlockDevice => "block-device",
            Self::Kernel => "kernel",
            Self::Hugetlb => "hugetlb",
            Self::Offline => "offline",
            Self::Unknown => "unknown",
        }
    }
}

impl From<FrameKind> for Kind {
    fn from(kind: FrameKind) -> Self {
        match kind {
            FrameKind::Free => Self::Free,
            FrameKind::Slab => Self::Slab,
            FrameKind::PageTable => Self::PageTable,
            FrameKind::Anonymous => Self::Anonymous,
            FrameKind::Shared => Self::Shared,
            FrameKind::File => Self::File,
            FrameKind::BlockDevice => Self::BlockDevice,
            FrameKind::Kernel => Self::Kernel,
            FrameKind::Hugetlb => Self::Hugetlb,
            FrameKind::Offline => Self::Offline,
            // Kinds that were added later count as unknown.
            FrameKind::Unknown | _ => Self::Unknown,
        }
    }
}

/// A frame by the coloring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    /// Guest frame number.
    pub(crate) gfn: u64,
    /// Kind.
    pub(crate) kind: Kind,
    /// The frame's region.
    pub(crate) region: Option<u64>,
    /// Position in the region; for files the page index.
    pub(crate) position: Option<u64>,
}

/// A region: related frames in their natural order.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    /// Kind of its frames.
    pub(crate) kind: Kind,
    /// Name; for files see [`FileName`].
    pub(crate) name: String,
    /// Number of frames by the region's row.
    pub(crate) frames: u64,
}

/// A parsed region name of a file: `FSTYPE:DEVICE:INODE:PATH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileName<'a> {
    /// `st_dev`, if known.
    pub(crate) device: Option<u64>,
    /// Inode number.
    pub(crate) inode: u64,
    /// Absolute path in the guest; empty if the guest's kernel no longer had it.
    pub(crate) path: &'a str,
}

impl<'a> FileName<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let mut parts = name.splitn(4, ':').skip(1);
        let device = parts.next()?.parse().ok().filter(|&device| device != 0);
        let inode = parts.next()?.parse().ok()?;
        Some(Self { device, inode, path: parts.next()? })
    }
}

impl Region {
    /// The parsed name, if the region is a file.
    pub(crate) fn file(&self) -> Option<FileName<'_>> {
        FileName::parse(&self.name)
    }
}

/// A region whose row contradicts its frames' rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Defect {
    /// Region.
    pub(crate) region: u64,
    /// The contradiction.
    pub(crate) problem: String,
}

/// A coloring.
#[derive(Debug)]
pub(crate) struct Coloring {
    /// Sorted by gfn, without duplicates.
    frames: Vec<Frame>,
    regions: BTreeMap<u64, Region>,
}

#[derive(Deserialize)]
struct FrameRow<'a> {
    gfn: &'a str,
    kind: Kind,
    region: Option<u64>,
    position: Option<u64>,
}

#[derive(Deserialize)]
struct RegionRow<'a> {
    region: u64,
    kind: Kind,
    name: &'a [u8],
    frames: u64,
}

impl Coloring {
    /// Reads a coloring.
    ///
    /// # Errors
    /// If a file cannot be read, a row is malformed, a frame or region is listed twice, or a
    /// frame's region is not listed.
    pub(crate) fn load(frames: &Path, regions: &Path) -> Result<Self, Error> {
        let regions = load_regions(regions)?;
        Ok(Self { frames: load_frames(frames, &regions)?, regions })
    }

    /// Converts a color map.
    pub(crate) fn from_map(map: &ColorMap) -> Self {
        let frames = map.iter().map(|(_, gfn, frame)| Frame {
            gfn: gfn.0,
            kind: Kind::from(frame.kind),
            region: frame.region.map(|id| u64::from(id.0)),
            position: frame.region.map(|_| frame.position),
        });
        let region = |region: &kaleidoscope_core::color::Region| Region {
            kind: Kind::from(region.kind),
            name: region.name.clone(),
            frames: u64::from(region.frames),
        };
        Self {
            frames: frames.collect(),
            regions: (0..).zip(map.regions().iter().map(region)).collect(),
        }
    }

    /// All frames, sorted by gfn.
    pub(crate) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The frame `gfn`, if the coloring has it.
    pub(crate) fn frame(&self, gfn: u64) -> Option<&Frame> {
        self.frames
            .binary_search_by_key(&gfn, |frame| frame.gfn)
            .ok()
            .and_then(|at| self.frames.get(at))
    }

    /// The region of `frame`.
    pub(crate) fn region_of(&self, frame: &Frame) -> Option<&Region> {
        self.regions.get(&frame.region?)
    }

    /// Up to `limit` regions whose row contradicts the rows of their frames.
    pub(crate) fn defects(&self, limit: usize) -> Vec<Defect> {
        let mut counted = BTreeMap::<u64, (u64, Option<Kind>)>::new();
        for frame in &self.frames {
            let Some((id, region)) = frame.region.and_then(|id| Some((id, self.regions.get(&id)?)))
            else {
                continue;
            };
            let (frames, stray) = counted.entry(id).or_default();
            *frames += 1;
            if frame.kind != region.kind {
                *stray = Some(frame.kind);
            }
        }
        let problem = |(&id, region): (&u64, &Region)| {
            let (frames, stray) = counted.get(&id).copied().unwrap_or_default();
            let problem = if let Some(kind) = stray {
                format!("is {}, but has frames that are {}", region.kind.name(), kind.name())
            } else if frames != region.frames {
                format!("says {} frames, but {frames} name it", region.frames)
            } else {
                return None;
            };
            Some(Defect { region: id, problem })
        };
        self.regions.iter().filter_map(problem).take(limit).collect()
    }
}

fn load_regions(path: &Path) -> Result<BTreeMap<u64, Region>, Error> {
    let mut regions = BTreeMap::new();
    for_each_row(path, &["region", "kind", "name", "frames"], |line, record, headers| {
        let row: RegionRow<'_> =
            record.deserialize(Some(headers)).map_err(|source| csv_error(path, source))?;
        let name = String::from_utf8_lossy(row.name).into_owned();
        match regions.insert(row.region, Region { kind: row.kind, name, frames: row.frames }) {
            None => Ok(()),
            Some(_) => Err(row_error(path, line, format!("region {} is listed twice", row.region))),
        }
    })?;
    Ok(regions)
}

fn load_frames(path: &Path, regions: &BTreeMap<u64, Region>) -> Result<Vec<Frame>, Error> {
    let mut frames = Vec::new();
    for_each_row(path, &["gfn", "kind", "region", "position"], |line, record, headers| {
        let row: FrameRow<'_> =
            record.deserialize(Some(headers)).map_err(|source| csv_error(path, source))?;
        let gfn = parse_gfn(row.gfn)
            .ok_or_else(|| row_error(path, line, format!("`{}` is not a frame number", row.gfn)))?;
        if let Some(region) = row.region.filter(|id| !regions.contains_key(id)) {
            return Err(row_error(
                path,
                line,
                format!("region {region} is not in the list of regions"),
            ));
        }
        frames.push((
            Frame { gfn, kind: row.kind, region: row.region, position: row.position },
            line,
        ));
        Ok(())
    })?;
    frames.sort_by_key(|(frame, _)| frame.gfn);
    match frames.iter().zip(frames.iter().skip(1)).find(|((one, _), (next, _))| one.gfn == next.gfn)
    {
        None => Ok(frames.into_iter().map(|(frame, _)| frame).collect()),
        Some((_, (frame, line))) => {
            Err(row_error(path, *line, format!("frame {:#x} is listed twice", frame.gfn)))
        }
    }
}

fn for_each_row(
    path: &Path,
    columns: &[&str],
    mut each: impl FnMut(u64, &csv::ByteRecord, &csv::ByteRecord) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut reader = csv::Reader::from_path(path).map_err(|source| csv_error(path, source))?;
    let headers = reader.byte_headers().map_err(|source| csv_error(path, source))?.clone();
    // Checked here, because a file without rows causes no other error.
    let has = |column: &&&str| headers.iter().any(|header| header == column.as_bytes());
    if let Some(missing) = columns.iter().find(|column| !has(column)) {
        return Err(row_error(path, 1, format!("there is no column `{missing}`")));
    }
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(|source| csv_error(path, source))? {
        each(record.position().map_or(0, csv::Position::line), &record, &headers)?;
    }
    Ok(())
}

fn parse_gfn(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn csv_error(path: &Path, source: csv::Error) -> Error {
    Error::Csv { path: path.to_path_buf(), source }
}

fn row_error(path: &Path, line: u64, problem: String) -> Error {
    Error::Row { path: path.to_path_buf(), line, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_keeps_colons_and_commas_of_its_path() {
        let name = FileName::parse("ext4:65024:12:/a:b,c").unwrap();
        assert_eq!(name, FileName { device: Some(65024), inode: 12, path: "/a:b,c" });
        assert_eq!(
            FileName::parse("tmpfs::7:").unwrap(),
            FileName { device: None, inode: 7, path: "" }
        );
        assert_eq!(FileName::parse("kmalloc-64"), None);
        assert_eq!(FileName::parse("ext4:1:x:/a"), None);
    }

    #[test]
    fn frame_numbers_are_decimal_or_hex() {
        assert_eq!(parse_gfn("16"), Some(16));
        assert_eq!(parse_gfn("0x10"), Some(16));
        assert_eq!(parse_gfn("10h"), None);
    }
}
