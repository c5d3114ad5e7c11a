//! What a frame's temperature says about sharing it.

use crate::color::{Temperature, UnknownName};
use std::fmt;
use std::str::FromStr;

/// How a frame was used lately, as far as it matters for sharing: a page that was written to will be again, and is equal to fewer others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Heat {
    /// No sign of use.
    Cold = 0,
    /// It was read or run: an accessed bit, or the kernel's own signs.
    Used = 1,
    /// A process wrote to it: a dirty bit.
    Written = 2,
}

impl Heat {
    /// Every heat, in numeric order.
    pub const ALL: [Self; 3] = [Self::Cold, Self::Used, Self::Written];

    /// The heat of a frame with these signs.
    #[must_use]
    pub fn of(temperature: Temperature) -> Self {
        let used = [
            Temperature::ACCESSED,
            Temperature::ACTIVE,
            Temperature::REFERENCED,
            Temperature::RECENT_TASK,
        ];
        if temperature.contains(Temperature::DIRTY) {
            Self::Written
        } else if used.into_iter().any(|sign| temperature.contains(sign)) {
            Self::Used
        } else {
            Self::Cold
        }
    }

    /// The name used in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Used => "used",
            Self::Written => "written",
        }
    }
}

impl fmt::Display for Heat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Heat {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|heat| heat.name() == name);
        found.ok_or_else(|| UnknownName::new("heat", name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_writing_outweighs_reading() {
        for (number, heat) in Heat::ALL.into_iter().enumerate() {
            assert_eq!(heat as usize, number);
            assert_eq!(heat.name().parse(), Ok(heat));
        }
        assert!("hot".parse::<Heat>().is_err());
        assert_eq!(Heat::of(Temperature::ACCESSED | Temperature::DIRTY), Heat::Written);
        assert_eq!(Heat::of(Temperature::ACTIVE), Heat::Used);
        assert_eq!(Heat::of(Temperature::COMMON), Heat::Cold, "no sign of this guest's use");
    }
}
