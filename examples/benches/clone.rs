//! `cargo bench`: the table of `kaleidoscope bench`.

use std::process::Command;

fn main() -> std::io::Result<()> {
    let status = Command::new(env!("CARGO_BIN_EXE_kaleidoscope")).arg("bench").status()?;
    if !status.success() {
        return Err(std::io::Error::other(format!("kaleidoscope bench: {status}")));
    }
    Ok(())
}
