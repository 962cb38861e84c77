//! Packets: what everything is sent in, before and in the stream.
//!
//! ```text
//!   bytes of the payload (3) | number (1) | payload
//! ```
//!
//! A payload of 0xffffff bytes goes on in the next packet. Source: MySQL's internals, "Protocol Basics".

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::refusal::unknown;
use crate::error::SourceError;

const HEAD_BYTES: usize = 4;
/// The most that one packet carries.
const PAYLOAD_BYTES_MAX: usize = 0xff_ffff;
/// The largest answer that is accepted before the stream begins.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 16 << 10;

/// Bytes of the payload of the packet at the start, if its head is here.
pub(super) fn payload_bytes(buffer: &[u8]) -> Option<usize> {
    let (head, _) = buffer.split_first_chunk::<HEAD_BYTES>()?;
    Some(u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize)
}

/// Whether a payload of so many bytes goes on in the next packet.
pub(super) fn goes_on(payload_bytes: usize) -> bool {
    payload_bytes == PAYLOAD_BYTES_MAX
}

/// Bytes of the packets that carry the payload at the start; `None`: they are not all here.
pub(super) fn span(buffer: &[u8]) -> Option<usize> {
    let mut end = 0;
    loop {
        let bytes = payload_bytes(buffer.get(end..)?)?;
        end += HEAD_BYTES + bytes;
        if end > buffer.len() {
            return None;
        }
        if !goes_on(bytes) {
            return Some(end);
        }
    }
}

/// The first bytes of the payload at the start.
pub(super) fn payload_start(buffer: &[u8]) -> &[u8] {
    buffer.get(HEAD_BYTES..).unwrap_or_default()
}

/// The payload of packets that are here whole; what is between its parts is overwritten.
pub(super) fn join(packets: &mut [u8]) -> &mut [u8] {
    let (mut at, mut end) = (0, HEAD_BYTES);
    while let Some(bytes) = payload_bytes(&packets[at..]) {
        let start = at + HEAD_BYTES;
        if start != end {
            packets.copy_within(start..start + bytes, end);
        }
        end += bytes;
        at = start + bytes;
    }
    &mut packets[HEAD_BYTES..end]
}

/// The packets of a connection before its stream begins.
pub(super) struct Packets<S> {
    stream: S,
    buffer: BytesMut,
    /// The next packet's.
    number: u8,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Packets<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: BytesMut::with_capacity(READ_BYTES),
            number: 0,
        }
    }

    /// Goes on with a stream that carries this one.
    pub(super) async fn over<T, F>(
        self,
        carry: impl FnOnce(S) -> F,
    ) -> Result<Packets<T>, SourceError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        // Whoever is between could have put it there.
        if !self.buffer.is_empty() {
            return Err(unknown("something before the encryption that it agreed to"));
        }
        Ok(Packets {
            stream: carry(self.stream).await?,
            buffer: self.buffer,
            number: self.number,
        })
    }

    /// The stream, and what was read of it already.
    pub(super) fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.buffer)
    }

    pub(super) async fn read(&mut self) -> Result<Bytes, SourceError> {
        loop {
            if payload_bytes(&self.buffer).is_some_and(|bytes| bytes > ANSWER_BYTES_MAX) {
                return Err(unknown("an answer of more than 1 MiB"));
            }
            if let Some(span) = span(&self.buffer) {
                let packet = self.buffer.split_to(span).freeze();
                self.number = packet[HEAD_BYTES - 1].wrapping_add(1);
                return Ok(packet.slice(HEAD_BYTES..));
            }
            self.buffer.reserve(READ_BYTES);
            let read = self.stream.read_buf(&mut self.buffer);
            match tokio::time::timeout(ANSWER_WITHIN, read).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0)) => {
                    let end = std::io::ErrorKind::UnexpectedEof;
                    return Err(SourceError::Connection(end.into()));
                }
                Ok(Err(error)) => return Err(SourceError::Connection(error)),
                Err(_) => {
                    let late = std::io::Error::other("the server gave no answer in 30 s");
                    return Err(SourceError::Connection(late));
                }
            }
        }
    }

    /// Sends one payload of the conversation.
    pub(super) async fn write(&mut self, payload: &[u8]) -> Result<(), SourceError> {
        let mut packets = Vec::with_capacity(HEAD_BYTES + payload.len());
        let mut rest = payload;
        loop {
            let (part, after) = rest.split_at(rest.len().min(PAYLOAD_BYTES_MAX));
            let bytes = u32::try_from(part.len()).expect("at most PAYLOAD_BYTES_MAX");
            packets.extend_from_slice(&bytes.to_le_bytes()[..3]);
            packets.push(self.number);
            packets.extend_from_slice(part);
            self.number = self.number.wrapping_add(1);
            rest = after;
            if !goes_on(part.len()) {
                break;
            }
        }
        let sent = async {
            self.stream.write_all(&packets).await?;
            self.stream.flush().await
        };
        match tokio::time::timeout(ANSWER_WITHIN, sent).await {
            Ok(sent) => sent.map_err(SourceError::Connection),
            Err(_) => Err(SourceError::Connection(std::io::Error::other(
                "the server took nothing for 30 s",
            ))),
        }
    }

    /// Sends the first payload of a new conversation.
    pub(super) async fn command(&mut self, payload: &[u8]) -> Result<(), SourceError> {
        self.number = 0;
        self.write(payload).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What a peer sends that sends these payloads.
    async fn sent(payloads: &[&[u8]]) -> Vec<u8> {
        let (mine, mut theirs) = tokio::io::duplex(1 << 16);
        let reading = tokio::spawn(async move {
            let mut bytes = Vec::new();
            theirs.read_to_end(&mut bytes).await.unwrap();
            bytes
        });
        let mut packets = Packets::new(mine);
        for payload in payloads {
            packets.write(payload).await.unwrap();
        }
        drop(packets);
        reading.await.unwrap()
    }

    #[tokio::test]
    async fn a_payload_of_any_length_comes_whole() {
        let small = b"small".to_vec();
        for bytes in [
            0,
            1,
            PAYLOAD_BYTES_MAX - 1,
            PAYLOAD_BYTES_MAX,
            2 * PAYLOAD_BYTES_MAX + 7,
        ] {
            let large: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            let mut bytes = sent(&[&large, &small]).await;
            let first = span(&bytes).unwrap();
            for cut in [0, 3, first - 1] {
                assert_eq!(span(&bytes[..cut]), None);
            }
            assert!(
                payload_start(&bytes[..4 + large.len().min(9)]) == &large[..large.len().min(9)]
            );
            let (one, two) = bytes.split_at_mut(first);
            assert!(*join(one) == large);
            assert_eq!(span(two), Some(two.len()));
            assert!(*join(two) == small);
        }
    }

    #[tokio::test]
    async fn packets_are_numbered_through_a_conversation() {
        let (mine, theirs) = tokio::io::duplex(1 << 10);
        let (mut mine, mut theirs) = (Packets::new(mine), Packets::new(theirs));
        theirs.write(b"hello").await.unwrap();
        assert_eq!(mine.read().await.unwrap(), &b"hello"[..]);
        mine.write(b"login").await.unwrap();
        theirs.read().await.unwrap();
        assert_eq!((mine.number, theirs.number), (2, 2));
        mine.command(b"query").await.unwrap();
        theirs.read().await.unwrap();
        assert_eq!((mine.number, theirs.number), (1, 1));
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_refused() {
        let (mine, mut theirs) = tokio::io::duplex(1 << 10);
        theirs.write_all(&[0xff, 0xff, 0xff, 0, 1]).await.unwrap();
        let refused = Packets::new(mine).read().await.unwrap_err();
        assert_eq!(refused.problem().code, "DR-1040");
    }

    #[tokio::test]
    async fn what_comes_before_the_encryption_is_refused() {
        let (mine, mut theirs) = tokio::io::duplex(1 << 10);
        theirs.write_all(b"\x01\0\0\0A\x01\0\0\x01B").await.unwrap();
        let mut packets = Packets::new(mine);
        packets.read().await.unwrap();
        let carried = packets.over(|stream| async { Ok(stream) }).await;
        assert!(carried.is_err_and(|error| error.problem().code == "DR-1040"));
    }
}
