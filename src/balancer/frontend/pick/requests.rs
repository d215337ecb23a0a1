//! What comes in on a stream, message by message. Our own and not the library's reader, since that one keeps a buffer for
//! every stream, knows one limit for all messages, and would let a thousand streams of one connection each hold a message
//! that never comes to its end.

use std::{future::poll_fn, pin::Pin};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::Body as _;
use lookaside_proto::v1::PickRequest;
use prost::Message as _;
use tonic::body::Body;

use crate::{accept::Connection, limits::UNFINISHED_BYTES_PER_CONNECTION_MAX};

/// Why a message is not read. The stream is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Not a message of ours.
    #[error("no message of this contract: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// By its own head.
    #[error("a message of {bytes} bytes, at most {max} are read here")]
    TooLarge {
        /// As it says.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The flag of gRPC is set.
    #[error("compressed messages are not read here")]
    Compressed,
    /// The connection has others that did not come to their end.
    #[error("a connection has at most {UNFINISHED_BYTES_PER_CONNECTION_MAX} bytes of messages that have not ended")]
    Unfinished,
    /// The stream broke.
    #[error("the stream broke")]
    Broken,
}

/// The messages of one stream.
pub(super) struct Requests {
    body: Body,
    /// Of a message that has not come to its end; or of further ones.
    bytes: BytesMut,
    counted: usize,
    connection: Connection,
}

impl Requests {
    pub(super) fn new(body: Body, connection: Connection) -> Self {
        Self { body, bytes: BytesMut::new(), counted: 0, connection }
    }

    /// The next message of at most `max` bytes; `None` at the end of the stream. Nothing is lost when this is dropped.
    pub(super) async fn next(&mut self, max: usize) -> Result<Option<PickRequest>, Error> {
        loop {
            if let Some(message) = self.take(max)? {
                return Ok(Some(message));
            }
            let frame = match poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await {
                None if self.bytes.is_empty() => return Ok(None),
                None | Some(Err(_)) => return Err(Error::Broken),
                Some(Ok(frame)) => frame,
            };
            // Trailers of a request say nothing here.
            if let Ok(data) = frame.into_data() {
                self.add(data);
            }
        }
    }

    fn add(&mut self, data: Bytes) {
        if self.bytes.is_empty() {
            // Most messages are whole: what came is read where it is.
            self.bytes = BytesMut::from(data);
        } else {
            self.bytes.extend_from_slice(&data);
        }
    }

    fn take(&mut self, max: usize) -> Result<Option<PickRequest>, Error> {
        let Some(head) = self.bytes.first_chunk::<5>() else { return self.keep() };
        let [compressed, length @ ..] = *head;
        if compressed != 0 {
            return Err(Error::Compressed);
        }
        let bytes = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if bytes > max {
            return Err(Error::TooLarge { bytes, max });
        }
        if self.bytes.len() - head.len() < bytes {
            return self.keep();
        }
        self.bytes.advance(head.len());
        let message = PickRequest::decode(self.bytes.split_to(bytes))?;
        if self.bytes.is_empty() {
            // A stream that says nothing holds nothing.
            self.bytes = BytesMut::new();
        }
        self.count(0);
        Ok(Some(message))
    }

    /// What is there waits for the rest.
    fn keep(&mut self) -> Result<Option<PickRequest>, Error> {
        self.count(self.bytes.len());
        if self.connection.unfinished_bytes() > UNFINISHED_BYTES_PER_CONNECTION_MAX {
            return Err(Error::Unfinished);
        }
        Ok(None)
    }

    fn count(&mut self, bytes: usize) {
        self.connection.count_unfinished(self.counted, bytes);
        self.counted = bytes;
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.count(0);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use lookaside_proto::v1::{Subscribe, pick_request::Kind};
    use tonic::Status;

    use super::*;

    fn framed(service: &str) -> Vec<u8> {
        let message = PickRequest { kind: Some(Kind::Subscribe(Subscribe { service: service.into() })) };
        let bytes = message.encode_to_vec();
        [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), &bytes].concat()
    }

    /// A body of these pieces that stays open.
    fn open(pieces: Vec<Vec<u8>>, connection: &Connection) -> Requests {
        use tokio_stream::StreamExt as _;
        let frames = pieces.into_iter().map(|piece| Ok::<_, Status>(Frame::data(Bytes::from(piece))));
        let body = StreamBody::new(tokio_stream::iter(frames.collect::<Vec<_>>()).chain(tokio_stream::pending()));
        Requests::new(Body::new(body), connection.clone())
    }

    async fn service(requests: &mut Requests) -> String {
        match requests.next(1_000).await.unwrap().unwrap().kind {
            Some(Kind::Subscribe(wanted)) => wanted.service,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn messages_are_read_however_they_are_cut() {
        let bytes = [framed("a"), framed("bb"), framed("ccc")].concat();
        for size in 1..=bytes.len() {
            let connection = Connection::default();
            let mut requests = open(bytes.chunks(size).map(<[u8]>::to_vec).collect(), &connection);
            for name in ["a", "bb", "ccc"] {
                assert_eq!(service(&mut requests).await, name, "in pieces of {size}");
            }
            assert_eq!(connection.unfinished_bytes(), 0);
        }
    }

    #[tokio::test]
    async fn a_length_beyond_the_limit_is_refused_before_the_message_comes() {
        let mut requests = open(vec![vec![0, 0xff, 0xff, 0xff, 0xff]], &Connection::default());
        assert!(matches!(requests.next(1_000).await, Err(Error::TooLarge { .. })));
        let mut requests = open(vec![vec![1, 0, 0, 0, 0]], &Connection::default());
        assert!(matches!(requests.next(1_000).await, Err(Error::Compressed)));
    }

    #[tokio::test]
    async fn unfinished_messages_of_a_connection_have_a_limit_together_and_make_room_when_they_go() {
        let connection = Connection::default();
        let half = || {
            let mut bytes = vec![0, 0x7f, 0, 0, 0];
            bytes.resize(UNFINISHED_BYTES_PER_CONNECTION_MAX / 2 + 1, 7);
            bytes
        };
        let mut one = open(vec![half()], &connection);
        let waits = tokio::time::timeout(std::time::Duration::from_millis(10), one.next(usize::MAX)).await;
        assert!(waits.is_err(), "it waits for the rest");
        let mut two = open(vec![half()], &connection);
        assert!(matches!(two.next(usize::MAX).await, Err(Error::Unfinished)));
        drop((one, two));
        let mut three = open(vec![framed("a")], &connection);
        assert_eq!(service(&mut three).await, "a");
    }
}
