//! How message data is taken from the client, within its limits.

use mail_core::smtp::chunk::Chunks;
use mail_core::smtp::command::Chunk;
use mail_core::smtp::data::{DataFault, Decoder};
use mail_core::smtp::server::{Fate, Input, Session};
use mail_core::{Envelope, Reply};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Lost, Next, Quiet, Shell};

impl<S: AsyncRead + AsyncWrite + Unpin> Shell<S> {
    /// Message data up to its real end.
    pub(super) async fn receive(&mut self, session: &Session) -> Result<Next, Lost> {
        self.flush().await?;
        self.large = None;
        let mut decoder = Decoder::new(self.max_message_bytes(), session.declared_bytes());
        loop {
            self.inbox.decode(&mut decoder);
            self.put_aside(&mut decoder).await;
            if decoder.is_at_end() {
                break;
            }
            match self.fill(session.patience(), false).await {
                Ok(()) => {}
                Err(Quiet::Silence) => return Ok(Next::Input(Input::Timeout)),
                Err(Quiet::Stopping | Quiet::Lost) => return Err(Lost),
            }
        }
        let result = self.received(decoder).await.map(|data| self.data = Some(data));
        if let Err(fault) = &result {
            self.entered.received();
            self.count_refusal(&fault.reply());
            self.say_refused(session.envelope(), &fault.reply(), *fault);
        }
        Ok(Next::Input(Input::Data(result)))
    }

    /// A chunk up to its last octet, whatever becomes of it: the next command stands behind it.
    pub(super) async fn receive_chunk(
        &mut self,
        session: &Session,
        chunk: Chunk,
        fate: Fate,
    ) -> Result<Next, Lost> {
        let mut chunks = match (fate, self.chunks.take()) {
            (Fate::Append, Some(chunks)) => chunks,
            _ => {
                self.large = None;
                Chunks::new(self.max_message_bytes(), session.declared_bytes())
            }
        };
        if fate == Fate::Drop {
            chunks.abandon();
        }
        chunks.begin(chunk.octets);
        loop {
            self.inbox.take_chunk(&mut chunks);
            self.put_aside(&mut chunks).await;
            if chunks.is_at_end() {
                break;
            }
            // The client may wait for the replies to what it said before it sends more.
            self.flush().await?;
            match self.fill(session.patience(), false).await {
                Ok(()) => {}
                Err(Quiet::Silence) => return Ok(Next::Input(Input::Timeout)),
                Err(Quiet::Stopping | Quiet::Lost) => return Err(Lost),
            }
        }
        let result = if fate == Fate::Drop {
            Ok(())
        } else if chunk.last {
            self.received(chunks).await.map(|data| self.data = Some(data))
        } else if let Some(fault) = chunks.fault() {
            self.large = None;
            Err(fault)
        } else {
            self.chunks = Some(chunks);
            Ok(())
        };
        if let Err(fault) = &result {
            self.entered.received();
            self.count_refusal(&fault.reply());
            self.say_refused(session.envelope(), &fault.reply(), *fault);
        }
        Ok(Next::Input(Input::Chunk(result)))
    }

    /// Drops chunks whose transaction is gone (RSET, EHLO, STARTTLS, or a refused chunk).
    pub(super) fn drop_stray_chunks(&mut self, session: &Session) {
        if self.chunks.is_some() && !session.is_chunking() {
            (self.chunks, self.large) = (None, None);
            self.entered.received();
        }
    }

    fn say_refused(&self, envelope: Option<&Envelope>, reply: &Reply, fault: DataFault) {
        let from = envelope.map(|envelope| envelope.reverse_path.to_string());
        tracing::info!(client = %self.client, from, %reply, %fault, "refused");
    }
}
