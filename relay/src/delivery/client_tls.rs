//! TLS towards next hops: unverified where it is a bonus (RFC 7435), verified where it is required.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;

/// Both kinds, ready for use. Sessions are resumed within each, never across.
pub struct ClientTls {
    unverified: TlsConnector,
    verified: TlsConnector,
}

impl ClientTls {
    /// Trusts the system's certificate authorities and those in `ca_file` (PEM).
    pub fn new(ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "a certificate authority of the system can't be read");
        }
        roots.add_parsable_certificates(system.certs);
        if let Some(path) = ca_file {
            let context = || format!("certificate authorities in {}", path.display());
            for certificate in CertificateDer::pem_file_iter(path).with_context(context)? {
                roots
                    .add(certificate.with_context(context)?)
                    .with_context(context)?;
            }
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let any = Arc::new(AnyCertificate(provider.clone()));
        let builder =
            || ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let unverified = builder()?
            .dangerous()
            .with_custom_certificate_verifier(any)
            .with_no_client_auth();
        let verified = builder()?.with_root_certificates(roots).with_no_client_auth();
        Ok(Self {
            unverified: TlsConnector::from(Arc::new(unverified)),
            verified: TlsConnector::from(Arc::new(verified)),
        })
    }

    /// Takes any certificate: against those who only listen.
    pub fn unverified(&self) -> TlsConnector {
        self.unverified.clone()
    }

    /// Takes only certificates that name the host and come from an authority we trust.
    pub fn verified(&self) -> TlsConnector {
        self.verified.clone()
    }
}

/// Asks nothing of a certificate, nor that the peer has its key: who stands between us could show a certificate of their own, so
/// that would keep nobody out. But rustls reads X.509 version 3 alone, and RSA keys from 2,048 bits on; hosts with older
/// certificates of their own making would get their mail in clear, for everyone who listens (RFC 7435 §3).
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    use super::*;

    /// A host that shows what it has, be it a certificate or not.
    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shows {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    fn pass(from: &mut rustls::Connection, to: &mut rustls::Connection) -> Result<(), rustls::Error> {
        let mut octets = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut octets).expect("memory takes all");
        }
        let mut rest = octets.as_slice();
        while !rest.is_empty() {
            to.read_tls(&mut rest).expect("memory gives all");
            to.process_new_packets()?;
        }
        Ok(())
    }

    fn handshake(
        connector: &TlsConnector,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Result<(), rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = rcgen::KeyPair::generate().expect("a key").serialize_der();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(key).into();
        let key = aws_lc_rs::sign::any_supported_type(&key)?;
        let shown = CertifiedKey::new(vec![CertificateDer::from(&b"older than version 3"[..])], key);
        let host = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shows(Arc::new(shown))));
        let name = ServerName::try_from("mx.test").expect("a name");
        let mut client = ClientConnection::new(Arc::clone(connector.config()), name)?.into();
        let mut server = ServerConnection::new(Arc::new(host))?.into();
        for _ in 0..4 {
            pass(&mut client, &mut server)?;
            pass(&mut server, &mut client)?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(())
    }

    #[test]
    fn a_certificate_that_cannot_be_read_is_better_than_no_tls() {
        let tls = ClientTls::new(None).expect("a configuration");
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            assert_eq!(handshake(&tls.unverified(), version), Ok(()));
            assert!(matches!(
                handshake(&tls.verified(), version),
                Err(rustls::Error::InvalidCertificate(_))
            ));
        }
    }
}
