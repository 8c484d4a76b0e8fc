//! Large messages: what comes in goes to the store as it comes, but for the beginning, which holds the header.
//!
//! A message takes no more than about a chunk of memory then, whatever its size. The chunks are nobody's until the message is
//! accepted; given up, they are deleted (see [`queue::Upload`]).

use bytes::Bytes;
use mail_core::smtp::chunk::Chunks;
use mail_core::smtp::data::{Data, DataFault, Decoder};
use memchr::memmem;
use queue::keys::CHUNK;
use queue::{CommitError, Upload, Uploaded};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Shell;

/// Octets that stay in memory: the header section with all rules look at. Half a chunk, so that fields may still be changed.
const FIRST: usize = CHUNK / 2;

/// A message of which the beginning is in memory, and what has come since is in the store.
pub(super) struct Large {
    first: Bytes,
    upload: Upload,
}

/// A message that has come in whole.
pub(super) struct Received {
    /// All of it, or the beginning of a large one.
    pub(super) data: Data,
    /// What follows.
    pub(super) rest: Option<Uploaded>,
}

/// What gathers message data.
pub(super) trait Gathers {
    fn so_far(&self) -> &[u8];
    fn drain(&mut self) -> Bytes;
    fn abandon(&mut self);
    fn finish(self) -> Result<Data, DataFault>;
}

impl Gathers for Decoder {
    fn so_far(&self) -> &[u8] {
        self.so_far()
    }
    fn drain(&mut self) -> Bytes {
        self.drain()
    }
    fn abandon(&mut self) {
        self.abandon();
    }
    fn finish(self) -> Result<Data, DataFault> {
        self.finish()
    }
}

impl Gathers for Chunks {
    fn so_far(&self) -> &[u8] {
        self.so_far()
    }
    fn drain(&mut self) -> Bytes {
        self.drain()
    }
    fn abandon(&mut self) {
        self.abandon();
    }
    fn finish(self) -> Result<Data, DataFault> {
        self.finish()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Shell<S> {
    /// Counts what is in memory, and writes a chunk of it to the store where there is one. A message whose header does not
    /// end early stays in memory whole, and counts there.
    pub(super) async fn put_aside(&mut self, gathered: &mut impl Gathers) {
        let kept = gathered.so_far().len();
        let first = self.large.as_ref().map_or(0, |large| large.first.len());
        if !self.entered.receive((first + kept) as u64) {
            gathered.abandon();
            return;
        }
        if kept < CHUNK {
            return;
        }
        let written = match &mut self.large {
            Some(large) => large.upload.write(gathered.drain()).await,
            None if has_header(&gathered.so_far()[..FIRST]) => {
                let mut octets = gathered.drain();
                let first = octets.split_to(FIRST);
                let now = self.service.front.clock.now();
                let upload = self
                    .service
                    .front
                    .queue
                    .upload(self.service.random.message_id(now));
                let large = self.large.insert(Large { first, upload });
                large.upload.write(octets).await
            }
            None => return,
        };
        if let Err(error) = written {
            self.not_written(&error);
            gathered.abandon();
        }
    }

    /// The message, whose last octet has come.
    pub(super) async fn received(&mut self, gathered: impl Gathers) -> Result<Received, DataFault> {
        let large = self.large.take();
        let mut data = gathered.finish()?;
        let Some(mut large) = large else {
            return Ok(Received { data, rest: None });
        };
        let tail = std::mem::replace(&mut data.octets, large.first);
        if let Err(error) = large.upload.write(tail).await {
            self.not_written(&error);
            return Err(DataFault::NoRoom);
        }
        Ok(Received {
            data,
            rest: Some(large.upload.finish()),
        })
    }

    fn not_written(&self, error: &CommitError) {
        tracing::warn!(client = %self.client, tenant = self.tenant.as_deref(), %error, "a large message is not kept");
    }
}

fn has_header(octets: &[u8]) -> bool {
    octets.starts_with(b"\r\n") || memmem::find(octets, b"\r\n\r\n").is_some()
}
