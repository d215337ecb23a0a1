//! Which endpoint answered, and why a call failed: typed, for programs; the same stands in the status message, for people.
//!
//! `Why` travels in the metadata of the status, since a status built from a response's trailers has no other room. A server
//! that relays such a status relays the address with it: build a fresh status at the edge of what you show to others.

use http::{HeaderMap, HeaderValue};
use tonic::Status;

const ENDPOINT: &str = "lookaside-endpoint";
const WHAT: &str = "lookaside-what";
const ATTEMPTS: &str = "lookaside-attempts";
const NOT_RETRIED: &str = "lookaside-not-retried";

/// The endpoint that answered a call. In the extensions of every response.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Picked {
    /// `host:port`
    pub address: std::sync::Arc<str>,
    /// How often it was sent, this time included. Those before it provably did not process the call, or it may be executed
    /// again: they failed, or were slow.
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
    /// How often it was sent.
    pub attempts: u32,
    /// Why it was not sent once more; `None` where another attempt would have made no sense.
    pub not_retried: Option<NotRetried>,
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
    /// Every endpoint had as many calls in flight as it may have, and too many calls were waiting already.
    EndpointsFull,
    /// It was not sent: the balancer says that the service has too much to do, and most calls were refused of late.
    Throttled,
}

/// Why a failed call was not sent once more. Closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRetried {
    /// It may have been executed, and its method is not declared idempotent.
    NotIdempotent,
    /// Its end is not among those to retry.
    Code,
    /// It had all the attempts that it may have.
    Attempts,
    /// The endpoint asked not to.
    Pushback,
    /// Its request is longer than what is kept of one.
    RequestTooLong,
    /// Too many calls fail: retries would only add to it.
    Budget,
    /// The next attempt would have begun after its deadline.
    Deadline,
    /// The balancer says that the service has too much to do.
    Overload,
}

impl NotRetried {
    const ALL: [NotRetried; 8] = [
        NotRetried::Overload,
        NotRetried::NotIdempotent,
        NotRetried::Code,
        NotRetried::Attempts,
        NotRetried::Pushback,
        NotRetried::RequestTooLong,
        NotRetried::Budget,
        NotRetried::Deadline,
    ];

    /// The word that stands for it in metadata and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            NotRetried::NotIdempotent => "NOT_IDEMPOTENT",
            NotRetried::Code => "CODE",
            NotRetried::Attempts => "ATTEMPTS",
            NotRetried::Pushback => "PUSHBACK",
            NotRetried::RequestTooLong => "REQUEST_TOO_LONG",
            NotRetried::Budget => "BUDGET",
            NotRetried::Deadline => "DEADLINE",
            NotRetried::Overload => "OVERLOAD",
        }
    }

    /// For people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            NotRetried::NotIdempotent => "its method is not declared idempotent",
            NotRetried::Code => "its policy does not retry this code",
            NotRetried::Attempts => "it had all attempts that its policy allows",
            NotRetried::Pushback => "the endpoint asked not to",
            NotRetried::RequestTooLong => "its request is longer than 65536 bytes and was not kept",
            NotRetried::Budget => "the retry budget is spent, too many calls fail",
            NotRetried::Overload => "the balancer says that the service has too much to do",
            NotRetried::Deadline => "the next attempt would have begun after its deadline",
        }
    }
}

impl NotRetried {
    /// The status, with this in it, typed and in words.
    pub(crate) fn said_in(self, status: Status) -> Status {
        let mut headers = status.metadata().clone().into_headers();
        annotate_not_retried(&mut headers, self);
        let message = format!("{}; not retried: {}", status.message(), self.words());
        Status::with_metadata(status.code(), message, tonic::metadata::MetadataMap::from_headers(headers))
    }
}

impl What {
    const ALL: [What; 11] = [
        What::Throttled,
        What::EndpointsFull,
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
            What::EndpointsFull => "ENDPOINTS_FULL",
            What::Throttled => "THROTTLED",
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
        not_retried: text(NOT_RETRIED).and_then(|word| NotRetried::ALL.into_iter().find(|n| n.as_str() == word)),
    })
}

/// Writes the facts into the headers or trailers of an answer that is an error. What a relayed status carried of its own
/// is replaced: the caller asks about its own call.
pub(crate) fn annotate(headers: &mut HeaderMap, endpoint: Option<&str>, what: What, attempts: u32) {
    headers.remove(ENDPOINT);
    headers.remove(NOT_RETRIED);
    if let Some(value) = endpoint.and_then(|e| HeaderValue::from_str(e).ok()) {
        headers.insert(ENDPOINT, value);
    }
    headers.insert(WHAT, HeaderValue::from_static(what.as_str()));
    headers.insert(ATTEMPTS, HeaderValue::from(attempts));
}

/// Adds to what [`annotate`] wrote.
pub(crate) fn annotate_not_retried(headers: &mut HeaderMap, why: NotRetried) {
    headers.insert(NOT_RETRIED, HeaderValue::from_static(why.as_str()));
}

const MESSAGE: &str = "grpc-message";

/// Adds words of ours to those of an answer that is an error, as the protocol has them: printable ASCII, all else escaped.
pub(crate) fn add_to_message(headers: &mut HeaderMap, words: &str) {
    let mut message = headers.get(MESSAGE).map_or_else(Vec::new, |v| v.as_bytes().to_vec());
    for byte in words.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => message.push(byte),
            _ => message.extend(format!("%{byte:02X}").into_bytes()),
        }
    }
    if let Ok(message) = HeaderValue::from_bytes(&message) {
        headers.insert(MESSAGE, message);
    }
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

    fn facts(endpoint: Option<&str>, what: What, attempts: u32) -> Why {
        Why { endpoint: endpoint.map(str::to_owned), what, attempts, not_retried: None }
    }

    #[test]
    fn what_was_written_into_a_status_is_read_back() {
        for what in What::ALL {
            let status = status(tonic::Code::Unavailable, "x".into(), Some("10.0.0.1:80"), what, 2);
            assert_eq!(why(&status), Some(facts(Some("10.0.0.1:80"), what, 2)));
        }
        for why_not in NotRetried::ALL {
            let mut headers = HeaderMap::new();
            annotate(&mut headers, None, What::Answered, 1);
            annotate_not_retried(&mut headers, why_not);
            let status = Status::with_metadata(
                tonic::Code::Unavailable,
                "",
                tonic::metadata::MetadataMap::from_headers(headers),
            );
            assert_eq!(why(&status).and_then(|w| w.not_retried), Some(why_not));
        }
        assert_eq!(why(&Status::unavailable("from elsewhere")), None);
    }

    #[test]
    fn a_relayed_status_speaks_of_the_last_call() {
        let mut inner = status(tonic::Code::Internal, "x".into(), Some("inner:1"), What::ConnectionLost, 3)
            .metadata()
            .clone()
            .into_headers();
        annotate_not_retried(&mut inner, NotRetried::Budget);
        annotate(&mut inner, None, What::NoEndpoint, 0);
        let relayed =
            Status::with_metadata(tonic::Code::Internal, "", tonic::metadata::MetadataMap::from_headers(inner));
        assert_eq!(why(&relayed), Some(facts(None, What::NoEndpoint, 0)));
    }
}
