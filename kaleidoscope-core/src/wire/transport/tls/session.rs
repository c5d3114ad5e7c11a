//! A TLS session shared by the two halves of a link.
//!
//! The halves share the session's state. Its lock is held to encrypt or decrypt, and never while
//! waiting for the socket. After the handshake only the sending half writes to the socket, so that
//! records are sent in the order in which they were encrypted. A response that the protocol
//! requires (to a key update) is sent before the next data.

use super::super::peer::PeerIdentity;
use super::super::socket::{Socket, Timer};
use super::names::subject;
use parking_lot::Mutex;
use rustls::{AlertDescription, Connection, Error};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes received at once, and least bytes of encrypted records before they are sent.
const CHUNK: usize = 64 << 10;

pub(super) struct Session;

/// The session as the sending half uses it.
pub(crate) struct Outgoing {
    session: Arc<Mutex<Connection>>,
    records: Vec<u8>,
}

/// The session as the receiving half uses it.
pub(crate) struct Incoming {
    session: Arc<Mutex<Connection>>,
    /// Bytes from the socket; those from `start` to `end` have not been decrypted yet.
    received: Box<[u8]>,
    start: usize,
    end: usize,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outgoing")
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Incoming")
    }
}

impl Session {
    /// Runs the handshake and returns the peer's identity.
    pub(super) fn establish(
        connection: Connection,
        socket: &Socket,
        deadline: Instant,
    ) -> io::Result<(Outgoing, Incoming, PeerIdentity)> {
        let session = Arc::new(Mutex::new(connection));
        let mut incoming = Incoming {
            session: Arc::clone(&session),
            received: vec![0; CHUNK].into_boxed_slice(),
            start: 0,
            end: 0,
        };
        let mut outgoing = Outgoing { session, records: Vec::new() };
        incoming.handshake(&mut outgoing, socket, deadline)?;
        let subject = {
            let connection = incoming.session.lock();
            let certificate = connection.peer_certificates().and_then(<[_]>::first);
            certificate.and_then(subject).ok_or_else(|| {
                io::Error::new(ErrorKind::InvalidData, "the peer has shown no certificate")
            })?
        };
        Ok((outgoing, incoming, subject))
    }
}

impl Outgoing {
    /// Sends all bytes of all parts as records.
    pub(in super::super) fn send(
        &mut self,
        socket: &Socket,
        parts: &mut [IoSlice<'_>],
    ) -> io::Result<()> {
        let mut rest = parts;
        IoSlice::advance_slices(&mut rest, 0);
        let start = Instant::now();
        while !rest.is_empty() {
            {
                let mut connection = self.session.lock();
                while !rest.is_empty() && self.records.len() < CHUNK {
                    // The session takes as much as its buffer allows.
                    let taken = connection.writer().write_vectored(rest)?;
                    if taken == 0 {
                        return Err(ErrorKind::WriteZero.into());
                    }
                    IoSlice::advance_slices(&mut rest, taken);
                    take_records(&mut connection, &mut self.records)?;
                }
            }
            self.flush(socket)?;
            if !rest.is_empty() && start.elapsed() >= socket.send_timeout() {
                return Err(socket.send_timed_out());
            }
        }
        Ok(())
    }

    fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        let sent = socket.send(&mut [IoSlice::new(&self.records)]);
        self.records.clear();
        sent
    }

    /// Sends the TLS close message, if the socket takes it without blocking.
    pub(in super::super) fn end(&mut self, socket: &Socket) {
        let mut connection = self.session.lock();
        connection.send_close_notify();
        if take_records(&mut connection, &mut self.records).is_ok() {
            // A peer that does not read sees the end of the TCP stream instead.
            let _ = socket.send_at_once(&self.records);
        }
    }
}

fn take_records(connection: &mut Connection, records: &mut Vec<u8>) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(records)?;
    }
    Ok(())
}

impl Incoming {
    fn handshake(
        &mut self,
        outgoing: &mut Outgoing,
        socket: &Socket,
        deadline: Instant,
    ) -> io::Result<()> {
        let mut timer = Timer::default();
        loop {
            let (handshaking, result) = {
                let mut connection = self.session.lock();
                let mut result = Ok(());
                while connection.is_handshaking() && self.start < self.end && result.is_ok() {
                    result = decrypt(&mut connection, &self.received, &mut self.start, self.end);
                }
                // Also after an error: the alert tells the peer what was wrong.
                take_records(&mut connection, &mut outgoing.records)?;
                (connection.is_handshaking(), result)
            };
            if !outgoing.records.is_empty() {
                let flushed = outgoing.flush(socket);
                result?;
                flushed?;
            } else {
                result?;
            }
            if !handshaking {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timed_out =
                || io::Error::new(ErrorKind::TimedOut, "the TLS handshake took too long");
            if left.is_zero() {
                return Err(timed_out());
            }
            let received =
                socket.receive(&mut self.received, left, &mut timer)?.ok_or_else(timed_out)?;
            if received == 0 {
                let message = "the peer closed the connection in the TLS handshake";
                return Err(io::Error::new(ErrorKind::UnexpectedEof, message));
            }
            (self.start, self.end) = (0, received);
        }
    }

    /// Receives decrypted bytes, as specified at
    /// [`Receiver::receive`](super::super::Receiver::receive).
    pub(in super::super) fn receive(
        &mut self,
        socket: &Socket,
        buf: &mut [u8],
        wait: Duration,
        timer: &mut Timer,
    ) -> io::Result<Option<usize>> {
        if buf.is_empty() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "no room to receive into"));
        }
        let start = Instant::now();
        let mut left = wait;
        loop {
            if let Some(bytes) = self.decrypted(socket, buf)? {
                return Ok(Some(bytes));
            }
            match socket.receive(&mut self.received, left, timer)? {
                None => return Ok(None),
                Some(0) => {
                    // The session knows whether the peer sent its close message.
                    let mut connection = self.session.lock();
                    connection.read_tls(&mut io::empty())?;
                    connection.process_new_packets().map_err(describe_error)?;
                }
                Some(received) => (self.start, self.end) = (0, received),
            }
            // The bytes may be less than a record. Wait for the rest no longer than `wait`. The
            // same limit stops a peer that sends empty records without end.
            left = wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                return self.decrypted(socket, buf);
            }
        }
    }

    /// Decrypted bytes that are available without waiting.
    fn decrypted(&mut self, socket: &Socket, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let mut connection = self.session.lock();
        loop {
            match connection.reader().read(buf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read.map(Some),
            }
            if self.start >= self.end {
                return Ok(None);
            }
            let done = decrypt(&mut connection, &self.received, &mut self.start, self.end);
            if done.is_err() {
                let mut alert = Vec::new();
                if take_records(&mut connection, &mut alert).is_ok() {
                    // The session is over, so the alert need not wait for the sending half: the
                    // peer would reject the sender's next record in any case.
                    let _ = socket.send_at_once(&alert);
                }
            }
            done?;
        }
    }
}

/// Feeds the session some of the bytes from `start` to `end`.
fn decrypt(
    connection: &mut Connection,
    received: &[u8],
    start: &mut usize,
    end: usize,
) -> io::Result<()> {
    let mut bytes = received.get(*start..end).unwrap_or_default();
    let taken = connection.read_tls(&mut bytes)?;
    *start += taken;
    connection.process_new_packets().map_err(describe_error)?;
    if taken == 0 {
        return Err(io::Error::new(ErrorKind::InvalidData, "the TLS session takes no more bytes"));
    }
    Ok(())
}

/// Converts an error to a message that says which side's certificate is at fault.
fn describe_error(error: Error) -> io::Error {
    use AlertDescription as Alert;
    const OWN_CERTIFICATE: [Alert; 9] = [
        Alert::CertificateRequired,
        Alert::UnknownCA,
        Alert::BadCertificate,
        Alert::CertificateExpired,
        Alert::CertificateUnknown,
        Alert::CertificateRevoked,
        Alert::UnsupportedCertificate,
        Alert::DecryptError,
        Alert::AccessDenied,
    ];
    let text = if matches!(&error, Error::AlertReceived(alert) if OWN_CERTIFICATE.contains(alert)) {
        format!("the peer does not accept our certificate: {error}")
    } else if matches!(error, Error::InvalidCertificate(_)) {
        format!("the peer's certificate is not accepted: {error}")
    } else if matches!(error, Error::NoCertificatesPresented) {
        "the peer has shown no certificate".to_owned()
    } else {
        return io::Error::new(ErrorKind::InvalidData, error);
    };
    io::Error::new(ErrorKind::PermissionDenied, text)
}
