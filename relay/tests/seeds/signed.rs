//! Signatures: the key that all worlds sign with, and whether what hosts took bears one that verifies, by a verifier that is not ours.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::hash::Hash;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use dkim_signer::key::generate;
use dkim_signer::sign::{DomainKey, Signer};
use dkim_signer::{Algorithm, PrivateKey};
use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey as PublicKey;
use mail_auth::hickory_resolver::config::{ResolverConfig, ResolverOpts};
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator, Parameters, ResolverCache, Txt};

/// Made once: a seed's signatures are the same each time. Ed25519 draws no numbers.
static SIGNER: LazyLock<Arc<Signer>> = LazyLock::new(|| {
    let key = generate(Algorithm::Ed25519Sha256).unwrap();
    let key = DomainKey {
        domain: "back.test".parse().unwrap(),
        selector: "s1".parse().unwrap(),
        key: Arc::new(PrivateKey::from_pem(key.as_bytes()).unwrap()),
    };
    Arc::new(Signer::new([key]).unwrap())
});

pub fn signer() -> Arc<Signer> {
    SIGNER.clone()
}

/// Whether this is one signature field and nothing else.
pub fn is_one_field(octets: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(octets) else {
        return false;
    };
    let mut lines = text.split_inclusive("\r\n");
    lines
        .next()
        .is_some_and(|line| line.starts_with("DKIM-Signature: "))
        && text.ends_with("\r\n")
        && lines.all(|line| line.starts_with([' ', '\t']))
}

/// What is wrong with the first of these whose signature does not verify.
pub fn fault<'a>(messages: impl Iterator<Item = &'a Bytes>) -> Option<String> {
    let distinct: BTreeSet<&Bytes> = messages.collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let config = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
        let authenticator = MessageAuthenticator::new(config, ResolverOpts::default()).unwrap();
        let record = Record::of_signer();
        for octets in distinct {
            let parsed = AuthenticatedMessage::parse(octets).unwrap();
            let parameters = Parameters::new(&parsed).with_txt_cache(&record);
            let verdicts = authenticator.verify_dkim(parameters).await;
            let [DkimResult::Pass] = verdicts
                .iter()
                .map(|verdict| verdict.result())
                .collect::<Vec<_>>()[..]
            else {
                let octets = String::from_utf8_lossy(octets);
                return Some(format!("its signature is {verdicts:?}: {octets:?}"));
            };
        }
        None
    })
}

/// The DNS: the key's record, which is never asked for because a cache has it.
struct Record(String, Txt);

impl Record {
    fn of_signer() -> Self {
        let record = SIGNER.keys().next().unwrap().record();
        let parsed = PublicKey::parse(record.text.as_bytes()).unwrap();
        Self(format!("{}.", record.name), Txt::DomainKey(Arc::new(parsed)))
    }
}

impl ResolverCache<Box<str>, Txt> for Record {
    fn get<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let known: Box<str> = self.0.as_str().into();
        (known.borrow() == name).then(|| self.1.clone())
    }

    fn remove<Q>(&self, _: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: Txt, _: std::time::Instant) {}
}
