//! The access class of a frame, derived from its temperature.

use crate::color::{Temperature, UnknownName};
use std::fmt;
use std::str::FromStr;

/// How a frame was used recently. Applies to all memory but file pages. A page that was written to
/// is likely to be written again and is equal to fewer other pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum AccessClass {
    /// No hint of use.
    Cold = 0,
    /// Read or executed: an accessed bit, or hints from the guest kernel.
    Used = 1,
    /// Written by a process: a dirty bit.
    Written = 2,
}

impl AccessClass {
    /// Every access class, in numeric order.
    pub const ALL: [Self; 3] = [Self::Cold, Self::Used, Self::Written];

    /// The access class of a frame with this temperature.
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
        } else if used.into_iter().any(|hint| temperature.contains(hint)) {
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

impl fmt::Display for AccessClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for AccessClass {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|access| access.name() == name);
        found.ok_or_else(|| UnknownName::new("access class", name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_writing_outweighs_reading() {
        for (number, access) in AccessClass::ALL.into_iter().enumerate() {
            assert_eq!(access as usize, number);
            assert_eq!(access.name().parse(), Ok(access));
        }
        assert!("hot".parse::<AccessClass>().is_err());
        assert_eq!(
            AccessClass::of(Temperature::ACCESSED | Temperature::DIRTY),
            AccessClass::Written
        );
        assert_eq!(AccessClass::of(Temperature::ACTIVE), AccessClass::Used);
        assert_eq!(
            AccessClass::of(Temperature::COMMON),
            AccessClass::Cold,
            "no hint of use in this guest"
        );
    }
}
