use super::strategies::Result as Done;
use crate::failure::Failure;
use std::path::Path;
pub(super) fn write(_path: &Path, _results: &[Done]) -> Result<(), Failure> { Ok(()) }
