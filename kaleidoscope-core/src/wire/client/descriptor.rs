//! Fetches the descriptor that a clone starts from.

use super::connect::{ConnectError, Image, Welcomed, connect};
use super::{ClientOptions, Connector};
use crate::clone::ports::SourceError;
use crate::wire::protocol::{
    MAX_CHUNK, ProtocolError, Reply, ReplyLimits, ReplyReader, Violation, descriptor_request,
};
use std::io::IoSlice;
use std::time::Instant;
use thiserror::Error;

#[derive(Debug, Error)]
enum FetchError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("the descriptor has {0} bytes, more than {1}")]
    TooLarge(u32, u32),
    #[error("the server ended the connection: {0}")]
    Ended(String),
    #[error("the server does not respond")]
    Silent,
}

/// Fetches the descriptor from the first server that provides it, over a connection of its own.
pub(super) fn fetch(
    dial: &dyn Connector,
    options: &ClientOptions,
    image: Option<Image>,
) -> Result<Vec<u8>, SourceError> {
    let mut reasons = Vec::new();
    for replica in 0..dial.replicas() {
        match fetch_from(dial, replica, options, image) {
            Ok(descriptor) => return Ok(descriptor),
            Err(error) => reasons.push(format!("{}: {error}", dial.name(replica))),
        }
    }
    Err(SourceError::new(format!("no server provides the descriptor: {}", reasons.join("; "))))
}

fn fetch_from(
    dial: &dyn Connector,
    replica: usize,
    options: &ClientOptions,
    image: Option<Image>,
) -> Result<Vec<u8>, FetchError> {
    let Welcomed { mut sender, mut receiver, welcome, .. } =
        connect(dial, replica, options, image)?;
    let length = welcome.descriptor;
    if length > options.descriptor {
        return Err(FetchError::TooLarge(length, options.descriptor));
    }
    let mut replies = ReplyReader::new(ReplyLimits::from(&welcome), 0);
    let mut descriptor = Vec::new();
    let mut offset = 0;
    while offset < length {
        let part = u32::try_from(MAX_CHUNK).unwrap_or(1).min(length - offset);
        sender.send(&mut [IoSlice::new(&descriptor_request(offset, part))])?;
        let asked = Instant::now();
        loop {
            let at = replies.offset();
            match replies.next_reply()? {
                Some(Reply::Descriptor { offset: found, bytes })
                    if found == offset && u32::try_from(bytes.len()) == Ok(part) =>
                {
                    descriptor.extend_from_slice(bytes);
                    break;
                }
                Some(Reply::Descriptor { .. } | Reply::Frame(_)) => {
                    return Err(
                        ProtocolError { offset: at, violation: Violation::Unexpected }.into()
                    );
                }
                Some(Reply::Error { code, text }) => {
                    return Err(FetchError::Ended(format!("{code}: {}", text.escape_debug())));
                }
                None => {
                    let left = options.timeout.saturating_sub(asked.elapsed());
                    if left.is_zero() {
                        return Err(FetchError::Silent);
                    }
                    match receiver.receive(replies.space(), left)? {
                        None => {}
                        Some(0) => return Err(FetchError::Ended("closed".into())),
                        Some(bytes) => replies.filled(bytes),
                    }
                }
            }
        }
        offset += part;
    }
    Ok(descriptor)
}
