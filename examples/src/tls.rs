//! Certificates on the command line, for servers and clients alike.

use crate::failure::Failure;
use kaleidoscope_core::wire::transport::tls::{ClientTls, Credentials, ServerTls};
use std::path::PathBuf;

/// The certificate of this end on TCP, and the authorities that it trusts.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TlsArgs {
    /// Certificate for TLS over TCP, in PEM; needed beyond this host
    #[arg(long, value_name = "FILE", requires = "key", requires = "ca")]
    cert: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Certificates of the authorities that the other side's certificate must come from, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    ca: Option<PathBuf>,
}

impl TlsArgs {
    /// What is read.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert, &self.key, &self.ca].into_iter().flatten()
    }

    /// Whether TCP is TLS.
    pub(crate) fn is_given(&self) -> bool {
        self.cert.is_some()
    }

    fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        let (Some(cert), Some(key), Some(ca)) = (&self.cert, &self.key, &self.ca) else {
            return Ok(None);
        };
        Credentials::from_files(cert, key, ca).map(Some).map_err(|error| {
            Failure::new(error).hint(
                "`kaleidoscope keys -o DIR` makes a set that fits together: ca.pem for both sides, server.pem and server-key.pem, \
                 client.pem and client-key.pem",
            )
        })
    }

    /// A server's side, which lets in clients with one of these names, or all that it knows if
    /// there are none.
    pub(crate) fn server(&self, clients: &[String]) -> Result<Option<ServerTls>, Failure> {
        let make = |credentials| ServerTls::new(credentials, clients).map_err(Failure::new);
        self.credentials()?.map(make).transpose()
    }

    /// A client's side, which expects the server to have this name, or that of its host.
    pub(crate) fn client(&self, server: Option<&str>) -> Result<Option<ClientTls>, Failure> {
        let make = |credentials| ClientTls::new(credentials, server).map_err(Failure::new);
        self.credentials()?.map(make).transpose()
    }
}
