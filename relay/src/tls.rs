//! TLS towards clients.

pub(crate) mod der;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::settings::TlsFiles;

/// Loads a certificate chain and its key, checked to fit. TLS 1.2 and 1.3 (RFC 8314 §4.1).
///
/// A client that names protocols by ALPN must name `smtp`: one that wants `http/1.1` was led here by an attacker (ALPACA).
/// The key may be readable by the process alone, or by a group of its own.
pub fn server_config(files: &TlsFiles) -> anyhow::Result<Arc<ServerConfig>> {
    let certificate = || format!("certificate {}", files.certificate.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .with_context(certificate)?
        .collect::<Result<_, _>>()
        .with_context(certificate)?;
    anyhow::ensure!(
        !chain.is_empty(),
        "certificate {}: no PEM certificate in it",
        files.certificate.display()
    );
    let pem = dkim_signer::secret::read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).with_context(|| format!("key {}", files.key.display()))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .with_context(|| {
            format!(
                "key {} and certificate {}",
                files.key.display(),
                files.certificate.display()
            )
        })?;
    config.alpn_protocols = vec![b"smtp".to_vec()];
    Ok(Arc::new(config))
}

/// When the first certificate of a file ends, in seconds since 1970; `None` where it can't be read.
pub(crate) fn expiry(certificate: &Path) -> Option<i64> {
    let first = CertificateDer::pem_file_iter(certificate).ok()?.next()?.ok()?;
    der::expiry(&first)
}

/// As [`server_config`], for HTTP/1.1.
pub fn http_config(files: &TlsFiles) -> anyhow::Result<Arc<ServerConfig>> {
    let mut config = (*server_config(files)?).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
