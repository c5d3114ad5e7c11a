//! What hashing has brought so far, by class of frames: what a host learns, and what is shipped.

use super::{Heat, Relation};
use crate::color::{Color, UnknownName};
use std::fmt::Write;
use thiserror::Error;

/// What was learned from real guests; `kaleidoscope dedup --learn` writes such a file.
const SHIPPED: &str = include_str!("yields.csv");

/// The first line of a file.
const HEADER: &str = "color,relation,heat,hashed,shared,saved,diverged,alike";

/// Classes: every color with every relation and every heat.
const CLASSES: usize = Color::ALL.len() * Relation::ALL.len() * Heat::ALL.len();

/// A color, a relation and a heat: frames that are expected to be alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Class(u16);

impl Class {
    /// The class of a frame. Files are one color here, and neither hot nor cold: which of their pages happen to be mapped or read differs from
    /// guest to guest, and their bytes do not care.
    pub(super) fn of(color: Color, relation: Relation, heat: Heat) -> Self {
        let is_file = matches!(color, Color::FileCode | Color::FileMapped | Color::FileCache);
        let (color, heat) = if is_file { (Color::FileCache, Heat::Cold) } else { (color, heat) };
        Self((color as u16 * RELATIONS + relation as u16) * HEATS + heat as u16)
    }

    fn parts(self) -> (Color, Relation, Heat) {
        let heat = Heat::ALL.get(usize::from(self.0 % HEATS)).copied();
        let relation = Relation::ALL.get(usize::from(self.0 / HEATS % RELATIONS)).copied();
        let color = u8::try_from(self.0 / HEATS / RELATIONS).ok().and_then(Color::from_u8);
        (color.unwrap_or_default(), relation.unwrap_or(Relation::None), heat.unwrap_or(Heat::Cold))
    }
}

/// Most hashes of a class in a file: those of 4 PiB of memory.
const MOST: f64 = 1e12;

/// In what a class's number is made of.
const RELATIONS: u16 = 8;
const HEATS: u16 = 3;
const _: () = assert!(Relation::ALL.len() == 8 && Heat::ALL.len() == 3);

/// What came of the hashes of one class.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ClassYield {
    /// Frames that were hashed.
    pub hashed: f64,
    /// Of these, frames that have an equal one.
    pub shared: f64,
    /// Pages saved: of n equal ones, each counts as (n - 1) / n.
    pub saved: f64,
    /// Of the shared frames, those that were written to later.
    pub diverged: f64,
    /// How much frames that lie together share one fate: the sum, over pieces of regions, of what each saved squared and divided by
    /// what was hashed of it. It is all of `saved` where a piece saves everything or nothing, and much less where luck decides.
    pub alike: f64,
}

/// What hashing has brought so far, for every class of frames: color, [`Relation`] to what is known elsewhere, and [`Heat`].
#[derive(Clone, PartialEq, Debug)]
pub struct Yields {
    classes: Vec<ClassYield>,
}

/// Why a file of yields cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum YieldsError {
    /// The first line is not the header.
    #[error("the first line is not `{HEADER}`")]
    Header,
    /// A line has too few or too many fields.
    #[error("line {line}: eight fields are needed")]
    Fields {
        /// Line, from 1.
        line: usize,
    },
    /// A color, a relation or a heat that does not exist.
    #[error("line {line}: {source}")]
    Name {
        /// Line, from 1.
        line: usize,
        /// What is not known.
        source: UnknownName,
    },
    /// A count that is no number from 0 to 10^12, or larger than what it is a part of.
    #[error(
        "line {line}: counts are numbers from 0 to 10^12, shared and saved at most hashed, diverged at most shared, alike at most saved"
    )]
    Count {
        /// Line, from 1.
        line: usize,
    },
}

impl Default for Yields {
    /// Nothing has been learned.
    fn default() -> Self {
        Self { classes: vec![ClassYield::default(); CLASSES] }
    }
}

impl Yields {
    /// What is shipped: learned from guests with Debian's kernels 5.10 to 7.2.
    #[must_use]
    pub fn shipped() -> Self {
        // A test reads it.
        Self::parse(SHIPPED).unwrap_or_default()
    }

    /// Reads yields: comma-separated values as [`to_text`](Self::to_text) writes them; lines that start with `#` are left out.
    ///
    /// # Errors
    /// [`YieldsError`], naming the line.
    pub fn parse(text: &str) -> Result<Self, YieldsError> {
        let mut yields = Self::default();
        let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !line.starts_with('#'));
        if lines.next().map(|(_, line)| line.trim()) != Some(HEADER) {
            return Err(YieldsError::Header);
        }
        for (line, text) in lines.filter(|(_, text)| !text.trim().is_empty()) {
            let mut fields = text.split(',').map(str::trim);
            let mut field = || fields.next().ok_or(YieldsError::Fields { line });
            let name = |source| YieldsError::Name { line, source };
            let color: Color = field()?.parse().map_err(name)?;
            let relation: Relation = field()?.parse().map_err(name)?;
            let heat: Heat = field()?.parse().map_err(name)?;
            let mut count = || {
                let count: Option<f64> = field()?.parse().ok();
                let count = count.filter(|count| (0.0..=MOST).contains(count));
                count.ok_or(YieldsError::Count { line })
            };
            let found = ClassYield {
                hashed: count()?,
                shared: count()?,
                saved: count()?,
                diverged: count()?,
                alike: count()?,
            };
            if fields.next().is_some() {
                return Err(YieldsError::Fields { line });
            }
            let most = found.shared.max(found.saved);
            let is_part = found.diverged <= found.shared && found.alike <= found.saved;
            let class = Class::of(color, relation, heat);
            // Lines of one class add up.
            let all = yields.get(class).hashed + found.hashed;
            if most > found.hashed || !is_part || all > MOST {
                return Err(YieldsError::Count { line });
            }
            yields.add(class, &found);
        }
        Ok(yields)
    }

    /// The yields as text, without classes of which nothing is known.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for (color, relation, heat, found) in self.iter() {
            let ClassYield { hashed, shared, saved, diverged, alike } = found;
            let (saved, alike) = (tenths(saved), tenths(alike));
            let _ = writeln!(
                text,
                "{color},{relation},{heat},{hashed},{shared},{saved},{diverged},{alike}"
            );
        }
        text
    }

    /// The classes of which something is known. Pages of files are under [`Color::FileCache`], mapped or not.
    pub fn iter(&self) -> impl Iterator<Item = (Color, Relation, Heat, ClassYield)> + '_ {
        (0..).zip(&self.classes).filter(|(_, found)| found.hashed > 0.0).map(|(number, found)| {
            let (color, relation, heat) = Class(number).parts();
            (color, relation, heat, *found)
        })
    }

    /// Adds what others learned.
    pub fn merge(&mut self, other: &Self) {
        for (number, found) in (0..).zip(&other.classes) {
            self.add(Class(number), found);
        }
    }

    pub(super) fn get(&self, class: Class) -> ClassYield {
        self.classes.get(usize::from(class.0)).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, class: Class, found: &ClassYield) {
        if let Some(known) = self.classes.get_mut(usize::from(class.0)) {
            known.hashed += found.hashed;
            known.shared += found.shared;
            known.saved += found.saved;
            known.diverged += found.diverged;
            known.alike += found.alike;
        }
    }
}

/// Cut to tenths, so that what is a part of something stays one.
fn tenths(count: f64) -> f64 {
    (count * 10.0).floor() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_can_be_read_and_says_something() {
        let shipped = Yields::parse(SHIPPED).unwrap();
        let yield_of = |color, relation| {
            let all = Heat::ALL.map(|heat| shipped.get(Class::of(color, relation, heat)));
            let sum = |of: fn(&ClassYield) -> f64| all.iter().map(of).sum::<f64>();
            sum(|found| found.saved) / sum(|found| found.hashed)
        };
        let same = yield_of(Color::FileCode, Relation::SameFile);
        assert!(same > 0.4, "{same}");
        assert!(same > 5.0 * yield_of(Color::Slab, Relation::Namesake));
        assert_eq!(Yields::parse(&shipped.to_text()).map(|y| y.to_text()), Ok(shipped.to_text()));
    }

    #[test]
    fn bad_lines_are_named() {
        let parse = |lines: &str| Yields::parse(&format!("# made\n{HEADER}\n{lines}"));
        assert_eq!(Yields::parse("color\n"), Err(YieldsError::Header));
        assert!(parse("slab,none,cold,5,2,1.5,1,0.5\n\n# rest\n").is_ok());
        assert_eq!(parse("slab,none,cold,5,2\n"), Err(YieldsError::Fields { line: 3 }));
        assert_eq!(parse("slab,none,cold,5,2,1,0,0,0\n"), Err(YieldsError::Fields { line: 3 }));
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
            assert_eq!(found, Err(YieldsError::Count { line: 3 }), "{wrong}");
        }
        let twice = "slab,none,cold,1e12,0,0,0,0\n".repeat(2);
        assert_eq!(parse(&twice), Err(YieldsError::Count { line: 4 }), "what two lines add up to");
        let error = parse("mauve,none,cold,5,2,1,0,0\n").unwrap_err().to_string();
        assert_eq!(error, "line 3: no color is called `mauve`");
    }

    #[test]
    fn classes_come_apart_as_they_were_put_together() {
        for color in Color::ALL {
            for relation in Relation::ALL {
                for heat in Heat::ALL {
                    let (back, same, as_hot) = Class::of(color, relation, heat).parts();
                    assert_eq!(same, relation);
                    assert!((back, as_hot) == (color, heat) || back == Color::FileCache);
                }
            }
        }
        let mut yields = Yields::default();
        let one = ClassYield { hashed: 4.0, shared: 2.0, saved: 1.0, diverged: 1.0, alike: 0.5 };
        yields.add(Class::of(Color::Slab, Relation::None, Heat::Cold), &one);
        yields.merge(&yields.clone());
        assert_eq!(yields.iter().next().map(|(.., found)| found.hashed), Some(8.0));
    }
}
