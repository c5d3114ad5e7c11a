//! Names of the numbers in a file.
//!
//! Files list the name of each number, so that enumerations of this program can change without
//! changing the meaning of older files.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ManifestError;
use super::cbor::Reader;

/// Maximum number of names in a list of the palette, whose numbers are bytes.
const MAX_NAMES: usize = 256;

/// Maximum bytes of a name of the palette.
const MAX_NAME_LEN: usize = 64;

/// The value of each number, or its name if this program does not know it.
pub(crate) struct Names<T>(Vec<Result<T, String>>);

impl<T: Copy> Names<T> {
    pub(crate) fn new(names: &[&str], find: impl Fn(&str) -> Option<T>) -> Self {
        Self(names.iter().map(|n| find(n).ok_or_else(|| (*n).to_owned())).collect())
    }

    pub(crate) fn get(&self, number: u8) -> Result<T, String> {
        match self.0.get(usize::from(number)) {
            Some(Ok(value)) => Ok(*value),
            Some(Err(name)) => Err(format!("`{name}` is not known to this program")),
            None => Err(format!("number {number} is not in the palette")),
        }
    }
}

/// Reads a list of names, whose values `find` knows.
pub(crate) fn read_names<T: Copy>(
    reader: &mut Reader<'_>,
    find: impl Fn(&str) -> Option<T>,
) -> Result<Names<T>, ManifestError> {
    let count = reader.array()?;
    if count > MAX_NAMES {
        return Err(reader.error(format!("{count} names in a list of at most {MAX_NAMES}")));
    }
    let mut names = Vec::with_capacity(count);
    for _ in 0..count {
        let name = reader.text()?;
        if name.len() > MAX_NAME_LEN {
            return Err(reader.error(format!("a name of {} bytes before it", name.len())));
        }
        names.push(name);
    }
    Ok(Names::new(&names, find))
}
