//! The lab's certificate authority.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;

/// An authority made anew for each lab; its key never leaves memory.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

/// A certificate and its key.
pub struct Issued {
    /// PEM.
    pub certificate: String,
    /// PEM, PKCS#8.
    pub key: String,
    config: Arc<ServerConfig>,
}

impl Issued {
    /// For a TLS server without client certificates.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "whose error it is says all")]
pub enum CaError {
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{}: {cause}", file.display())]
    Write {
        file: PathBuf,
        #[source]
        cause: io::Error,
    },
}

impl Ca {
    /// Makes key and certificate, and writes the certificate to `file` (PEM), over what is there.
    pub fn create(file: &Path) -> Result<Self, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("Postrider lab CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        // Python's ssl, since 3.13, wants key usages and key identifiers (RFC 5280 §4.2.1).
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(file, issuer.pem()).map_err(|cause| CaError::Write {
            file: file.to_owned(),
            cause,
        })?;
        Ok(Self {
            issuer,
            file: file.to_owned(),
        })
    }

    /// Where its certificate is.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Makes a server certificate for host names and IP addresses, as text; at least one.
    pub fn issue(&self, names: &[&str]) -> Result<Issued, CaError> {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name = common_name("Postrider lab host");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            config: Arc::new(config),
        })
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
