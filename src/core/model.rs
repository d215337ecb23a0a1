//! The nouns: services, endpoints, localities, clients, time. Values of these types are valid by construction.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    hash,
    limits::{COHORTS_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX, UTILIZATION_MAX},
};

/// Why a text or number from outside is not one of the values below.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Empty where something must be named.
    #[error("{what} is empty")]
    Empty {
        /// What was to be named.
        what: &'static str,
    },
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("{what} has {bytes} bytes, at most {NAME_BYTES_MAX} are allowed")]
    TooLong {
        /// What was named.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// Control characters, white space and the like.
    #[error("{what} `{text}` has a character that is not allowed: {character:?}")]
    Character {
        /// What was named.
        what: &'static str,
        /// The text, cut.
        text: String,
        /// The first offender.
        character: char,
    },
    /// Not host:port.
    #[error("address `{text}` is not host:port: {reason}")]
    Address {
        /// The text, cut.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not region/zone/subzone.
    #[error("locality `{text}` has more than three parts (region/zone/subzone)")]
    Locality {
        /// The text, cut.
        text: String,
    },
    /// NaN, infinite, negative or absurdly large.
    #[error("{what} is {value}, which is not a number from 0 to {UTILIZATION_MAX}")]
    Utilization {
        /// Which one.
        what: String,
        /// The value as text: NaN does not compare.
        value: String,
    },
}

/// A point in time: microseconds since the driver started, on a clock that never jumps.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Time from `earlier` to here; zero when `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This much later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// Cuts a text from outside to [`TEXT_BYTES_MAX`] and replaces control characters, so that it can be logged and listed.
pub fn printable(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if out.len() + character.len_utf8() > TEXT_BYTES_MAX {
            break;
        }
        out.push(if character.is_control() { ' ' } else { character });
    }
    out
}

fn required(what: &'static str, text: &str) -> Result<Arc<str>, Error> {
    if text.is_empty() { Err(Error::Empty { what }) } else { name(what, text) }
}

fn name(what: &'static str, text: &str) -> Result<Arc<str>, Error> {
    if text.len() > NAME_BYTES_MAX {
        return Err(Error::TooLong { what, bytes: text.len() });
    }
    match text.chars().find(|c| c.is_control() || c.is_whitespace()) {
        Some(character) => Err(Error::Character { what, text: printable(text), character }),
        None => Ok(text.into()),
    }
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0.as_ref().to_owned()
            }
        }
    };
}

text_type! {
    /// What a client asks for.
    ServiceName
}

impl ServiceName {
    /// One to 253 bytes without white space or control characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        required("service", text).map(Self)
    }
}

text_type! {
    /// Where an endpoint listens, `host:port`; the identity of an endpoint within its service.
    Address
}

/// Whether a host is all digits and dots, which no name is (RFC 1123, section 2.1).
fn is_numbers(host: &str) -> bool {
    host.chars().all(|c| c.is_ascii_digit() || c == '.')
}

impl Address {
    /// `host:port`, an `http://` before it is taken off; the host may be a name, an IPv4 or a bracketed IPv6 address.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.strip_prefix("http://").unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        let bad = |reason| Error::Address { text: printable(text), reason };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("there is no port"))?;
        let port: u16 = port.parse().map_err(|_| bad("the port is not a number from 1 to 65535"))?;
        if port == 0 {
            return Err(bad("port 0 cannot be called"));
        }
        match host.strip_prefix('[').map(|inner| inner.strip_suffix(']')) {
            Some(Some(inner)) if inner.parse::<std::net::Ipv6Addr>().is_ok() => {}
            Some(_) => return Err(bad("the brackets hold no IPv6 address")),
            None if host.is_empty() => return Err(bad("there is no host")),
            None if host.contains(':') => return Err(bad("an IPv6 address needs brackets")),
            None if !host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)) => {
                return Err(bad("the host is neither a name nor an address"));
            }
            None if is_numbers(host) && host.parse::<std::net::Ipv4Addr>().is_err() => {
                return Err(bad("the host is no IPv4 address, and a name has letters"));
            }
            None => {}
        }
        name("address", text).map(Self)
    }

    /// The part before the port, without brackets.
    pub fn host(&self) -> &str {
        let host = self.0.rsplit_once(':').map_or("", |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

text_type! {
    /// Where something runs: region/zone/subzone, any tail of which may be missing. Empty when unknown.
    Locality
}

impl Locality {
    /// Up to three parts between slashes.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.split('/').count() > 3 {
            return Err(Error::Locality { text: printable(text) });
        }
        name("locality", text.trim_end_matches('/')).map(Self)
    }

    /// Nothing known.
    pub fn unknown() -> Self {
        Self("".into())
    }

    /// Region and zone, without the subzone.
    pub fn zone(&self) -> &str {
        match self.0.match_indices('/').nth(1) {
            Some((at, _)) => &self.0[..at],
            None => &self.0,
        }
    }

    /// Whether `self` is `scope` or lies within it: `eu/a/r1` is within `eu/a` and `eu`.
    pub fn is_within(&self, scope: &Locality) -> bool {
        match self.0.strip_prefix(scope.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }
}

text_type! {
    /// A backend's own name for itself; empty when only its address is known.
    Instance
}

impl Instance {
    /// Up to 253 bytes without white space or control characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        name("instance", text).map(Self)
    }

    /// Only the address is known.
    pub fn unnamed() -> Self {
        Self("".into())
    }
}

text_type! {
    /// Who asks: stable over reconnects, unique per process.
    ClientId
}

impl ClientId {
    /// One to 253 bytes without white space or control characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        required("client id", text).map(Self)
    }
}

text_type! {
    /// What says that endpoints exist: `file`, `registration`, ...
    SourceId
}

impl SourceId {
    /// One to 253 bytes without white space or control characters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        required("source", text).map(Self)
    }

    /// Backends that registered themselves.
    pub fn registration() -> Self {
        Self("registration".into())
    }
}

/// Orders lists: sequences within one epoch, epochs not at all.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Random at each start of a balancer.
    pub epoch: u64,
    /// Counts up within the epoch.
    pub sequence: u64,
}

/// What a source or a backend says of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// Where it listens.
    pub address: Address,
    /// Its own name.
    pub instance: Instance,
    /// Differs after each start, and grows; 0 when unknown.
    pub incarnation: u64,
    /// Where it runs.
    pub locality: Locality,
    /// Failover tier, 0 is best.
    pub priority: u32,
    /// Share wanted against the others of its tier; [`WEIGHT_USUAL`] is usual.
    pub weight: u32,
    /// Name its certificate must show; empty means the host of the address.
    pub tls_name: Arc<str>,
}

/// The weight of an endpoint that nobody gave another one.
pub const WEIGHT_USUAL: u32 = 100;

impl EndpointSpec {
    /// An endpoint of which only the address is known.
    pub fn at(address: Address) -> Self {
        Self {
            address,
            instance: Instance::unnamed(),
            incarnation: 0,
            locality: Locality::unknown(),
            priority: 0,
            weight: WEIGHT_USUAL,
            tls_name: "".into(),
        }
    }
}

/// The machine that a client connects from, as a number: whoever is on it can take any number of names. 0 when unknown.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub u64);

/// Clients that get the same list. An assignment depends on this alone, never on the client's id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cohort {
    /// 0 to [`COHORTS_MAX`] - 1: breaks ties and chooses subsets.
    pub seed: u64,
    /// Where its clients run.
    pub locality: Locality,
}

impl Cohort {
    /// The cohort of a client.
    pub fn of(client: &ClientId, locality: Locality) -> Self {
        Self { seed: hash::text(0, client.as_str()) % COHORTS_MAX, locality }
    }

    /// A number for this cohort and endpoint that orders equals differently in each cohort.
    pub(crate) fn tie_break(&self, address: &Address) -> u64 {
        place(self.seed, address)
    }
}

/// The same number for all cohorts of a seed.
pub(crate) fn place(seed: u64, address: &Address) -> u64 {
    hash::text(seed + 1, address.as_str())
}

/// A utilisation from outside as permille; NaN, infinite, negative and absurd values are refused.
pub fn utilization_permille(what: &str, value: f64) -> Result<u32, Error> {
    if (0.0..=UTILIZATION_MAX).contains(&value) {
        Ok((value * 1000.0) as u32)
    } else {
        Err(Error::Utilization { what: printable(what), value: value.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port_and_nothing_else() {
        for good in ["10.0.0.1:80", "http://10.0.0.1:80/", "[::1]:7", "pod-1.svc.local:50051", "a_b:1"] {
            assert!(Address::parse(good).is_ok(), "{good}");
        }
        for bad in
            ["", "10.0.0.1", ":80", "a:0", "a:65536", "a b:1", "::1:80", "[x]:80", "https://a:1", "a:b:1", "a\n:1"]
        {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Address::parse("[::1]:7").unwrap().host(), "::1");
        assert_eq!(Address::parse("http://a:7").unwrap().as_str(), "a:7");
    }

    #[test]
    fn a_locality_is_within_itself_and_its_outer_parts_alone() {
        let rack = Locality::parse("eu/a/r1").unwrap();
        for (scope, within) in [("eu/a/r1", true), ("eu/a", true), ("eu", true), ("eu/ab", false), ("us", false)] {
            assert_eq!(rack.is_within(&Locality::parse(scope).unwrap()), within, "{scope}");
        }
        assert_eq!(rack.zone(), "eu/a");
        assert!(Locality::parse("a/b/c/d").is_err());
    }

    #[test]
    fn absurd_utilizations_are_refused() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1, 1e9] {
            assert!(utilization_permille("cpu", bad).is_err(), "{bad}");
        }
        assert_eq!(utilization_permille("cpu", 0.5), Ok(500));
    }

    #[test]
    fn texts_from_outside_are_cut_and_cleaned() {
        assert_eq!(printable("a\nb"), "a b");
        assert_eq!(printable(&"é".repeat(1000)).len(), TEXT_BYTES_MAX);
    }
}
