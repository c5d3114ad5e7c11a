//! Sizes of memory on the command line.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// A whole number of MiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct MemorySize {
    mib: u32,
}

impl MemorySize {
    /// A size of so many MiB.
    pub(crate) const fn from_mib(mib: u32) -> Self {
        Self { mib }
    }

    /// The size in MiB.
    pub(crate) const fn mib(self) -> u32 {
        self.mib
    }

    /// The size in bytes.
    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.mib) * MIB
    }
}

/// Written as it is read: in GiB where that is a whole number, else in MiB.
impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mib {
            mib if mib % 1024 == 0 => write!(f, "{}G", mib / 1024),
            mib => write!(f, "{mib}M"),
        }
    }
}

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unreadable = || "it is a size such as 512M or 2G; a bare number is in MiB".to_owned();
        let suffix_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, suffix) = text.split_at(suffix_at);
        let number: u64 = digits.parse().map_err(|_| unreadable())?;
        let unit: u64 = match suffix.to_ascii_lowercase().as_str() {
            "b" => 1,
            "k" | "kib" => 1 << 10,
            "" | "m" | "mib" => MIB,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            _ => return Err(unreadable()),
        };
        let bytes = number.checked_mul(unit).ok_or("it is too large")?;
        if bytes % MIB != 0 {
            return Err("it has to be a whole number of MiB".to_owned());
        }
        let mib = u32::try_from(bytes / MIB).map_err(|_| "it is too large")?;
        Ok(Self { mib })
    }
}

/// Parses a size in a range of MiB.
pub(crate) fn memory_size(
    mib: RangeInclusive<u32>,
) -> impl Fn(&str) -> Result<MemorySize, String> + Clone + Send + Sync {
    let (least, most) = (MemorySize { mib: *mib.start() }, MemorySize { mib: *mib.end() });
    move |text| {
        let size: MemorySize = text.parse()?;
        let is_in = (least..=most).contains(&size);
        if is_in { Ok(size) } else { Err(format!("it is not between {least} and {most}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_suffix_or_are_in_mib() {
        let mib = |text: &str| text.parse::<MemorySize>().map(MemorySize::mib);
        for text in ["512", "512M", "512m", "512MiB", "524288K", "536870912B"] {
            assert_eq!(mib(text), Ok(512), "{text}");
        }
        assert_eq!((mib("2G"), mib("1tib")), (Ok(2048), Ok(1 << 20)));
        for text in ["", "M", "-1", "1.5G", "512 M", "1MB", "1000B", "99999999999999999999"] {
            assert!(mib(text).is_err(), "{text}");
        }
        assert!(mib("16777216T").unwrap_err().contains("too large"));
    }

    #[test]
    fn sizes_are_written_as_they_are_read() {
        for mib in [1, 512, 1024, 1536, 65_536] {
            let size = MemorySize::from_mib(mib);
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        assert_eq!(MemorySize::from_mib(3).bytes(), 3 << 20);
    }

    #[test]
    fn ranges_are_said() {
        let parse = memory_size(64..=2048);
        assert_eq!(parse("2G"), Ok(MemorySize::from_mib(2048)));
        assert_eq!(parse("63"), Err("it is not between 64M and 2G".to_owned()));
    }
}
