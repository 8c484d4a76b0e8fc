//! A connection as the load's client has it: replies in, slices out, and nothing kept that is not needed.

use std::io::{self, IoSlice};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

/// The longest wait for one reply, connection or write.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Octets of replies kept unread. RFC 5321 §4.5.3.1.5 allows 512 for a line.
const MAX_REPLY: usize = 64 << 10;

/// What a connection may be over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// See the module.
pub(crate) struct Peer<S> {
    stream: S,
    buffer: Vec<u8>,
    /// Of the buffer, what has been read.
    at: usize,
}

/// A reply: its code, and all of its lines as they came.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) text: String,
}

impl<S: Stream> Peer<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::with_capacity(1024),
            at: 0,
        }
    }

    /// The connection itself. What was read ahead is dropped (RFC 3207 §4.2 asks for that after STARTTLS).
    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    pub(crate) async fn say(&mut self, line: &str) -> io::Result<Reply> {
        self.write(&[line.as_bytes(), b"\r\n"]).await?;
        self.reply().await
    }

    /// The next reply's code.
    pub(crate) async fn code(&mut self) -> io::Result<u16> {
        self.next().await.map(|(code, _)| code)
    }

    pub(crate) async fn reply(&mut self) -> io::Result<Reply> {
        let (code, begin) = self.next().await?;
        let text = String::from_utf8_lossy(&self.buffer[begin..self.at])
            .trim_end()
            .to_owned();
        Ok(Reply { code, text })
    }

    /// Reads to a reply's end; where it begins in the buffer.
    async fn next(&mut self) -> io::Result<(u16, usize)> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
        let begin = self.at;
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.buffer[self.at..]) {
                let line = &self.buffer[self.at..self.at + end];
                self.at += end + 1;
                let code = match line {
                    [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => [*a, *b, *c]
                        .iter()
                        .fold(0, |code, digit| code * 10 + u16::from(digit - b'0')),
                    _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no reply code")),
                };
                if line.get(3) != Some(&b'-') {
                    return Ok((code, begin));
                }
            }
            if self.buffer.len() >= MAX_REPLY {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an endless reply"));
            }
            if timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await?? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Writes all slices, in as few calls as they take.
    pub(crate) async fn write(&mut self, slices: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0); // passes over empty ones
        while !left.is_empty() {
            match timeout(PATIENCE, self.stream.write_vectored(left)).await?? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => IoSlice::advance_slices(&mut left, written),
            }
        }
        timeout(PATIENCE, self.stream.flush()).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replies_come_one_by_one_however_they_are_cut() {
        let text = b"250-a\r\n250 b\r\n354 go\r\nxyz\r\n";
        for cut in 0..text.len() {
            let (near, mut far) = tokio::io::duplex(8);
            let mut peer = Peer::new(near);
            let writer = tokio::spawn(async move {
                far.write_all(&text[..cut]).await.unwrap();
                tokio::task::yield_now().await;
                far.write_all(&text[cut..]).await.unwrap();
            });
            let first = peer.reply().await.unwrap();
            assert_eq!((first.code, &first.text[..]), (250, "250-a\r\n250 b"));
            assert_eq!(peer.code().await.unwrap(), 354);
            assert!(peer.code().await.is_err(), "no code");
            writer.await.unwrap();
        }
    }

    #[tokio::test]
    async fn slices_are_written_whole_through_a_narrow_pipe() {
        let (near, mut far) = tokio::io::duplex(3);
        let mut peer = Peer::new(near);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        peer.write(&[b"", b"abcd", b"", b"efghijk", b"l"]).await.unwrap();
        drop(peer);
        assert_eq!(reader.await.unwrap(), b"abcdefghijkl");
    }
}
