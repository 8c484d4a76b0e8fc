//! How message data is taken from the client, within its limits.

use mail_core::smtp::data::{DataFault, Decoder};
use mail_core::smtp::server::{Input, Session};
use mail_core::{Envelope, Reply};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Lost, Next, Quiet, Shell};

impl<S: AsyncRead + AsyncWrite + Unpin> Shell<S> {
    /// Message data up to its real end.
    pub(super) async fn receive(&mut self, session: &Session) -> Result<Next, Lost> {
        self.flush().await?;
        let mut decoder = Decoder::new(self.max_message_bytes(), session.declared_bytes());
        loop {
            self.inbox.decode(&mut decoder);
            if !self.entered.receive(decoder.kept() as u64) {
                decoder.abandon();
            }
            if decoder.is_at_end() {
                break;
            }
            match self.fill(session.patience(), false).await {
                Ok(()) => {}
                Err(Quiet::Silence) => return Ok(Next::Input(Input::Timeout)),
                Err(Quiet::Stopping | Quiet::Lost) => return Err(Lost),
            }
        }
        let result = decoder.finish().map(|data| self.data = Some(data));
        if let Err(fault) = &result {
            self.entered.received();
            self.count_refusal(&fault.reply());
            self.say_refused(session.envelope(), &fault.reply(), *fault);
        }
        Ok(Next::Input(Input::Data(result)))
    }

    fn say_refused(&self, envelope: Option<&Envelope>, reply: &Reply, fault: DataFault) {
        let from = envelope.map(|envelope| envelope.reverse_path.to_string());
        tracing::info!(client = %self.client, from, %reply, %fault, "refused");
    }
}
