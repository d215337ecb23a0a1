//! Addresses as people write them: `host:port`, an `http://` before it is accepted everywhere.

use std::net::{SocketAddr, ToSocketAddrs as _};

/// An admin listener: a scheme before it says how it is asked, and stays.
pub(crate) fn parse_admin(text: &str) -> Result<String, String> {
    let (scheme, rest) = match text.strip_prefix("https://") {
        Some(rest) => ("https://", rest),
        None => (text.strip_prefix("http://").map_or("", |_| "http://"), text),
    };
    Ok(format!("{scheme}{}", parse(rest)?))
}

/// An address to connect to, as `host:port`. Refuses, in words, what has no port.
pub(crate) fn parse(text: &str) -> Result<String, String> {
    if text.starts_with("https://") {
        return Err("host:port is expected; it is connected to over TLS where --ca says whom to trust".to_owned());
    }
    let bare = text.strip_prefix("http://").unwrap_or(text);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    match bare.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() && is_host(host) => Ok(bare.to_owned()),
        _ => Err("host:port is expected, such as 127.0.0.1:7401".to_owned()),
    }
}

/// An address to listen on; port 0 lets the kernel choose.
pub(crate) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let bare = parse(text)?;
    bare.to_socket_addrs()
        .map_err(|error| error.to_string())?
        .next()
        .ok_or_else(|| "the name has no address".to_owned())
}

/// What a balancer says it listens on, as seen from here: an address that means "every interface" is replaced by the
/// host through which the balancer was reached.
pub(crate) fn seen_from_here(listens_on: &str, reached_at: &str) -> String {
    match (listens_on.parse::<SocketAddr>(), reached_at.rsplit_once(':')) {
        (Ok(address), Some((host, _))) if address.ip().is_unspecified() => {
            format!("{host}:{}", address.port())
        }
        _ => listens_on.to_owned(),
    }
}

/// An IPv6 address needs its brackets, or its last group would be taken for the port.
fn is_host(host: &str) -> bool {
    let bracketed = host.starts_with('[') && host.ends_with(']');
    bracketed || !host.contains([':', '/', '@', ' ', ','])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_before_an_address_is_accepted() {
        for (text, address) in [
            ("127.0.0.1:7401", "127.0.0.1:7401"),
            ("http://127.0.0.1:7401", "127.0.0.1:7401"),
            ("http://lb-0:7401/", "lb-0:7401"),
            ("http://[::1]:7401", "[::1]:7401"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(address));
        }
    }

    #[test]
    fn an_admin_listener_keeps_its_scheme() {
        for text in ["lb-0:7401", "http://lb-0:7401", "https://lb-0:7401"] {
            assert_eq!(parse_admin(text).as_deref(), Ok(text));
        }
        assert_eq!(parse_admin("https://lb-0:7401/").as_deref(), Ok("https://lb-0:7401"));
        assert!(parse_admin("https://http://lb-0").is_err() && parse_admin("ftp://lb-0:1").is_err());
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "localhost", ":7401", "a:b", "::1:7401", "https://a:1", "http://a:1/x", "a:70000", "a:1,b:2"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wildcard_address_is_replaced_by_the_host_that_was_reached() {
        assert_eq!(seen_from_here("0.0.0.0:7400", "lb-0:7401"), "lb-0:7400");
        assert_eq!(seen_from_here("[::]:7400", "[::1]:7401"), "[::1]:7400");
        assert_eq!(seen_from_here("10.0.0.8:7400", "lb-0:7401"), "10.0.0.8:7400");
    }
}
