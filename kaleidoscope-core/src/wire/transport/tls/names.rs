//! The identities in certificates.

use super::super::peer::PeerIdentity;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::sync::Arc;

/// The identity in a certificate. `None` if it cannot be parsed.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> Option<PeerIdentity> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(PeerIdentity { names: certificate.valid_dns_names().map(str::to_owned).collect() })
}

/// Verifies a client's certificate, and that one of its names is allowed.
#[derive(Debug)]
pub(super) struct AllowedNames {
    /// Verifies everything but the name.
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    /// The names that may connect.
    pub(super) names: Vec<String>,
}

impl ClientCertVerifier for AllowedNames {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        // Compare the names literally: a wildcard in a certificate would match any name of its
        // domain.
        let listed =
            |name: &String| self.names.iter().any(|listed| listed.eq_ignore_ascii_case(name));
        if subject(end_entity).is_some_and(|subject| subject.names.iter().any(listed)) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
