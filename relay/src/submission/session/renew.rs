//! What a reload means to sessions: each goes by the new configuration from its next message on.

use std::net::IpAddr;
use std::rc::Rc;

use mail_core::Reply;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::listener::has;
use super::{Service, Shell};

impl Service {
    /// Whether clients at this address may speak here at all.
    pub(in super::super) fn admits(&self, client: IpAddr) -> bool {
        self.networks
            .as_ref()
            .is_none_or(|networks| has(networks, client))
    }

    /// Names what holds from here on; `None`: the listener is no longer there.
    pub(in super::super) fn renew(&self, next: Option<Rc<Self>>) {
        // Only its listener calls this, and then forgets it.
        let _ = self.next.set(next);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Shell<S> {
    /// Goes by what was configured last. What the session has said of itself already (EHLO) stays. A client that could not
    /// have come in as it did is sent away, with 421.
    pub(super) fn renewed(&mut self) -> Result<(), Reply> {
        let mut service = self.service.clone();
        while let Some(next) = service.next.get() {
            let Some(next) = next.clone() else {
                return Err(gone("this listener is no longer there"));
            };
            service = next;
        }
        if Rc::ptr_eq(&service, &self.service) {
            return Ok(());
        }
        if service.implicit_tls != self.service.implicit_tls
            || service.tenant != self.service.tenant
            || !service.admits(self.client)
        {
            return Err(gone("this listener serves others now"));
        }
        self.entered.renew(&service.front);
        self.service = service;
        Ok(())
    }
}

fn gone(why: &'static str) -> Reply {
    Reply::new(421, 3, 2, why)
}
