//! Hit rates by class: learned by a host, and the defaults that are shipped.

use super::{AccessClass, NameMatch};
use crate::color::{Color, UnknownName};
use std::fmt::Write;
use thiserror::Error;

/// Hit rates of real guests; `kaleidoscope dedup --hit-rates-to` writes such a file.
const SHIPPED: &str = include_str!("hit_rates.csv");

/// The first line of a file.
const HEADER: &str = "color,relation,heat,hashed,shared,saved,diverged,alike";

/// Number of classes: every color with every name match and every access class.
const CLASSES: usize = Color::ALL.len() * NameMatch::ALL.len() * AccessClass::ALL.len();

/// A class: a color, a name match and an access class. Frames of one class are expected to have
/// similar hit rates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Class(u16);

impl Class {
    /// The class of a frame. All file colors are one class, without an access class: which pages of
    /// a file are mapped or read differs between guests, but their contents do not depend on it.
    pub(super) fn of(color: Color, name_match: NameMatch, access: AccessClass) -> Self {
        let is_file = matches!(color, Color::FileCode | Color::FileMapped | Color::FileCache);
        let (color, access) =
            if is_file { (Color::FileCache, AccessClass::Cold) } else { (color, access) };
        Self((color as u16 * NAME_MATCHES + name_match as u16) * ACCESS_CLASSES + access as u16)
    }

    fn parts(self) -> (Color, NameMatch, AccessClass) {
        let access = AccessClass::ALL.get(usize::from(self.0 % ACCESS_CLASSES)).copied();
        let name_match =
            NameMatch::ALL.get(usize::from(self.0 / ACCESS_CLASSES % NAME_MATCHES)).copied();
        let color =
            u8::try_from(self.0 / ACCESS_CLASSES / NAME_MATCHES).ok().and_then(Color::from_u8);
        (
            color.unwrap_or_default(),
            name_match.unwrap_or(NameMatch::None),
            access.unwrap_or(AccessClass::Cold),
        )
    }
}

/// Maximum number of hashes of a class in a file: that of 4 PiB of memory.
const MAX_HASHES: f64 = 1e12;

/// Radices of a class's number.
const NAME_MATCHES: u16 = 8;
const ACCESS_CLASSES: u16 = 3;
const _: () = assert!(NameMatch::ALL.len() == 8 && AccessClass::ALL.len() == 3);

/// Outcomes of the hashes of one class.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ClassHitRate {
    /// Frames that were hashed.
    pub hashed: f64,
    /// Of these, frames that have an equal page.
    pub shared: f64,
    /// Pages saved: each of n equal frames counts as (n - 1) / n.
    pub saved: f64,
    /// Of the shared frames, those that clones wrote to later.
    pub diverged: f64,
    /// How similar the outcomes within a candidate group are: the sum over groups of saved² /
    /// hashed. Equals `saved` if every group saves all or none of its frames, and is much less if
    /// outcomes within a group are independent.
    pub alike: f64,
}

/// Hit rates of every class of frames: color, [`NameMatch`] and [`AccessClass`].
#[derive(Clone, PartialEq, Debug)]
pub struct HitRates {
    classes: Vec<ClassHitRate>,
}

/// Why a file of hit rates cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum HitRatesError {
    /// The first line is not the header.
    #[error("the first line is not `{HEADER}`")]
    Header,
    /// A line has too few or too many fields.
    #[error("line {line}: eight fields are needed")]
    Fields {
        /// Line, from 1.
        line: usize,
    },
    /// An unknown color, name match or access class.
    #[error("line {line}: {source}")]
    Name {
        /// Line, from 1.
        line: usize,
        /// The unknown name.
        source: UnknownName,
    },
    /// A count that is not a number from 0 to 10^12, or that exceeds the count that contains it.
    #[error(
        "line {line}: counts are numbers from 0 to 10^12, shared and saved at most hashed, \
         diverged at most shared, alike at most saved"
    )]
    Count {
        /// Line, from 1.
        line: usize,
    },
}

impl Default for HitRates {
    /// Hit rates without data.
    fn default() -> Self {
        Self { classes: vec![ClassHitRate::default(); CLASSES] }
    }
}

impl HitRates {
    /// The shipped hit rates, learned from guests with Debian's kernels 5.10 to 7.2.
    #[must_use]
    pub fn shipped() -> Self {
        // A test parses this file, so that the default is never used.
        Self::parse(SHIPPED).unwrap_or_default()
    }

    /// Parses comma-separated values in the format of [`to_text`](Self::to_text). Lines that start
    /// with `#` are skipped.
    ///
    /// # Errors
    /// [`HitRatesError`], with the line number.
    pub fn parse(text: &str) -> Result<Self, HitRatesError> {
        let mut hit_rates = Self::default();
        let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.starts_with('#'));
        if lines.next().map(|(_, line)| line.trim()) != Some(HEADER) {
            return Err(HitRatesError::Header);
        }
        for (line, text) in lines.filter(|(_, text)| !text.trim().is_empty()) {
            let mut fields = text.split(',').map(str::trim);
            let mut field = || fields.next().ok_or(HitRatesError::Fields { line });
            let name = |source| HitRatesError::Name { line, source };
            let color: Color = field()?.parse().map_err(name)?;
            let name_match: NameMatch = field()?.parse().map_err(name)?;
            let access: AccessClass = field()?.parse().map_err(name)?;
            let mut count = || {
                let count: Option<f64> = field()?.parse().ok();
                let count = count.filter(|count| (0.0..=MAX_HASHES).contains(count));
                count.ok_or(HitRatesError::Count { line })
            };
            let found = ClassHitRate {
                hashed: count()?,
                shared: count()?,
                saved: count()?,
                diverged: count()?,
                alike: count()?,
            };
            if fields.next().is_some() {
                return Err(HitRatesError::Fields { line });
            }
            let most = found.shared.max(found.saved);
            let is_part = found.diverged <= found.shared && found.alike <= found.saved;
            let class = Class::of(color, name_match, access);
            // Lines of one class add up.
            let all = hit_rates.get(class).hashed + found.hashed;
            if most > found.hashed || !is_part || all > MAX_HASHES {
                return Err(HitRatesError::Count { line });
            }
            hit_rates.add(class, &found);
        }
        Ok(hit_rates)
    }

    /// Formats the hit rates, without classes that have no data.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for (color, name_match, access, found) in self.iter() {
            let ClassHitRate { hashed, shared, saved, diverged, alike } = found;
            let (saved, alike) = (tenths(saved), tenths(alike));
            let _ = writeln!(
                text,
                "{color},{name_match},{access},{hashed},{shared},{saved},{diverged},{alike}"
            );
        }
        text
    }

    /// The classes that have data. Pages of files are under [`Color::FileCache`], mapped or not.
    pub fn iter(&self) -> impl Iterator<Item = (Color, NameMatch, AccessClass, ClassHitRate)> + '_ {
        (0..).zip(&self.classes).filter(|(_, found)| found.hashed > 0.0).map(|(number, found)| {
            let (color, name_match, access) = Class(number).parts();
            (color, name_match, access, *found)
        })
    }

    /// Adds the hit rates of another guest or host.
    pub fn merge(&mut self, other: &Self) {
        for (number, found) in (0..).zip(&other.classes) {
            self.add(Class(number), found);
        }
    }

    pub(super) fn get(&self, class: Class) -> ClassHitRate {
        self.classes.get(usize::from(class.0)).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, class: Class, found: &ClassHitRate) {
        if let Some(known) = self.classes.get_mut(usize::from(class.0)) {
            known.hashed += found.hashed;
            known.shared += found.shared;
            known.saved += found.saved;
            known.diverged += found.diverged;
            known.alike += found.alike;
        }
    }
}

/// Rounds down to tenths, so that no count exceeds the one that contains it.
fn tenths(count: f64) -> f64 {
    (count * 10.0).floor() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_hit_rates_are_valid_and_predictive() {
        let shipped = HitRates::parse(SHIPPED).unwrap();
        let yield_of = |color, name_match| {
            let all =
                AccessClass::ALL.map(|access| shipped.get(Class::of(color, name_match, access)));
            let sum = |of: fn(&ClassHitRate) -> f64| all.iter().map(of).sum::<f64>();
            sum(|found| found.saved) / sum(|found| found.hashed)
        };
        let same = yield_of(Color::FileCode, NameMatch::SameFile);
        assert!(same > 0.4, "{same}");
        assert!(same > 5.0 * yield_of(Color::Slab, NameMatch::Namesake));
        assert_eq!(HitRates::parse(&shipped.to_text()).map(|y| y.to_text()), Ok(shipped.to_text()));
    }

    #[test]
    fn bad_lines_are_named() {
        let parse = |lines: &str| HitRates::parse(&format!("# made\n{HEADER}\n{lines}"));
        assert_eq!(HitRates::parse("color\n"), Err(HitRatesError::Header));
        assert!(parse("slab,none,cold,5,2,1.5,1,0.5\n\n# rest\n").is_ok());
        assert_eq!(parse("slab,none,cold,5,2\n"), Err(HitRatesError::Fields { line: 3 }));
        assert_eq!(parse("slab,none,cold,5,2,1,0,0,0\n"), Err(HitRatesError::Fields { line: 3 }));
        for wrong in [
            "x,2,1,0,0",
            "5,6,1,0,0",
            "5,2,1,3,0",
            "5,2,1,0,2",
            "NaN,0,0,0,0",
            "inf,0,0,0,0",
            "-1,0,0,0,0",
        ] {
            let found = parse(&format!("slab,none,cold,{wrong}\n"));
            assert_eq!(found, Err(HitRatesError::Count { line: 3 }), "{wrong}");
        }
        let twice = "slab,none,cold,1e12,0,0,0,0\n".repeat(2);
        assert_eq!(
            parse(&twice),
            Err(HitRatesError::Count { line: 4 }),
            "what two lines add up to"
        );
        let error = parse("mauve,none,cold,5,2,1,0,0\n").unwrap_err().to_string();
        assert_eq!(error, "line 3: no color is called `mauve`");
    }

    #[test]
    fn classes_come_apart_as_they_were_put_together() {
        for color in Color::ALL {
            for name_match in NameMatch::ALL {
                for access in AccessClass::ALL {
                    let (back, same, as_hot) = Class::of(color, name_match, access).parts();
                    assert_eq!(same, name_match);
                    assert!((back, as_hot) == (color, access) || back == Color::FileCache);
                }
            }
        }
        let mut hit_rates = HitRates::default();
        let one = ClassHitRate { hashed: 4.0, shared: 2.0, saved: 1.0, diverged: 1.0, alike: 0.5 };
        hit_rates.add(Class::of(Color::Slab, NameMatch::None, AccessClass::Cold), &one);
        hit_rates.merge(&hit_rates.clone());
        assert_eq!(hit_rates.iter().next().map(|(.., found)| found.hashed), Some(8.0));
    }
}
