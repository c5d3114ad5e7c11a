//! A command for each clone.

use super::{CloneHook, Guest, HookError};
use crate::clone::CloneId;
use std::ffi::OsString;
use std::process::Command;

/// Runs a command outside the guest once a clone runs, for example to connect it to a network under
/// its own address. The environment variable `KALEIDOSCOPE_CLONE` holds the clone's id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reconfigure {
    /// The program.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl CloneHook for Reconfigure {
    fn after_resume(&self, _clone: &dyn Guest, id: CloneId) -> Result<(), HookError> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env("KALEIDOSCOPE_CLONE", id.to_string());
        let program = self.program.display();
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(HookError::new(format!("{program}: {status}"))),
            Err(error) => Err(HookError::caused_by(format!("{program} cannot be run"), error)),
        }
    }
}
