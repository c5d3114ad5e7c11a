//! TLS configuration of servers and clients.

use super::super::link::Link;
use super::super::peer::Peer;
use super::super::socket::Socket;
use super::credentials::{Credentials, CredentialsError};
use super::names::AllowedNames;
use super::session::Session;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// TLS configuration of a server.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
}

/// TLS configuration of a client.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn unusable(error: impl ToString) -> CredentialsError {
    CredentialsError::Unusable(error.to_string())
}

impl ServerTls {
    /// Accepts clients whose certificates the authorities have signed. Unless `clients` is empty,
    /// the certificate must also contain one of these DNS names.
    ///
    /// # Errors
    /// [`CredentialsError::Unusable`] if key and certificate do not match, or a type of key is not
    /// supported.
    pub fn new(credentials: Credentials, clients: &[String]) -> Result<Self, CredentialsError> {
        let roots = Arc::new(credentials.authorities);
        let mut verifier: Arc<dyn ClientCertVerifier> =
            WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(unusable)?;
        if !clients.is_empty() {
            verifier = Arc::new(AllowedNames { inner: verifier, names: clients.to_vec() });
        }
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(credentials.chain, credentials.key)
            .map_err(unusable)?;
        // Connections are few and live long; session resumption would not pay for its state.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config) })
    }

    /// Runs the server's part of the handshake on an accepted connection.
    pub(super) fn accept(
        &self,
        socket: Arc<Socket>,
        address: SocketAddr,
        deadline: Instant,
    ) -> io::Result<Link> {
        let connection =
            ServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        establish(connection.into(), socket, address, deadline)
    }
}

impl ClientTls {
    /// Accepts servers whose certificates the authorities have signed for `server_name` or, if that
    /// is `None`, for the host that is connected to. The name is a DNS name or an IP address.
    ///
    /// # Errors
    /// [`CredentialsError::Unusable`] if key and certificate do not match, a type of key is not
    /// supported, or the name is invalid.
    pub fn new(
        credentials: Credentials,
        server_name: Option<&str>,
    ) -> Result<Self, CredentialsError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_root_certificates(credentials.authorities)
            .with_client_auth_cert(credentials.chain, credentials.key)
            .map_err(unusable)?;
        config.resumption = Resumption::disabled();
        let name = |name: &str| ServerName::try_from(name.to_owned()).map_err(unusable);
        let server_name = server_name.map(name).transpose()?;
        Ok(Self { config: Arc::new(config), server_name })
    }

    #[cfg(test)]
    pub(super) fn set_config(&mut self, config: ClientConfig) {
        self.config = Arc::new(config);
    }

    /// Runs the client's part of the handshake on a new connection. `at` is host and port.
    pub(in super::super) fn connect(
        &self,
        fd: OwnedFd,
        at: &str,
        address: SocketAddr,
        send_timeout: Duration,
        timeout: Duration,
    ) -> io::Result<Link> {
        let deadline = Instant::now() + timeout;
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => {
                let host = at.rsplit_once(':').map_or(at, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                ServerName::try_from(host.to_owned())
                    .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?
            }
        };
        let connection =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)?;
        let socket = Arc::new(Socket::new(fd, send_timeout)?);
        establish(connection.into(), socket, address, deadline)
    }
}

fn establish(
    connection: rustls::Connection,
    socket: Arc<Socket>,
    address: SocketAddr,
    deadline: Instant,
) -> io::Result<Link> {
    let (outgoing, incoming, subject) = Session::establish(connection, &socket, deadline)?;
    let peer = Peer::Tcp { address, subject: Some(subject) };
    Ok(Link::tls(socket, (outgoing, incoming), peer))
}
