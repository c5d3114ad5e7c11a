//! Names from guest memory, made fit to be shown.

/// Bytes as text. What is no UTF-8, and characters that control a terminal, become U+FFFD: whoever prints a name of a hostile
/// guest must not find his terminal reprogrammed.
pub(super) fn text(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    if text.contains(char::is_control) {
        text = text.replace(char::is_control, "\u{fffd}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_safe() {
        assert_eq!(text(b"a\x1b[2Jb\x00\xff"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
        assert_eq!(text("caf\u{e9} \u{9b}".as_bytes()), "caf\u{e9} \u{fffd}");
    }
}
