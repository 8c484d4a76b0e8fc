//! Logging in: what a session does with a name and a password, or with SCRAM's messages.

use std::time::Instant;

use mail_core::Reply;
use mail_core::smtp::server::{Scram, replies};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};

use crate::credentials::scram::{AwaitProof, ChannelBinding, ClientFirst, ScramError};
use crate::credentials::{Busy, Credential, Credentials};

use super::{Shell, Wire};
use crate::submission::end_point::end_point;

/// Failed logins after which a session ends. A program with a wrong password needs no more to say so; one that guesses begins
/// anew with a connection, which is counted and slowed by its address.
const MAX_FAILURES: u32 = 5;

/// The label of RFC 9266 §2.
const EXPORTER: &[u8] = b"EXPORTER-Channel-Binding";

/// Where a SCRAM exchange is.
pub(super) enum Exchange {
    Asked(AwaitProof),
    /// The server's proof was sent; the client's empty line ends it (RFC 4954 §4).
    Proven(Credential),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Shell<S> {
    /// PLAIN and LOGIN.
    pub(super) async fn login(&mut self, user: &str, password: &[u8]) -> Reply {
        let Some(credentials) = self.credentials() else {
            return self.login_failed(user, "no credentials are known").await;
        };
        let patience = self.service.config.command_timeout;
        match timeout(patience, credentials.verify(user, password)).await {
            Ok(Ok(Some(found))) => self.logged_in(found).await,
            Ok(Ok(None)) => self.login_failed(user, "wrong name or password").await,
            Ok(Err(Busy)) | Err(_) => {
                self.count_login("busy");
                tracing::warn!(client = %self.client, user, "login put off: too many at once");
                Reply::new(454, 7, 0, "too many logins at once; come back later")
            }
        }
    }

    /// SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802 §5).
    pub(super) async fn scram(&mut self, mechanism: Scram, first: bool, message: &[u8]) -> Reply {
        let exchange = self.scram.take();
        let Some(credentials) = self.credentials() else {
            return self.login_failed("", "no credentials are known").await;
        };
        match (first, exchange) {
            (true, _) => match ClientFirst::parse(message, mechanism == Scram::Plus) {
                Ok(first) => {
                    let Ok(nonce) = crate::credentials::nonce() else {
                        return Reply::new(454, 7, 0, "no randomness from the system; come back later");
                    };
                    let verifier = credentials.verifier(&first.user).await;
                    let (challenge, state) = first.challenge(verifier, &nonce);
                    self.scram = Some(Exchange::Asked(state));
                    replies::challenge(challenge.as_bytes())
                }
                Err(error) => self.scram_failed("", error).await,
            },
            (false, Some(Exchange::Asked(state))) => {
                let end = state.finish(message, &self.channel_binding());
                let proven = credentials.proven(&state.user, state.verifier());
                match (end, proven) {
                    (Ok(end), Some(found)) => {
                        self.scram = Some(Exchange::Proven(found));
                        replies::challenge(end.as_bytes())
                    }
                    (Ok(_), None) => self.scram_failed(&state.user, ScramError::Proof).await,
                    (Err(error), _) => self.scram_failed(&state.user, error).await,
                }
            }
            (false, Some(Exchange::Proven(found))) if message.is_empty() => self.logged_in(found).await,
            (false, _) => self.scram_failed("", ScramError::Malformed).await,
        }
    }

    async fn scram_failed(&mut self, user: &str, error: ScramError) -> Reply {
        let reply = self.login_failed(user, &error.to_string()).await;
        match error {
            _ if reply.code == 421 => reply,
            ScramError::Malformed => Reply::new(501, 5, 2, "not what the mechanism asks for"),
            ScramError::Proof => reply,
            ScramError::Authorization | ScramError::Downgrade | ScramError::BindingType => {
                Reply::new(535, 7, 8, "").with_text(error.to_string())
            }
        }
    }

    fn credentials(&self) -> Option<Credentials> {
        self.service.front.credentials.clone()
    }

    fn channel_binding(&self) -> ChannelBinding {
        let Wire::Tls(stream) = &self.wire else {
            return ChannelBinding::default();
        };
        let (_, session) = stream.get_ref();
        // Before TLS 1.3 it can't be told whether the master secret is bound to the handshake (RFC 9266 §4.2).
        let is_new = session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        let exported = || session.export_keying_material(vec![0; 32], EXPORTER, None).ok();
        ChannelBinding {
            exporter: is_new.then(exported).flatten(),
            end_point: self.leaf.as_ref().and_then(|leaf| end_point(leaf)),
        }
    }

    pub(super) async fn logged_in(&mut self, found: Credential) -> Reply {
        let front = self.service.front.clone();
        // A credential of a tenant that is no longer configured opens nothing.
        let Some(tenant) = front.tenant(&found.tenant) else {
            return self
                .login_failed(&found.name, "its tenant is not configured")
                .await;
        };
        let streams = &front.settings.delivery.streams;
        if found
            .stream
            .as_ref()
            .is_some_and(|stream| streams.get(stream).is_none())
        {
            return self
                .login_failed(&found.name, "its stream is not configured")
                .await;
        }
        if !self.entered.speak_for(&found.tenant, tenant) {
            return Reply::new(421, 3, 2, "too many connections of this tenant");
        }
        front.logins.succeeded(&found.name);
        self.count_login("ok");
        self.proof = front
            .credentials
            .as_ref()
            .and_then(|credentials| credentials.proof(&found.name));
        (self.tenant, self.credential) = (Some(found.tenant), Some(found.name));
        self.stream = found.stream;
        replies::LOGGED_IN
    }

    /// Whether what the session is logged in by, if it is, would still log in: who has taken a password away wants no more
    /// mail of whoever has it.
    pub(super) async fn is_still_known(&self) -> bool {
        let Some(proof) = &self.proof else { return true };
        let stands = match &self.service.front.credentials {
            Some(credentials) => credentials.stands(proof).await,
            None => false,
        };
        if !stands {
            let user = self.credential.as_deref();
            tracing::info!(client = %self.client, user, "its credential was removed or changed: the session ends");
        }
        stands
    }

    /// The answer to a failed login, held back the longer the more have failed (CASES row 39). The same for all reasons.
    async fn login_failed(&mut self, user: &str, why: &str) -> Reply {
        self.count_login("failed");
        self.failed_logins += 1;
        let wait = self
            .service
            .front
            .logins
            .failed(self.client, user, Instant::now());
        tracing::warn!(client = %self.client, user, why, wait_ms = wait.as_millis() as u64, "login failed");
        if !self.stopping {
            tokio::select! {
                () = sleep(wait) => {}
                _ = self.stop.changed() => self.stopping = true,
            }
        }
        if self.failed_logins >= MAX_FAILURES {
            return Reply::new(421, 7, 0, "too many failed logins");
        }
        replies::BAD_LOGIN
    }

    fn count_login(&self, result: &str) {
        self.service
            .front
            .metrics
            .logins
            .with_label_values(&[result])
            .inc();
    }
}
