//! Ticks of axes.

use std::ops::Range;

/// The values 1, 2 and 5 times powers of ten within a range of positive numbers. If these are more
/// than 12, only the powers of ten.
pub(super) fn logarithmic(range: &Range<f64>) -> Vec<f64> {
    let decades = || (-9..=9).map(|exponent| 10f64.powi(exponent));
    let within = |tick: &f64| range.contains(tick);
    let fine = decades().flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * decade));
    let fine: Vec<f64> = fine.filter(within).collect();
    if fine.len() > 12 { decades().filter(within).collect() } else { fine }
}

/// A tick's text, without trailing zeros.
pub(super) fn format(tick: f64) -> String {
    let text = format!("{tick:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let texts = |range| logarithmic(&range).into_iter().map(format).collect::<Vec<_>>();
        assert_eq!(texts(0.15..6.0), ["0.2", "0.5", "1", "2", "5"]);
        assert_eq!(texts(0.0005..3000.0), ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]);
    }
}
