//! Connecting to a server, up to its welcome message.

use super::{ClientOptions, Connector};
use crate::wire::protocol::{
    HELLO_BYTES, Hello, MAX_BATCH, MAX_TEXT, ProtocolError, Refusal, WELCOME_BYTES, Welcome,
    WelcomeHead,
};
use crate::wire::transport::{Closer, Link, Receiver, Sender};
use std::io::{self, IoSlice};
use std::time::Instant;
use thiserror::Error;

/// Identity of the image that all servers must have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Image {
    pub(super) digest: [u8; 32],
    pub(super) frames: u32,
}

/// A connection whose server has welcomed the client.
#[derive(Debug)]
pub(super) struct Welcomed {
    pub(super) replica: usize,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) closer: Closer,
    pub(super) welcome: Welcome,
}

/// Why a server does not serve the client.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("refused: {0}: {1}")]
    Refused(Refusal, String),
    #[error("closed by the server before its welcome")]
    Closed,
    #[error("the server does not respond")]
    Silent,
    #[error("the server has another image")]
    OtherImage,
}

impl ConnectError {
    /// Whether a retry cannot succeed.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Refused(refusal, _) => refusal.is_final(),
            Self::OtherImage => true,
            // A protocol error may come from damaged bytes, so it does not count as final.
            Self::Protocol(_) | Self::Io(_) | Self::Closed | Self::Silent => false,
        }
    }
}

/// Connects to a server and completes the handshake. If `image` is given, the server must have it.
pub(super) fn connect(
    dial: &dyn Connector,
    replica: usize,
    options: &ClientOptions,
    image: Option<Image>,
) -> Result<Welcomed, ConnectError> {
    let link = dial.dial(replica)?;
    let closer = link.closer();
    let Link { mut sender, mut receiver, .. } = link;
    let wanted = image.map(|image| image.digest).or(options.image);
    let hello = Hello {
        features: options.features,
        image: wanted.unwrap_or([0; 32]),
        clone: options.clone_id,
        batch: u32::try_from(options.batch.clamp(1, MAX_BATCH)).unwrap_or(1),
    };
    let message: [u8; HELLO_BYTES] = hello.encode();
    sender.send(&mut [IoSlice::new(&message)])?;
    let start = Instant::now();
    let mut head = [0; WELCOME_BYTES];
    fill(&mut receiver, &mut head, options, start)?;
    let welcome = match WelcomeHead::decode(&head, &hello)? {
        WelcomeHead::Welcome(welcome) => welcome,
        WelcomeHead::Refused(refusal, length) => {
            let mut text = [0; MAX_TEXT];
            let text = text.get_mut(..length).unwrap_or_default();
            // The refusal stands even if its text does not arrive.
            let _ = fill(&mut receiver, text, options, start);
            let text = String::from_utf8_lossy(text).escape_debug().to_string();
            return Err(ConnectError::Refused(refusal, text));
        }
    };
    let is_other = wanted.is_some_and(|digest| digest != welcome.image)
        || image.is_some_and(|image| image.frames != welcome.frames.get());
    if is_other {
        return Err(ConnectError::OtherImage);
    }
    Ok(Welcomed { replica, sender, receiver, closer, welcome })
}

/// Fills all of `buf` with bytes from the server, within the handshake timeout since `start`.
fn fill(
    receiver: &mut Receiver,
    buf: &mut [u8],
    options: &ClientOptions,
    start: Instant,
) -> Result<(), ConnectError> {
    let mut have = 0;
    while let Some(space) = buf.get_mut(have..).filter(|space| !space.is_empty()) {
        let left = options.handshake.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(ConnectError::Silent);
        }
        match receiver.receive(space, left)? {
            None => {}
            Some(0) => return Err(ConnectError::Closed),
            Some(bytes) => have += bytes,
        }
    }
    Ok(())
}
