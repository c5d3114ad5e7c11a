//! Figures of a color map: frames, runs and regions per color.

use kaleidoscope_core::addr::FRAME_SIZE;
use kaleidoscope_core::color::{Color, ColorMap, FrameKind, Region};
use serde::Serialize;

/// Figures of one color.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct ColorFigures {
    /// The color.
    #[serde(serialize_with = "as_text")]
    pub(crate) color: Color,
    /// Frames that have it.
    pub(crate) frames: u32,
    /// Their share of RAM, 0 to 1.
    pub(crate) share: f64,
    /// Maximal runs of frames of the color with consecutive frame numbers.
    pub(crate) runs: u32,
    /// Regions that have frames of the color.
    pub(crate) regions: u32,
}

/// Figures of one frame kind.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct KindFigures {
    /// The kind.
    #[serde(serialize_with = "as_text")]
    pub(crate) kind: FrameKind,
    /// Frames of it.
    pub(crate) frames: u32,
    /// Their share of RAM, 0 to 1.
    pub(crate) share: f64,
}

/// Figures of a map.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Statistics {
    /// Frames of RAM.
    pub(crate) frames: u32,
    /// One entry per color that occurs, in palette order.
    pub(crate) colors: Vec<ColorFigures>,
    /// One entry per kind that occurs, in palette order.
    pub(crate) kinds: Vec<KindFigures>,
    /// Regions.
    pub(crate) regions: usize,
    /// Share of frames whose kind is unknown, 0 to 1.
    pub(crate) unknown_share: f64,
}

impl Statistics {
    /// Counts a map's frames.
    pub(crate) fn of(map: &ColorMap) -> Self {
        let mut frames_of = [0u32; Color::ALL.len()];
        let mut runs_of = [0u32; Color::ALL.len()];
        let mut kinds = [0u32; FrameKind::ALL.len()];
        // Which colors each region has, one bit per color.
        let mut colors_of = vec![0u32; map.regions().len()];
        let mut before = None;
        for (_, gfn, frame) in map.iter() {
            let color = frame.color as usize;
            frames_of[color] += 1;
            kinds[frame.kind as usize] += 1;
            let goes_on = before.is_some_and(|(g, c): (u64, _)| g + 1 == gfn.0 && c == frame.color);
            runs_of[color] += u32::from(!goes_on);
            before = Some((gfn.0, frame.color));
            if let Some(colors) = frame.region.and_then(|r| colors_of.get_mut(r.0 as usize)) {
                *colors |= 1 << color;
            }
        }
        let all = map.layout().frames();
        let share = |frames: u32| f64::from(frames) / f64::from(all);
        let colors = Color::ALL.into_iter().filter(|&c| frames_of[c as usize] > 0).map(|color| {
            let i = color as usize;
            let regions = colors_of.iter().filter(|&&colors| colors & (1 << i) != 0).count();
            ColorFigures {
                color,
                frames: frames_of[i],
                share: share(frames_of[i]),
                runs: runs_of[i],
                regions: u32::try_from(regions).unwrap_or(u32::MAX),
            }
        });
        let kinds_seen = FrameKind::ALL.into_iter().filter(|&k| kinds[k as usize] > 0);
        let kinds_seen = kinds_seen.map(|kind| {
            let frames = kinds[kind as usize];
            KindFigures { kind, frames, share: share(frames) }
        });
        Self {
            frames: all,
            colors: colors.collect(),
            kinds: kinds_seen.collect(),
            regions: map.regions().len(),
            unknown_share: share(kinds[FrameKind::Unknown as usize]),
        }
    }
}

/// Size of `frames` frames in MiB.
pub(crate) fn mib(frames: u32) -> f64 {
    f64::from(frames) * (FRAME_SIZE as f64) / f64::from(1 << 20)
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 trace`, `2 traces`.
pub(crate) fn counted(number: usize, what: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {what}{end}")
}

/// The parts of a cached file's region name, `FSTYPE:DEVICE:INODE:PATH`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct CachedFile<'a> {
    /// File system type.
    pub(crate) file_system: &'a str,
    /// Device number, empty when unknown.
    pub(crate) device: &'a str,
    /// Inode number, empty when unknown.
    pub(crate) inode: &'a str,
    /// Path in the guest, empty when it is not known.
    pub(crate) path: &'a str,
    /// Frames of its content in memory.
    pub(crate) resident_frames: u32,
}

/// The cached files of a map, most resident pages first.
pub(crate) fn cached_files(map: &ColorMap) -> Vec<CachedFile<'_>> {
    let mut files: Vec<_> = map.regions().iter().filter_map(cached_file).collect();
    files
        .sort_by(|a, b| b.resident_frames.cmp(&a.resident_frames).then_with(|| a.path.cmp(b.path)));
    files
}

fn cached_file(region: &Region) -> Option<CachedFile<'_>> {
    if !matches!(region.kind, FrameKind::File | FrameKind::Shared | FrameKind::BlockDevice) {
        return None;
    }
    let mut parts = region.name.splitn(4, ':');
    let mut part = || parts.next();
    let (file_system, device, inode, path) = match (part(), part(), part(), part()) {
        (Some(file_system), Some(device), Some(inode), Some(path)) => {
            (file_system, device, inode, path)
        }
        _ => ("", "", "", region.name.as_str()),
    };
    Some(CachedFile { file_system, device, inode, path, resident_frames: region.frames })
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map_output::test_map;

    #[test]
    fn runs_end_at_holes_and_other_colors() {
        let map = test_map::small();
        let statistics = Statistics::of(&map);
        let of = |color| statistics.colors.iter().find(|f| f.color == color).copied().unwrap();
        let free = of(Color::Free);
        assert_eq!((free.frames, free.runs, free.regions), (12, 3, 0));
        let code = of(Color::FileCode);
        assert_eq!((code.frames, code.runs, code.regions), (6, 1, 1));
        let cache = of(Color::FileCache);
        assert_eq!((cache.frames, cache.regions), (6, 2));
        assert_eq!(statistics.colors.iter().map(|f| f.frames).sum::<u32>(), statistics.frames);
        assert_eq!(statistics.kinds.iter().map(|f| f.frames).sum::<u32>(), statistics.frames);
        assert!((statistics.unknown_share - 1.0 / 40.0).abs() < 1e-12);
    }

    #[test]
    fn files_are_sorted_by_resident_frames() {
        let map = test_map::small();
        let files = cached_files(&map);
        assert_eq!(files[0].path, "/usr/bin/perl, \"quoted\": too");
        assert_eq!(
            (files[0].file_system, files[0].device, files[0].inode),
            ("ext4", "65024", "12")
        );
        assert_eq!(files[0].resident_frames, 9);
        assert_eq!(files[1].path, "");
        assert_eq!(files.len(), 2);
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1000), "1,000");
        assert_eq!(thousands(1234567), "1,234,567");
        assert_eq!([counted(1, "trace"), counted(2, "trace")], ["1 trace", "2 traces"]);
        assert!((mib(256) - 1.0).abs() < 1e-12);
    }
}
