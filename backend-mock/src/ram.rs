//! Little-endian numbers in guest memory.

use crate::MockError;
use kaleidoscope_core::addr::Gpa;
use kaleidoscope_core::memory::{GuestMemory, VecMemory};

/// Reads a little-endian number of 64 bits.
pub(crate) fn read_u64(memory: &VecMemory, gpa: Gpa) -> Result<u64, MockError> {
    let mut bytes = [0; 8];
    memory.read(gpa, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Reads a little-endian number of 32 bits.
pub(crate) fn read_u32(memory: &VecMemory, gpa: Gpa) -> Result<u32, MockError> {
    let mut bytes = [0; 4];
    memory.read(gpa, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Writes the `size` low bytes of `value` (8 at most) in little-endian order.
pub(crate) fn write_uint(
    memory: &mut VecMemory,
    gpa: Gpa,
    size: usize,
    value: u64,
) -> Result<(), MockError> {
    let bytes = value.to_le_bytes();
    memory.write(gpa, bytes.get(..size).unwrap_or(&bytes))?;
    Ok(())
}
