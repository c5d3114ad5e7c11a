//! A TLS session between the two halves of a link.
//!
//! The halves share the session's state; its lock is held to encrypt or decrypt, never while
//! waiting for the socket. After the handshake only the sending half writes to the socket, so that
//! records go out in the order in which they were made; an answer that the protocol wants (to a
//! change of keys) goes out before what is sent next.

use super::super::peer::PeerIdentity;
use super::super::socket::{Socket, Timer};
use super::names::subject;
use parking_lot::Mutex;
use rustls::{AlertDescription, Connection, Error};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes received at once, and bytes of records that are sent at once.
const CHUNK: usize = 64 << 10;

pub(super) struct Session;

/// The sending half's part.
pub(crate) struct Outgoing {
    session: Arc<Mutex<Connection>>,
    records: Vec<u8>,
}

/// The receiving half's part.
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
    /// Runs the handshake and says who the peer is.
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
                    // The session takes as much as its own buffer allows.
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
                return Err(socket.impatient());
            }
        }
        Ok(())
    }

    fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        let sent = socket.send(&mut [IoSlice::new(&self.records)]);
        self.records.clear();
        sent
    }

    /// Tells the peer that nothing more comes, if the socket takes it at once.
    pub(in super::super) fn end(&mut self, socket: &Socket) {
        let mut connection = self.session.lock();
        connection.send_close_notify();
        if take_records(&mut connection, &mut self.records).is_ok() {
            // A peer that does not read learns of it by the end of the stream.
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
                // Also after an error: the peer is told what was wrong with it.
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
            let late = || io::Error::new(ErrorKind::TimedOut, "the TLS handshake took too long");
            if left.is_zero() {
                return Err(late());
            }
            let received =
                socket.receive(&mut self.received, left, &mut timer)?.ok_or_else(late)?;
            if received == 0 {
                let message = "the peer closed the connection in the TLS handshake";
                return Err(io::Error::new(ErrorKind::UnexpectedEof, message));
            }
            (self.start, self.end) = (0, received);
        }
    }

    /// Receives decrypted bytes, as [`Receiver::receive`](super::super::Receiver::receive) says.
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
                    // The session knows whether the peer meant to end here.
                    let mut connection = self.session.lock();
                    connection.read_tls(&mut io::empty())?;
                    connection.process_new_packets().map_err(meaning)?;
                }
                Some(received) => (self.start, self.end) = (0, received),
            }
            // What came may be less than a record: the rest is waited for no longer than the caller
            // said. Nor is a peer listened to for longer that sends records without end
            // in which there is nothing.
            left = wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                return self.decrypted(socket, buf);
            }
        }
    }

    /// Bytes that need no waiting.
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
                    // The session is over; the sender's next record would fail at the peer whatever
                    // it reads before.
                    let _ = socket.send_at_once(&alert);
                }
            }
            done?;
        }
    }
}

/// Gives the session some of the bytes from `start` to `end`.
fn decrypt(
    connection: &mut Connection,
    received: &[u8],
    start: &mut usize,
    end: usize,
) -> io::Result<()> {
    let mut bytes = received.get(*start..end).unwrap_or_default();
    let taken = connection.read_tls(&mut bytes)?;
    *start += taken;
    connection.process_new_packets().map_err(meaning)?;
    if taken == 0 {
        return Err(io::Error::new(ErrorKind::InvalidData, "the TLS session takes no more bytes"));
    }
    Ok(())
}

/// An error in words that say whose certificate is at fault.
fn meaning(error: Error) -> io::Error {
    use AlertDescription as Alert;
    const ABOUT_US: [Alert; 9] = [
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
    let text = if matches!(&error, Error::AlertReceived(alert) if ABOUT_US.contains(alert)) {
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
