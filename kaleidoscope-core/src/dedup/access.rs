//! What a frame's temperature says about sharing it.

use crate::color::{Temperature, UnknownName};
use std::fmt;
use std::str::FromStr;

/// How a frame was used lately, as far as it matters for sharing: a page that was written to will
/// be again, and is equal to fewer others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum AccessClass {
    /// No sign of use.
    Cold = 0,
    /// It was read or run: an accessed bit, or the kernel's own signs.
    Used = 1,
    /// A process wrote to it: a dirty bit.
    Written = 2,
}

impl AccessClass {
    /// Every access, in numeric order.
    pub const ALL: [Self; 3] = [Self::Cold, Self::Used, Self::Written];

    /// The access of a frame with these signs.
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

impl fmt::Display for AccessClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for AccessClass {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::ALL.into_iter().find(|access| access.name() == name);
        found.ok_or_else(|| UnknownName::new("access", name))
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
            "no sign of this guest's use"
        );
    }
}
