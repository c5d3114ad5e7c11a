//! Identities of clones.

use crate::color::UnknownName;
use std::fmt;
use std::str::FromStr;

/// The identity of a clone: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloneId(pub [u8; 16]);

impl CloneId {
    /// A new identity, from the system's random numbers.
    ///
    /// # Errors
    /// [`std::io::Error`] when the system has no random numbers (neither `getrandom` nor
    /// `/dev/urandom`).
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(std::io::Error::from)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for CloneId {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CloneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloneId({self})")
    }
}

impl FromStr for CloneId {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let error = || UnknownName::with_advice("clone id", text, "32 hexadecimal digits");
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(error());
        }
        u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_round_trip() {
        let (a, b) = (CloneId::random().unwrap(), CloneId::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.to_string().parse(), Ok(a));
        assert!("+0000000000000000000000000000000".parse::<CloneId>().is_err());
        let error = "00".parse::<CloneId>().unwrap_err().to_string();
        assert_eq!(error, "`00` is no clone id: write 32 hexadecimal digits");
    }
}
