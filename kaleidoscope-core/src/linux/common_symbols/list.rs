//! Text format of a list of symbols.
//!
//! Lines that start with `#` are comments. Every other line is a symbol, sorted by name: a digit,
//! its heat in tenths; a letter, the number of bytes that its name shares with the previous one
//! (`a` none, `z` 25); and the rest of the name. The second and later pages of a symbol that covers
//! several pages are named `NAME+1`, `NAME+2`, ...

use crate::linux::kallsyms::MAX_NAME_BYTES;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use thiserror::Error;

/// Maximum length of a list, in bytes.
const MAX_TEXT_BYTES: usize = 4 << 20;

/// Maximum number of symbols in a list, which is more than the relevant functions of any kernel.
const MAX_SYMBOLS: usize = 1 << 18;

/// Why a list of symbols cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum CommonSymbolsError {
    /// The text is too long, or has too many symbols.
    #[error("list of symbols with {found} {what}, more than the limit of {limit}")]
    Limit {
        /// The unit that is limited.
        what: &'static str,
        /// The amount found; counting stops at the first excess.
        found: usize,
        /// The maximum.
        limit: usize,
    },
    /// A line is malformed.
    #[error("list of symbols, line {line}: {problem}")]
    Line {
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Calls `found` with each symbol and its heat in tenths, 1 to 9.
pub(super) fn read(text: &str, mut found: impl FnMut(&[u8], u8)) -> Result<(), CommonSymbolsError> {
    let limit = |what, found, limit| Err(CommonSymbolsError::Limit { what, found, limit });
    if text.len() > MAX_TEXT_BYTES {
        return limit("bytes", text.len(), MAX_TEXT_BYTES);
    }
    let mut name: Vec<u8> = Vec::new();
    let mut count = 0_usize;
    for (line, entry) in (1..).zip(text.lines()) {
        if entry.starts_with('#') {
            continue;
        }
        let wrong = |problem| CommonSymbolsError::Line { line, problem };
        let (tenths, shared, rest) = match entry.as_bytes() {
            [digit @ b'1'..=b'9', letter @ b'a'..=b'z', rest @ ..] => {
                (digit.wrapping_sub(b'0'), usize::from(letter.wrapping_sub(b'a')), rest)
            }
            _ => return Err(wrong("neither a comment nor a digit from 1 to 9 and a letter")),
        };
        if shared > name.len() {
            return Err(wrong("the shared prefix is longer than the previous name"));
        }
        name.truncate(shared);
        if name.len().saturating_add(rest.len()) > MAX_KEY_BYTES {
            return Err(wrong("the name is too long"));
        }
        if rest.is_empty() || !rest.iter().all(u8::is_ascii_graphic) {
            return Err(wrong("a name must be one or more printable ASCII characters"));
        }
        name.extend_from_slice(rest);
        count = count.saturating_add(1);
        if count > MAX_SYMBOLS {
            return limit("symbols", count, MAX_SYMBOLS);
        }
        found(&name, tenths);
    }
    Ok(())
}

/// Maximum length of a name in bytes: a symbol's name, and the suffix of its page.
const MAX_KEY_BYTES: usize = MAX_NAME_BYTES + 3;

/// A list of symbols sorted by name, each with its heat in tenths, 1 to 9.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SymbolScores(BTreeMap<String, u8>);

impl SymbolScores {
    /// Reads a list in the format of [`to_text`](Self::to_text). If a name occurs twice, the first
    /// entry counts.
    ///
    /// # Errors
    /// [`CommonSymbolsError`], with the line number of a malformed line.
    pub fn parse(text: &str) -> Result<Self, CommonSymbolsError> {
        let mut heats = BTreeMap::new();
        read(text, |name, tenths| {
            heats.entry(String::from_utf8_lossy(name).into_owned()).or_insert(tenths);
        })?;
        Ok(Self(heats))
    }

    /// The list as text, preceded by a comment.
    #[must_use]
    pub fn to_text(&self, comment: &str) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        for line in comment.lines() {
            let _ = writeln!(out, "# {line}");
        }
        let mut before: &str = "";
        for (name, tenths) in &self.0 {
            let same = before.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
            let letters = (0..).zip('a'..='z').take(same.saturating_add(1));
            let (shared, letter) = letters.last().unwrap_or((0, 'a'));
            let _ = writeln!(out, "{tenths}{letter}{}", name.get(shared..).unwrap_or_default());
            before = name;
        }
        out
    }

    /// All symbols in order of name, with heats in tenths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u8)> {
        self.0.iter().map(|(name, &tenths)| (name.as_str(), tenths))
    }

    /// Number of symbols.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no symbols.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, u8)> for SymbolScores {
    /// Omits names that the text format cannot hold and symbols with a heat of 0; limits heats to 9
    /// tenths.
    fn from_iter<I: IntoIterator<Item = (String, u8)>>(symbols: I) -> Self {
        let is_fit = |name: &str| {
            (1..=MAX_KEY_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
        };
        let fit = symbols.into_iter().filter(|(name, tenths)| *tenths > 0 && is_fit(name));
        Self(fit.map(|(name, tenths)| (name, tenths.min(9))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_sorted_and_shares_beginnings() {
        let heats =
            [("schedule", 9), ("sched_clock", 9), ("jiffies", 12), ("jiffies+1", 3), ("b", 0)];
        let heats: SymbolScores =
            heats.map(|(name, heat)| (name.to_owned(), heat)).into_iter().collect();
        let text = heats.to_text("Two\nlines.");
        assert_eq!(text, "# Two\n# lines.\n9ajiffies\n3h+1\n9asched_clock\n9fule\n");
        assert_eq!(SymbolScores::parse(&text), Ok(heats));
    }

    #[test]
    fn errors_name_the_line() {
        let error = |text: &str| SymbolScores::parse(text).unwrap_err().to_string();
        let at = |line, problem: &str| format!("list of symbols, line {line}: {problem}");
        let neither = "neither a comment nor a digit from 1 to 9 and a letter";
        for line in ["", "0aschedule", "9", "schedule", "9Aschedule"] {
            assert_eq!(error(&format!("# x\n{line}\n")), at(2, neither));
        }
        let shares = "the shared prefix is longer than the previous name";
        assert_eq!(error("9ab\n9cc\n"), at(2, shares));
        let graphic = "a name must be one or more printable ASCII characters";
        assert_eq!(error("9a\n"), at(1, graphic));
        assert_eq!(error("9af\u{fc}r\n"), at(1, graphic));
        assert_eq!(error(&format!("9a{}\n", "x".repeat(516))), at(1, "the name is too long"));
        let long = "#".repeat(MAX_TEXT_BYTES + 1);
        assert!(error(&long).contains("4194305 bytes, more than the limit of 4194304"));
        let many = "1ab\n".repeat(MAX_SYMBOLS + 1);
        assert!(error(&many).contains("262145 symbols, more than the limit of 262144"));
    }

    proptest! {
        #[test]
        fn lists_round_trip(
            symbols in prop::collection::btree_map("[!-~]{1,40}|[ab]{20,40}", 1_u8..10, 0..50),
        ) {
            let heats: SymbolScores = symbols.into_iter().collect();
            prop_assert_eq!(SymbolScores::parse(&heats.to_text("A test.")), Ok(heats));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(#?[1-9][a-c][ -~]{0,4}\n){0,9}|.{0,60}") {
            if let Ok(heats) = SymbolScores::parse(&text) {
                let is_valid = |(name, heat): (&str, u8)| !name.is_empty() && (1..10).contains(&heat);
                prop_assert!(heats.iter().all(is_valid));
            }
        }
    }
}
