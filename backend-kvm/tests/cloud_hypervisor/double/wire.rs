//! Messages by hand.

use std::io::{Read, Result, Write};

/// A request's command and length; `None` at the end of the connection.
pub fn request(stream: &mut impl Read) -> Option<(u16, u64)> {
    let mut bytes = [0; 16];
    stream.read_exact(&mut bytes).ok()?;
    let length = u64::from_le_bytes(bytes[8..].try_into().unwrap());
    Some((u16::from_le_bytes([bytes[0], bytes[1]]), length))
}

/// Sends a request.
pub fn send(stream: &mut impl Write, command: u16, payload: &[u8]) -> Result<()> {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&command.to_le_bytes());
    bytes[8..].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    stream.write_all(&bytes)?;
    stream.write_all(payload)
}

/// Sends an answer without a payload.
pub fn answer(stream: &mut impl Write, status: u16) -> Result<()> {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&status.to_le_bytes());
    stream.write_all(&bytes)
}

/// An answer's status and length; `None` at the end of the connection.
pub fn answered(stream: &mut impl Read) -> Option<(u16, u64)> {
    request(stream)
}
