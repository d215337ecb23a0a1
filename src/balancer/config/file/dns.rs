//! The name that says who serves a service, as the file has it.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::Duration,
};

use lookaside_core::{
    limits::{NAME_BYTES_MAX, PRIORITY_MAX, WEIGHT_MAX},
    model::{Instance, Locality, WEIGHT_USUAL},
};
use serde::Deserialize;

use super::Problems;
use crate::config::{
    Dns, Records,
    problem::{Code, Location},
    tree::Spanned,
    value::{Maybe, Span},
};

/// Where name servers listen.
const PORT: u16 = 53;

/// A longer part of a name does not fit into a question.
const LABEL_BYTES_MAX: usize = 63;

/// Name servers of one name; a further one would hardly ever be asked.
const SERVERS_MAX: usize = 8;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DnsForm {
    name: Maybe<String>,
    r#type: Maybe<Kind>,
    port: Maybe<u16>,
    servers: Maybe<Vec<Spanned<String>>>,
    search: Maybe<bool>,
    refresh_min: Maybe<Span>,
    refresh_max: Maybe<Span>,
    locality: Maybe<String>,
    priority: Maybe<u32>,
    weight: Maybe<u32>,
    tls_name: Maybe<String>,
}

/// Which records are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Kind {
    A,
    #[serde(rename = "AAAA")]
    Aaaa,
    #[serde(rename = "A+AAAA")]
    Both,
    #[serde(rename = "SRV")]
    Srv,
}

impl DnsForm {
    pub(super) fn dns(&self, at: Location, problems: &mut Problems) -> Option<Dns> {
        let Some(name) = &self.name else {
            problems.add(at, Code::MissingKey, "`dns` needs the `name` that is asked");
            return None;
        };
        let (mut refresh_min, mut refresh_max) = (Duration::from_secs(1), Duration::from_secs(30));
        problems.span("dns.refresh_min", &mut refresh_min, &self.refresh_min, Duration::from_millis(100));
        problems.span("dns.refresh_max", &mut refresh_max, &self.refresh_max, Duration::from_millis(100));
        let bounds = [&self.refresh_min, &self.refresh_max].into_iter().flatten().next();
        if let Some(at) = bounds.filter(|_| refresh_min > refresh_max) {
            let reason = format!("dns.refresh_min ({refresh_min:?}) is longer than dns.refresh_max ({refresh_max:?})");
            problems.add(at.referenced, Code::Conflict, reason);
        }
        let mut priority = 0;
        problems.bounded("dns.priority", &mut priority, &self.priority, 0, PRIORITY_MAX);
        let text = |form: &Maybe<String>| form.as_ref().map(|form| (form.referenced, form.value.clone()));
        let locality = text(&self.locality).and_then(|(at, text)| problems.parsed(at, Locality::parse(&text)));
        let tls_name = text(&self.tls_name).and_then(|(at, text)| problems.parsed(at, Instance::parse(&text)));
        self.check_search(&name.value, problems);
        Some(Dns {
            records: self.records(at, problems)?,
            name: problems.parsed(name.referenced, parsed_name(&name.value))?,
            servers: self.servers(problems),
            search: self.search.as_ref().is_some_and(|search| search.value),
            refresh_min,
            refresh_max,
            locality: locality.unwrap_or_else(Locality::unknown),
            priority,
            tls_name: tls_name.map(|name| Arc::from(name.as_str())),
        })
    }

    fn records(&self, at: Location, problems: &mut Problems) -> Option<Records> {
        let (v4, v6) = match self.r#type.as_ref().map_or(Kind::Both, |kind| kind.value) {
            Kind::A => (true, false),
            Kind::Aaaa => (false, true),
            Kind::Both => (true, true),
            Kind::Srv => {
                let port = self.port.as_ref().map(|port| ("port", port.referenced));
                let weight = self.weight.as_ref().map(|weight| ("weight", weight.referenced));
                for (key, at) in port.into_iter().chain(weight) {
                    problems.add(at, Code::NoEffect, format!("dns.{key} has no effect: SRV records have their own"));
                }
                return Some(Records::Srv);
            }
        };
        let Some(port) = &self.port else {
            problems.add(at, Code::MissingKey, "`dns` needs a `port`, since addresses have none");
            return None;
        };
        let Some(port) = NonZeroU16::new(port.value) else {
            problems.add(port.referenced, Code::OutOfRange, "dns.port is 0, which cannot be called");
            return None;
        };
        let mut weight = WEIGHT_USUAL;
        problems.bounded("dns.weight", &mut weight, &self.weight, 1, WEIGHT_MAX);
        Some(Records::Addresses { v4, v6, port, weight })
    }

    fn servers(&self, problems: &mut Problems) -> Vec<SocketAddr> {
        let Some(servers) = &self.servers else { return Vec::new() };
        if servers.value.is_empty() || servers.value.len() > SERVERS_MAX {
            let reason = format!("dns.servers names {}, allowed is 1 to {SERVERS_MAX}", servers.value.len());
            problems.add(servers.referenced, Code::OutOfRange, reason);
        }
        let mut parsed = Vec::new();
        for server in &servers.value {
            let text = &server.value;
            let address = text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, PORT)));
            match address.filter(|address| address.port() != 0) {
                None => {
                    let reason = format!("`{text}` is not an IP address, with or without a port, as in 10.0.0.2:53");
                    problems.add(server.referenced, Code::BadValue, reason);
                }
                Some(address) if parsed.contains(&address) => {
                    problems.add(server.referenced, Code::Duplicate, format!("name server {address} is there twice"));
                }
                Some(address) => parsed.push(address),
            }
        }
        parsed
    }

    /// The search list belongs to the system's name servers, and to names that are not absolute.
    fn check_search(&self, name: &str, problems: &mut Problems) {
        let Some(search) = self.search.as_ref().filter(|search| search.value) else { return };
        if self.servers.is_some() {
            let reason = "dns.search takes the system's search list, which says nothing to `servers` of your own";
            problems.add(search.referenced, Code::Conflict, reason);
        } else if name.ends_with('.') {
            problems.add(search.referenced, Code::NoEffect, "dns.search has no effect on a name with a dot at its end");
        }
    }
}

/// Without the dot at its end. Other alphabets are given as they travel, `xn--...`.
fn parsed_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    if name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label) && name.parse::<IpAddr>().is_err() {
        return Ok(name.to_owned());
    }
    Err(format!("`{}` is not a DNS name", lookaside_core::model::printable(text)))
}
