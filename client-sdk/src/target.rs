//! Addresses and targets as people write them. What leaves this room is `host:port`, or a refusal that says what to write.

use crate::Error;

/// Where endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Ask these balancers.
    Balancers { balancers: Vec<String>, service: Option<String> },
    /// No balancer: these endpoints, for ever. For laptops and tests.
    Static { endpoints: Vec<String>, service: Option<String> },
}

impl Target {
    /// The target, unless it names another service than the one asked for.
    pub(crate) fn of_service(self, wanted: &str) -> Result<Self, Error> {
        let (Self::Balancers { service, .. } | Self::Static { service, .. }) = &self;
        match service {
            Some(named) if named != wanted => {
                let reason = format!("it names service {named}, and {wanted} is asked for");
                Err(Error::Target { target: named.clone(), reason })
            }
            Some(_) | None => Ok(self),
        }
    }
}

/// Reads `lookaside://host:port[,host:port]/service` or `static://host:port[,host:port][/service]`.
pub(crate) fn parse(target: &str) -> Result<Target, Error> {
    let refuse = |reason: &str| Error::Target { target: target.to_owned(), reason: reason.to_owned() };
    let (scheme, rest) = target.trim().split_once("://").ok_or_else(|| refuse("it has no scheme"))?;
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let service = Some(path.trim_end_matches('/')).filter(|s| !s.is_empty()).map(str::to_owned);
    let hosts = addresses(hosts.split(',').filter(|h| !h.trim().is_empty()))?;
    if hosts.is_empty() {
        return Err(refuse("it names no address"));
    }
    match scheme {
        "lookaside" => Ok(Target::Balancers { balancers: hosts, service }),
        "static" => Ok(Target::Static { endpoints: hosts, service }),
        _ => Err(refuse("its scheme is neither lookaside nor static")),
    }
}

/// Several addresses, doubles dropped, order kept.
pub(crate) fn addresses<I, S>(given: I) -> Result<Vec<String>, Error>
where
    I: IntoIterator<Item = S>,
    S: AsRef<str>,
{
    let mut all: Vec<String> = Vec::new();
    for one in given {
        let one = address(one.as_ref())?;
        if !all.contains(&one) {
            all.push(one);
        }
    }
    Ok(all)
}

/// One address as `host:port`. An `http://` before it and a `/` after it are dropped.
pub(crate) fn address(given: &str) -> Result<String, Error> {
    let refuse = |reason: &str| Error::Address { address: given.to_owned(), reason: reason.to_owned() };
    let bare = given.trim();
    let bare = bare.strip_prefix("http://").unwrap_or(bare);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let (host, port) = bare.rsplit_once(':').ok_or_else(|| refuse("it has no port"))?;
    let port: u16 = port.parse().map_err(|_| refuse("its port is not a number from 1 to 65535"))?;
    if port == 0 {
        return Err(refuse("its port is 0"));
    }
    let inner = match host.strip_prefix('[') {
        Some(six) => {
            let six = six.strip_suffix(']').ok_or_else(|| refuse("its [ is not closed"))?;
            six.parse::<std::net::Ipv6Addr>().map_err(|_| refuse("it has no IPv6 address within [ ]"))?;
            return Ok(bare.to_owned());
        }
        None => host,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if inner.is_empty() || inner.len() > HOST_LENGTH_MAX || !inner.chars().all(plain) {
        return Err(refuse("its host is not a name or an IP address (IPv6 goes in [ ])"));
    }
    Ok(bare.to_owned())
}

/// The longest name DNS allows, bytes; anything longer is refused.
const HOST_LENGTH_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_accepted_as_people_write_them() {
        for (given, wanted) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("http://lb-0:7400", "lb-0:7400"),
            ("http://lb-0.infra:7400/", "lb-0.infra:7400"),
            ("[::1]:7400", "[::1]:7400"),
        ] {
            assert_eq!(address(given).unwrap(), wanted);
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused_with_a_reason() {
        for given in
            ["", "lb", "lb:", "lb:0", "lb:99999", ":80", "::1:80", "[::1:80", "a b:80", "https://lb:80", "a/b:80"]
        {
            let error = address(given).expect_err(given).to_string();
            assert!(error.contains("say host:port"), "{error}");
        }
    }

    #[test]
    fn targets_name_balancers_or_endpoints() {
        assert_eq!(
            parse("lookaside://a:1,b:2/greeter").unwrap(),
            Target::Balancers { balancers: vec!["a:1".into(), "b:2".into()], service: Some("greeter".into()) }
        );
        assert_eq!(
            parse("static://a:1,b:2").unwrap(),
            Target::Static { endpoints: vec!["a:1".into(), "b:2".into()], service: None }
        );
        assert_eq!(
            parse("lookaside://a:1/").unwrap(),
            Target::Balancers { balancers: vec!["a:1".into()], service: None }
        );
        assert!(parse("lookaside:///greeter").is_err());
        assert!(parse("dns://a:1/greeter").is_err());
        assert!(parse("a:1").is_err());
    }

    #[test]
    fn a_target_of_another_service_is_refused() {
        let of = |target: &str| parse(target).unwrap().of_service("greeter");
        assert!(of("static://a:1").is_ok() && of("lookaside://a:1/greeter").is_ok());
        let refused = of("lookaside://a:1/payments").unwrap_err().to_string();
        assert!(refused.contains("payments") && refused.contains("greeter"), "{refused}");
    }
}
