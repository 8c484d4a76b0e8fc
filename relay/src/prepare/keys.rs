//! The keys of the configuration, read from their files.

use std::sync::Arc;

use dkim_signer::sign::{DomainKey, DuplicateKey, Selector, Signer};
use dkim_signer::{KeyError, PrivateKey};
use mail_core::Domain;

use crate::config::settings::DkimKey;

/// Why the keys of the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BadKey {
    /// The selector is none.
    #[error("dkim: {domain}: {selector:?}: {cause}")]
    Selector {
        /// Whose key.
        domain: Domain,
        /// As configured.
        selector: String,
        /// What is wrong with it.
        #[source]
        cause: dkim_signer::sign::BadSelector,
    },
    /// The file holds no key that can be used, or others can read it.
    #[error("dkim: {domain}: {file}: {cause}")]
    File {
        /// Whose key.
        domain: Domain,
        /// Where it should be.
        file: String,
        /// What is wrong with it.
        #[source]
        cause: KeyError,
    },
    /// Two keys for the same purpose.
    #[error("dkim: {0}")]
    Duplicate(#[from] DuplicateKey),
}

/// Reads and parses all configured keys; of several mistakes all are told.
pub fn load_keys(keys: &[DkimKey]) -> Result<Signer, Vec<BadKey>> {
    let mut wrong = Vec::new();
    let mut loaded = Vec::new();
    for key in keys {
        match load_key(key) {
            Ok(key) => loaded.push(key),
            Err(error) => wrong.push(error),
        }
    }
    match Signer::new(loaded) {
        Ok(signer) if wrong.is_empty() => Ok(signer),
        Ok(_) => Err(wrong),
        Err(duplicate) => {
            wrong.push(duplicate.into());
            Err(wrong)
        }
    }
}

/// Reads and parses one.
pub fn load_key(key: &DkimKey) -> Result<DomainKey, BadKey> {
    let selector: Selector = key.selector.parse().map_err(|cause| BadKey::Selector {
        domain: key.domain.clone(),
        selector: key.selector.clone(),
        cause,
    })?;
    let private = PrivateKey::load(&key.file).map_err(|cause| BadKey::File {
        domain: key.domain.clone(),
        file: key.file.display().to_string(),
        cause,
    })?;
    Ok(DomainKey {
        domain: key.domain.clone(),
        selector,
        key: Arc::new(private),
    })
}
