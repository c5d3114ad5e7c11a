//! A frame that is named on the command line.

use kaleidoscope_core::addr::{Gfn, Gpa};

/// One frame, by its address or by its number.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct FrameArgs {
    /// Guest-physical address, decimal or hexadecimal (0x...); any address in the frame
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| number(text).map(Gpa))]
    gpa: Option<Gpa>,
    /// Guest frame number, decimal or hexadecimal (0x...)
    #[arg(long, value_name = "NUMBER", value_parser = |text: &str| number(text).map(Gfn))]
    gfn: Option<Gfn>,
}

impl FrameArgs {
    /// The frame's number.
    pub(crate) fn gfn(self) -> Gfn {
        let of_address = || self.gpa.map_or(Gfn(0), Gpa::gfn);
        self.gfn.unwrap_or_else(of_address)
    }
}

fn number(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    let parsed = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    parsed.map_err(|e| format!("{e}; write 0x1f3a000 or 32743424"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        frame: FrameArgs,
    }

    fn frame(words: &[&str]) -> Option<Gfn> {
        let line = Line::try_parse_from(["explain"].iter().chain(words));
        line.ok().map(|line| line.frame.gfn())
    }

    #[test]
    fn a_frame_has_an_address_or_a_number() {
        assert_eq!(frame(&["--gpa", "0x1f3a_fff"]), Some(Gfn(0x1f3a)));
        assert_eq!(frame(&["--gpa", "32743424"]), Some(Gfn(0x1f3a)));
        assert_eq!(frame(&["--gfn", "0x1f3a"]), Some(Gfn(0x1f3a)));
        for words in [&[][..], &["--gpa", "1", "--gfn", "1"], &["--gfn", "1f3a"], &["--gpa", ""]] {
            assert_eq!(frame(words), None, "{words:?}");
        }
    }
}
