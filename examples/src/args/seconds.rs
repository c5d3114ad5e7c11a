//! Times on the command line, in seconds.

use std::time::Duration;

/// Parses a number of seconds, which may be 0.
pub(crate) fn seconds(text: &str) -> Result<Duration, &'static str> {
    let number: Option<f64> = text.parse().ok();
    number.and_then(|n| Duration::try_from_secs_f64(n).ok()).ok_or("it is a number of seconds")
}

/// Parses a number of seconds above 0.
pub(crate) fn some_seconds(text: &str) -> Result<Duration, &'static str> {
    let time = seconds(text).ok().filter(|time| !time.is_zero());
    time.ok_or("it is a number of seconds above 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_have_a_fraction_and_no_sign() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for text in ["", "-1", "nan", "inf", "1s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(some_seconds("2"), Ok(Duration::from_secs(2)));
        assert!(some_seconds("0").is_err());
    }
}
