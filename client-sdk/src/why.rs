//! Which endpoint answered, and why a call failed: typed, for programs; the same stands in the status message, for people.
//!
//! `Why` travels in the metadata of the status, since a status built from a response's trailers has no other room. A server
//! that relays such a status relays the address with it: build a fresh status at the edge of what you show to others.

use http::{HeaderMap, HeaderValue};
use tonic::Status;

const ENDPOINT: &str = "lookaside-endpoint";
const WHAT: &str = "lookaside-what";
const ATTEMPTS: &str = "lookaside-attempts";

/// The endpoint that answered a call. In the extensions of every response.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Picked {
    /// `host:port`
    pub address: std::sync::Arc<str>,
    /// Endpoints that were tried, this one included. Those before it provably did not process the call.
    pub attempts: u32,
}

/// The endpoint that answered, or `None` when the response did not come through a [`crate::Channel`].
pub fn picked<T>(response: &tonic::Response<T>) -> Option<&Picked> {
    response.extensions().get::<Picked>()
}

/// What stands behind a failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Why {
    /// The endpoint concerned, `host:port`; `None` when none was found.
    pub endpoint: Option<String>,
    /// What happened.
    pub what: What,
    /// Endpoints that were tried.
    pub attempts: u32,
}

/// What happened to a failed call. Closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// There was no endpoint to send it to.
    NoEndpoint,
    /// It was never sent, or provably not processed, wherever it was tried.
    NotProcessed,
    /// The endpoint answered with this status.
    Answered,
    /// The connection was lost after the call was sent: it may have been processed.
    ConnectionLost,
    /// The endpoint ended the stream without a status.
    StreamReset,
    /// Its time ran out.
    DeadlineExceeded,
    /// No message came for as long as the idle limit allows.
    StreamIdle,
    /// The stream reached its longest life.
    StreamTooOld,
    /// What answered does not speak gRPC: something between here and the endpoint breaks it.
    NotGrpc,
}

impl What {
    const ALL: [What; 9] = [
        What::NoEndpoint,
        What::NotProcessed,
        What::Answered,
        What::ConnectionLost,
        What::StreamReset,
        What::DeadlineExceeded,
        What::StreamIdle,
        What::StreamTooOld,
        What::NotGrpc,
    ];

    /// The word that stands for it in metadata and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            What::NoEndpoint => "NO_ENDPOINT",
            What::NotProcessed => "NOT_PROCESSED",
            What::Answered => "ANSWERED",
            What::ConnectionLost => "CONNECTION_LOST",
            What::StreamReset => "STREAM_RESET",
            What::DeadlineExceeded => "DEADLINE_EXCEEDED",
            What::StreamIdle => "STREAM_IDLE",
            What::StreamTooOld => "STREAM_TOO_OLD",
            What::NotGrpc => "NOT_GRPC",
        }
    }
}

/// Why a call failed, or `None` when the status did not come through a [`crate::Channel`].
pub fn why(status: &Status) -> Option<Why> {
    let metadata = status.metadata();
    let text = |key: &str| metadata.get(key).and_then(|v| v.to_str().ok());
    let word = text(WHAT)?;
    Some(Why {
        endpoint: text(ENDPOINT).map(str::to_owned),
        what: What::ALL.into_iter().find(|w| w.as_str() == word)?,
        attempts: text(ATTEMPTS).and_then(|n| n.parse().ok()).unwrap_or(0),
    })
}

/// Writes the facts into the headers or trailers of an answer that is an error. What a relayed status carried of its own
/// is replaced: the caller asks about its own call.
pub(crate) fn annotate(headers: &mut HeaderMap, endpoint: Option<&str>, what: What, attempts: u32) {
    headers.remove(ENDPOINT);
    if let Some(value) = endpoint.and_then(|e| HeaderValue::from_str(e).ok()) {
        headers.insert(ENDPOINT, value);
    }
    headers.insert(WHAT, HeaderValue::from_static(what.as_str()));
    headers.insert(ATTEMPTS, HeaderValue::from(attempts));
}

/// A status of our own making, with the facts in it.
pub(crate) fn status(code: tonic::Code, message: String, endpoint: Option<&str>, what: What, attempts: u32) -> Status {
    let mut headers = HeaderMap::with_capacity(3);
    annotate(&mut headers, endpoint, what, attempts);
    Status::with_metadata(code, message, tonic::metadata::MetadataMap::from_headers(headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_into_a_status_is_read_back() {
        for what in What::ALL {
            let status = status(tonic::Code::Unavailable, "x".into(), Some("10.0.0.1:80"), what, 2);
            assert_eq!(why(&status), Some(Why { endpoint: Some("10.0.0.1:80".into()), what, attempts: 2 }));
        }
        assert_eq!(why(&Status::unavailable("from elsewhere")), None);
    }

    #[test]
    fn a_relayed_status_speaks_of_the_last_call() {
        let mut inner = status(tonic::Code::Internal, "x".into(), Some("inner:1"), What::ConnectionLost, 3)
            .metadata()
            .clone()
            .into_headers();
        annotate(&mut inner, None, What::NoEndpoint, 0);
        let relayed =
            Status::with_metadata(tonic::Code::Internal, "", tonic::metadata::MetadataMap::from_headers(inner));
        assert_eq!(why(&relayed), Some(Why { endpoint: None, what: What::NoEndpoint, attempts: 0 }));
    }
}
