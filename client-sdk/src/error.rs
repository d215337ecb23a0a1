//! What can go wrong before there is a channel. What goes wrong with a call is a `tonic::Status`; see [`crate::why`].

use std::fmt::Write as _;

/// Why a channel could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The target is not one of the forms that are understood.
    #[error(
        "{target:?} is not a target: {reason}; say lookaside://host:port[,host:port]/service or static://host:port[,host:port]"
    )]
    Target {
        /// What was given.
        target: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An address of a balancer or of a fallback endpoint is not host:port.
    #[error("{address:?} is not an address: {reason}; say host:port")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No balancer answered in time, and there is no fallback.
    #[error(
        "no list for {service:?}: no balancer answered within {waited_ms} ms ({reason}); fallback: none configured. \
         Use lazy() to start without one; try: lookaside status"
    )]
    NoBalancer {
        /// The service that was asked for.
        service: String,
        /// How long connect waited, milliseconds.
        waited_ms: u64,
        /// What happened at each attempt, the last one.
        reason: String,
    },
    /// What is said of a method cannot be done.
    #[error("the policy of method {path:?} is not possible: {reason}")]
    Method {
        /// The path it was given for.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The channel was made outside of a tokio runtime, whose tasks it needs.
    #[error("a channel needs a tokio runtime: call this from within one")]
    NoRuntime,
}

/// Words that come from a peer are cut here, bytes: they end up in error messages, and those in the headers of a gateway.
const WORDS_BYTES_MAX: usize = 500;

/// The words of a peer, as many as fit into an error message.
pub(crate) fn cut(mut words: String) -> String {
    if words.len() > WORDS_BYTES_MAX {
        let end = (0..=WORDS_BYTES_MAX).rev().find(|end| words.is_char_boundary(*end));
        words.truncate(end.unwrap_or(0));
    }
    words
}

/// An error and all that caused it, on one line, saying nothing twice. A peer may have a say in it, so it is cut.
pub(crate) fn flatten(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !words.is_empty() && !text.contains(&words) {
            let _ = write!(text, ": {words}");
        }
        cause = inner.source();
    }
    cut(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_words_of_a_peer_are_cut_between_letters() {
        assert_eq!(cut("short".to_owned()), "short");
        let long = cut("ä".repeat(WORDS_BYTES_MAX) + "x");
        assert!(long.len() <= WORDS_BYTES_MAX && long.chars().all(|c| c == 'ä'));
    }

    #[test]
    fn every_cause_is_named_once() {
        let error = Outer(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused (os error 111)"));
        assert_eq!(flatten(&error), "outer: refused (os error 111)");
    }
}
