//! Values that YAML has no kind for: durations, percents, networks, and an endpoint that may be an address alone.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::tree::Spanned;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// Addresses with the same first bits, as in 10.0.0.0/8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: u128,
    bits: u8,
    is_v4: bool,
}

impl Network {
    /// `address/bits`, or an address alone.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| format!("`{address}` is not an IP address"))?;
        let is_v4 = address.is_ipv4();
        let width = if is_v4 { 32 } else { 128 };
        let bits = match bits.map(str::parse::<u8>) {
            None => width,
            Some(Ok(bits)) if bits <= width => bits,
            Some(_) => return Err(format!("the part after the slash of `{text}` is not a number from 0 to {width}")),
        };
        Ok(Self { first: masked(address, bits), bits, is_v4 })
    }

    /// Whether the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_v4 && masked(address, self.bits) == self.first
    }
}

/// The first bits of an address, from the top; IPv4 addresses are put there too.
fn masked(address: IpAddr, bits: u8) -> u128 {
    let number = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    number & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

/// A duration as people write it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span(pub(super) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit_ms = match &text[number.len()..] {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            _ => None,
        };
        let whole: Option<u64> = number.trim_end().parse().ok();
        match whole.zip(unit_ms).and_then(|(number, unit_ms)| number.checked_mul(unit_ms)) {
            Some(ms) => Ok(Self(Duration::from_millis(ms))),
            None => Err(de::Error::custom(format!(
                "`{text}` is not a duration: a whole number and ms, s, m or h, as in 500ms"
            ))),
        }
    }
}

/// A share of a hundred: `50%` or 50.
#[derive(Debug, Clone, Copy)]
pub(super) struct Percent(pub(super) u32);

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_suffix('%').unwrap_or(&text).trim_end().parse() {
            Ok(percent @ 0..=100) => Ok(Self(percent)),
            _ => {
                Err(de::Error::custom(format!("`{text}` is not a percentage: a whole number from 0 to 100, as in 50%")))
            }
        }
    }
}

/// A percentage that may be above a hundred: `125%` or 125.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ratio(pub(super) u32);

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let percent = text.strip_suffix('%').unwrap_or(&text).trim_end().parse();
        percent
            .map(Self)
            .map_err(|_| de::Error::custom(format!("`{text}` is not a percentage: a whole number, as in 125%")))
    }
}

/// Where to listen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Socket(pub(super) SocketAddr);

impl<'de> Deserialize<'de> for Socket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let reason = || de::Error::custom(format!("`{text}` is not an IP address and port, as in 127.0.0.1:7400"));
        text.parse().map(Self).map_err(|_| reason())
    }
}

/// An endpoint as the file has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndpointForm {
    pub(super) address: String,
    pub(super) locality: Option<String>,
    pub(super) weight: Option<u32>,
    pub(super) priority: Option<u32>,
    pub(super) instance: Option<String>,
    pub(super) tls_name: Option<String>,
}

/// An address alone, or a mapping. Not an untagged enum: that would lose the place and reason of a mistake inside.
#[derive(Debug)]
pub(super) struct Endpoint(pub(super) EndpointForm);

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Endpoint;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("host:port, or a mapping with an address")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Endpoint, E> {
                let address = text.to_owned();
                let (locality, weight, priority, instance, tls_name) = (None, None, None, None, None);
                Ok(Endpoint(EndpointForm { address, locality, weight, priority, instance, tls_name }))
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Endpoint, M::Error> {
                EndpointForm::deserialize(MapAccessDeserializer::new(map)).map(Endpoint)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// A key with nothing behind it, as when all below it is commented out, is as good as none.
pub(super) fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A value and its place; `None` where the file is silent.
pub(super) type Maybe<T> = Option<Spanned<T>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_the_addresses_with_its_first_bits() {
        for (network, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "::1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "2001:db9::1", true),
        ] {
            let network_parsed = Network::parse(network).unwrap();
            assert_eq!(network_parsed.contains(address.parse().unwrap()), inside, "{network} {address}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.0/-1", "::/129", "a/8", "10.0.0.0/"] {
            assert!(Network::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_a_unit_and_percents_an_end() {
        let span = |text: &str| serde_saphyr::from_str::<Span>(text).map(|s| s.0).ok();
        assert_eq!(span("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(span("2m"), Some(Duration::from_secs(120)));
        assert_eq!(span("1h"), Some(Duration::from_secs(3600)));
        assert_eq!(span("0s"), Some(Duration::ZERO));
        for bad in ["5", "-1s", "1.5s", "s", "5 d", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(span(bad), None, "{bad}");
        }
        let percent = |text: &str| serde_saphyr::from_str::<Percent>(text).map(|p| p.0).ok();
        assert_eq!(percent("50%"), Some(50));
        assert_eq!(percent("50"), Some(50));
        for bad in ["101", "-1%", "50 percent", "0.5"] {
            assert_eq!(percent(bad), None, "{bad}");
        }
    }
}
