//! XCLIENT (Postfix's XCLIENT_README): a listed peer says for which client it speaks.

use mail_core::Reply;
use mail_core::smtp::command::Xclient;
use mail_core::smtp::server::replies;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Shell;

impl<S: AsyncRead + AsyncWrite + Unpin> Shell<S> {
    /// Goes on as the session of this client: its address counts for limits, networks, log and Received, its login as if it had
    /// proven it here. All or nothing.
    pub(super) async fn speak_as(&mut self, said: Xclient) -> Reply {
        let front = self.service.front.clone();
        // It is said once in a connection: what is not told, or not known, is the peer's own.
        let client = said
            .address
            .flatten()
            .map_or(self.client, |address| address.to_canonical());
        if !self.service.admits(client) {
            tracing::info!(peer = %self.client, %client, "XCLIENT refused: not of a trusted network");
            return Reply::new(550, 7, 1, "this server is not for that client");
        }
        let mut found = None;
        if let Some(user) = said.login.flatten() {
            found = match &front.credentials {
                Some(credentials) => credentials.named(&user).await,
                None => None,
            };
            if found.is_none() {
                tracing::warn!(peer = %self.client, %client, user, "XCLIENT refused: no such credential");
                return Reply::new(550, 7, 1, "no such credential");
            }
        }
        let mut entered = match front.enter(client) {
            Ok(entered) => entered,
            Err(reply) => {
                tracing::warn!(peer = %self.client, %client, %reply, "turned away");
                return reply;
            }
        };
        std::mem::swap(&mut self.entered, &mut entered);
        drop(entered);
        tracing::info!(peer = %self.client, %client, login = found.as_ref().map(|found| &*found.name), "XCLIENT");
        self.client = client;
        (self.tenant, self.credential, self.stream) = (self.service.tenant.clone(), None, None);
        (self.proof, self.scram, self.failed_logins) = (None, None, 0);
        match found {
            Some(found) => match self.logged_in(found).await {
                reply if reply.is_positive() => replies::GO,
                // Half of it would leave a session of nobody's.
                reply => Reply { code: 421, ..reply },
            },
            None => self.refusal().unwrap_or(replies::GO),
        }
    }
}
