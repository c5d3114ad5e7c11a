//! Certificates and keys from PEM files.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The longest PEM file that is accepted, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// This side's certificate and key, and the authorities it trusts.
#[derive(Debug)]
pub struct Credentials {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) authorities: RootCertStore,
}

/// Why certificates or keys cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file or text does not hold the expected certificates or key.
    #[error("{what}: {reason}")]
    Malformed {
        /// Which input.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificate and key do not match, or are not supported.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(String),
}

impl Credentials {
    /// Reads this side's certificate (followed by intermediate certificates, if any), its key, and
    /// the certificates of the trusted authorities.
    ///
    /// # Errors
    /// [`CredentialsError`] if a file cannot be read or does not hold what is expected.
    pub fn from_files(
        certificate: &Path,
        key: &Path,
        authorities: &Path,
    ) -> Result<Self, CredentialsError> {
        let named = |path: &Path| read(path).map(|text| (path.display().to_string(), text));
        Self::build(named(certificate)?, named(key)?, named(authorities)?)
    }

    /// Like [`from_files`](Self::from_files), from PEM text.
    ///
    /// # Errors
    /// [`CredentialsError`] if a text does not hold what is expected.
    pub fn from_pem(
        certificate: &[u8],
        key: &[u8],
        authorities: &[u8],
    ) -> Result<Self, CredentialsError> {
        let named = |name: &str, text: &[u8]| (name.to_owned(), text.to_vec());
        Self::build(
            named("certificate", certificate),
            named("key", key),
            named("authorities", authorities),
        )
    }

    fn build(
        (certificate_name, certificate): (String, Vec<u8>),
        (key_name, key): (String, Vec<u8>),
        (authorities_name, authorities): (String, Vec<u8>),
    ) -> Result<Self, CredentialsError> {
        let chain = certificates(&certificate_name, &certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|error| malformed(&key_name, &format!("no private key: {error}")))?;
        let mut trusted = RootCertStore::empty();
        for authority in certificates(&authorities_name, &authorities)? {
            trusted
                .add(authority)
                .map_err(|error| malformed(&authorities_name, &error.to_string()))?;
        }
        Ok(Self { chain, key, authorities: trusted })
    }
}

fn certificates(name: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|error| malformed(name, &error.to_string()))?;
    if found.is_empty() {
        return Err(malformed(name, "no certificate (PEM: -----BEGIN CERTIFICATE-----)"));
    }
    Ok(found)
}

fn malformed(what: &str, reason: &str) -> CredentialsError {
    CredentialsError::Malformed { what: what.to_owned(), reason: reason.to_owned() }
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let mut text = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text));
    match read {
        Ok(length) if length as u64 <= MAX_FILE_BYTES => Ok(text),
        Ok(_) => Err(malformed(&path.display().to_string(), "longer than 1 MiB")),
        Err(source) => Err(CredentialsError::Unreadable { path: path.to_owned(), source }),
    }
}
