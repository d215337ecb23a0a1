//! What `ring_hash` goes by: where a call's key is, and how far its endpoint may be above the mean before the key moves on.
//! The ring itself is the client's; here are only the values that all clients must agree on.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{limits::NAME_BYTES_MAX, model::printable};

/// A tighter bound moves keys for nothing: between few calls, chance alone makes more than this.
pub const LOAD_BOUND_PERCENT_MIN: u32 = 105;
/// A wider one is as good as none.
pub const LOAD_BOUND_PERCENT_MAX: u32 = 10_000;

/// The parameters of `ring_hash`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingConfig {
    /// Header of a call that is its key; `None` where keys come by the application's code alone.
    pub header: Option<HeaderName>,
    /// Calls in flight that an endpoint may have, in percent of its share of all, before its keys move on; 0 for any number.
    pub load_bound_percent: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        // 125 %: with it a key moves on a few times at most, whatever the number of endpoints (Mirrokni et al. 2018).
        Self { header: None, load_bound_percent: 125 }
    }
}

/// Name of a request header, in lower case as HTTP/2 has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HeaderName(Arc<str>);

/// A text that names no header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a header: lower-case letters, digits, - and _, as in x-user, not -bin and not grpc-")]
pub struct NotAHeader(String);

impl HeaderName {
    /// Lower-case letters, digits, `-` and `_`. Binary headers differ in their encoding from client to client, and those of
    /// gRPC itself are not the application's: both are refused.
    pub fn parse(text: &str) -> Result<Self, NotAHeader> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        let is_reserved = text.starts_with("grpc-") || text.ends_with("-bin");
        if text.is_empty() || text.len() > NAME_BYTES_MAX || is_reserved || !text.chars().all(fits) {
            return Err(NotAHeader(printable(text)));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for HeaderName {
    type Error = NotAHeader;
    fn try_from(text: String) -> Result<Self, NotAHeader> {
        Self::parse(&text)
    }
}

impl From<HeaderName> for String {
    fn from(name: HeaderName) -> String {
        name.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_that_every_client_reads_alike() {
        for good in ["x-user", "session_id", "a", "x-1"] {
            assert_eq!(HeaderName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "X-User", "x user", "x-user:", ":path", "grpc-timeout", "key-bin", "\u{e9}", &"a".repeat(254)] {
            assert!(HeaderName::parse(bad).is_err(), "{bad}");
        }
    }
}
