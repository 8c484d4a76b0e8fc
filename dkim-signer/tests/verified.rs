//! Every signature is judged by a verifier that is not ours: `mail-auth` here, dkimpy in `tests/dkim` of the repository.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey;
use mail_auth::hickory_resolver::config::{ResolverConfig, ResolverOpts};
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator, Parameters, ResolverCache, Txt};

#[path = "samples/mod.rs"]
mod samples;

/// The DNS: what a cache already knows is never asked for.
struct Records(HashMap<Box<str>, Txt>);

impl ResolverCache<Box<str>, Txt> for Records {
    fn get<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.get(name).cloned()
    }

    fn remove<Q>(&self, _: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: Txt, _: Instant) {}
}

fn verify(records: &Records, message: &[u8]) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let config = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
        let authenticator = MessageAuthenticator::new(config, ResolverOpts::default()).unwrap();
        let parsed = AuthenticatedMessage::parse(message).unwrap();
        let parameters = Parameters::new(&parsed).with_txt_cache(records);
        let verdicts = authenticator.verify_dkim(parameters).await;
        verdicts
            .iter()
            .map(|verdict| match verdict.result() {
                DkimResult::Pass => "pass".to_owned(),
                other => format!("{other:?}"),
            })
            .collect()
    })
}

#[test]
fn mail_auth_takes_both_signatures() {
    let signer = samples::signer();
    let records = Records(
        signer
            .keys()
            .map(|key| {
                let record = key.record();
                let parsed = DomainKey::parse(record.text.as_bytes()).unwrap();
                (
                    format!("{}.", record.name).into_boxed_str(),
                    Txt::DomainKey(Arc::new(parsed)),
                )
            })
            .collect(),
    );
    for (name, message) in samples::MESSAGES {
        // It errs here itself: see `canon`, whose tests have the book's words; dkimpy reads these right.
        if name.starts_with("blank") {
            continue;
        }
        let signed = samples::signed(&signer, message);
        assert_eq!(verify(&records, &signed), ["pass", "pass"], "{name}");
        for on_top in [
            "From: evil@example.org\r\n",
            "Subject: other\r\n",
            "Reply-To: e@x\r\n",
        ] {
            let forged = [on_top.as_bytes(), &signed].concat();
            assert!(
                verify(&records, &forged).iter().all(|verdict| verdict != "pass"),
                "{name} with {on_top}"
            );
        }
    }
}
