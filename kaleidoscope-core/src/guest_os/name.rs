//! Names from guest memory, escaped for display.
//!
//! A file name may contain any bytes except a slash and a zero, and a hostile guest chooses them: a
//! line feed that starts a row of a table, or an escape sequence that controls a terminal. In
//! escaped names, such bytes are written `\x1b`, and the backslash itself `\\`. Escaping is
//! lossless: [`unescape`] returns the bytes.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Escapes bytes for display. Invalid UTF-8, and characters that control a terminal or the
/// direction of text, become `\xNN` for each byte; a backslash becomes `\\`.
///
/// ```
/// use kaleidoscope_core::guest_os::name::{escape, unescape};
/// let name = escape(b"caf\xc3\xa9\n\\ \xff");
/// assert_eq!(name, "caf\u{e9}\\x0a\\\\ \\xff");
/// assert_eq!(unescape(&name), b"caf\xc3\xa9\n\\ \xff");
/// ```
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c => push_shown(&mut out, c),
            }
        }
        push_bytes(&mut out, chunk.invalid());
    }
    out
}

/// The bytes of a name that [`escape`] wrote. A backslash that starts no escape stands for itself.
#[must_use]
pub fn unescape(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digit = |at: usize| {
            tail.get(at).and_then(|&byte| u8::try_from(char::from(byte).to_digit(16)?).ok())
        };
        let (byte, used) = match (first, tail.first()) {
            (b'\\', Some(b'\\')) => (b'\\', 1),
            (b'\\', Some(b'x')) => match digit(1).zip(digit(2)) {
                Some((high, low)) => (high << 4 | low, 3),
                None => (first, 0),
            },
            _ => (first, 0),
        };
        out.push(byte);
        rest = tail.get(used..).unwrap_or_default();
    }
    out
}

/// Makes untrusted text, such as a file's, safe to display: characters that [`escape`] would write
/// as `\xNN` are escaped, and everything else is unchanged. Names that are already escaped are
/// unchanged.
#[must_use]
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push_shown(&mut out, c));
    Cow::Owned(out)
}

/// Whether a character controls a terminal, ends a line, or changes the direction of text.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_shown(out: &mut String, c: char) {
    if is_hidden(c) {
        push_bytes(out, c.encode_utf8(&mut [0; 4]).as_bytes());
    } else {
        out.push(c);
    }
}

fn push_bytes(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(out, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn terminals_are_safe() {
        assert_eq!(escape(b"a\x1b[2Jb\x00\xff"), "a\\x1b[2Jb\\x00\\xff");
        assert_eq!(escape("caf\u{e9} \u{9b}".as_bytes()), "caf\u{e9} \\xc2\\x9b");
        assert_eq!(escape("a\u{202e}b".as_bytes()), "a\\xe2\\x80\\xaeb");
    }

    #[test]
    fn escapes_are_not_mistaken() {
        // The literal text of an escape differs from the byte that the escape denotes.
        assert_eq!(escape(b"\\x1b"), "\\\\x1b");
        assert_ne!(escape(b"\\x1b"), escape(b"\x1b"));
        assert_eq!(unescape("dev-disk\\x2duuid"), b"dev-disk-uuid");
        assert_eq!(unescape("a\\"), b"a\\");
        assert_eq!(unescape("\\xg1\\x1"), b"\\xg1\\x1");
    }

    #[test]
    fn names_are_not_escaped_twice() {
        let name = escape(b"a\n\\b");
        assert_eq!(shown(&name), name);
        assert_eq!(shown("a\n\\b"), "a\\x0a\\b");
    }

    proptest! {
        #[test]
        fn nothing_is_lost(
            bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), Just(b'\\'), Just(b'x')],
                0..40,
            ),
        ) {
            let name = escape(&bytes);
            prop_assert!(!name.contains(is_hidden));
            prop_assert_eq!(unescape(&name), bytes);
            prop_assert_eq!(shown(&name), &*name);
        }
    }
}
