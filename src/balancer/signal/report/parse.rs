//! From what a backend sends to what the core takes: every value is checked here, and nothing unchecked goes further.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lookaside_core::{
    event::{Backend, LoadReport, Override, Scope},
    limits::{PRIORITY_MAX, WEIGHT_MAX},
    model::{Address, EndpointSpec, Instance, Locality, ServiceName, WEIGHT_USUAL, utilization_permille},
};
use lookaside_proto::v1;
use tonic::{
    Code::{InvalidArgument, PermissionDenied},
    Status,
};

use super::{Peer, Rules};
use crate::{
    convert,
    limits::{CLOCKS_DIFFER_MAX, REPORTED_OVERRIDES_MAX},
    store,
};

/// What a backend says it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Registration {
    pub(super) service: ServiceName,
    pub(super) endpoint: EndpointSpec,
}

impl Registration {
    /// The process behind it.
    pub(super) fn backend(&self) -> Backend {
        Backend {
            service: self.service.clone(),
            address: self.endpoint.address.clone(),
            incarnation: self.endpoint.incarnation,
        }
    }
}

/// Checks what a backend says it is, and whether this peer may say so.
pub(super) fn registration(wire: &v1::Registration, rules: &Rules, peer: Peer) -> Result<Registration, Status> {
    let service = convert::service(&wire.service)?;
    let address = Address::parse(&wire.address).map_err(|e| convert::invalid("ADDRESS_INVALID", &e))?;
    allowed(&address, rules, peer)?;
    let instance = Instance::parse(&wire.instance).map_err(|e| convert::invalid("INSTANCE_INVALID", &e))?;
    let locality = Locality::parse(&wire.locality).map_err(|e| convert::invalid("LOCALITY_INVALID", &e))?;
    let tls_name = Instance::parse(&wire.tls_name).map_err(|e| convert::invalid("TLS_NAME_INVALID", &e))?;
    if wire.incarnation == 0 {
        // All starts of a backend would look like one: reports after the first restart would be older than those before.
        let words = "a registration says which start of the backend it is of";
        return Err(convert::refused(InvalidArgument, "INCARNATION_MISSING", words, &[]));
    }
    let weight = if wire.weight == 0 { WEIGHT_USUAL } else { wire.weight };
    at_most("WEIGHT_TOO_LARGE", "weight", weight, WEIGHT_MAX)?;
    at_most("PRIORITY_TOO_LARGE", "priority", wire.priority, PRIORITY_MAX)?;
    let endpoint = EndpointSpec {
        address,
        instance,
        incarnation: wire.incarnation,
        locality,
        priority: wire.priority,
        weight,
        tls_name: Arc::from(tls_name.as_str()),
    };
    Ok(Registration { service, endpoint })
}

fn at_most(reason: &'static str, what: &str, value: u32, max: u32) -> Result<(), Status> {
    if value <= max {
        return Ok(());
    }
    let words = format!("{what} is {value}, at most {max} is allowed");
    Err(convert::refused(InvalidArgument, reason, words, &[(what, &value.to_string())]))
}

/// Whether this peer may register this address. A backend could otherwise send all clients of a service to a third
/// party, to a cloud's metadata service, or back to the balancer.
fn allowed(address: &Address, rules: &Rules, peer: Peer) -> Result<(), Status> {
    let config = rules.live.config();
    let registration = &config.registration;
    let sent = [("address", address.as_str())];
    let refused = |code, reason, words: String| Err(convert::refused(code, reason, words, &sent));
    let Ok(ip) = address.host().parse::<IpAddr>() else {
        if registration.allow_foreign_addresses {
            return Ok(());
        }
        let words = format!("{address} is a host name; only IP addresses can be checked against the connection");
        return refused(PermissionDenied, "ENDPOINT_HOST_NAME", words);
    };
    let ip = ip.to_canonical();
    if let Some(kind) = unusable(ip) {
        return refused(
            InvalidArgument,
            "ENDPOINT_ADDRESS_UNUSABLE",
            format!("{address} is {kind}: clients cannot call it"),
        );
    }
    if rules.own.iter().any(|own| is_own(*own, ip, address, peer)) {
        return refused(InvalidArgument, "ENDPOINT_IS_BALANCER", format!("{address} is where the balancer listens"));
    }
    let is_allowed = registration.allow_foreign_addresses || registration.allow.iter().any(|n| n.contains(ip));
    if ip != peer.ip && !is_allowed {
        let words = format!("{address} is not the address that the backend connects from ({})", peer.ip);
        return refused(PermissionDenied, "ENDPOINT_FOREIGN_ADDRESS", words);
    }
    Ok(())
}

/// What an address is that no client can or should call; `None` for any other.
fn unusable(ip: IpAddr) -> Option<&'static str> {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    match ip {
        _ if ip.is_unspecified() => Some("unspecified"),
        _ if ip.is_multicast() => Some("a multicast address"),
        _ if is_link_local => Some("a link-local address"),
        _ if is_broadcast => Some("the broadcast address"),
        _ => None,
    }
}

/// A listener on all addresses is the balancer wherever this connection reached it.
fn is_own(own: SocketAddr, ip: IpAddr, address: &Address, peer: Peer) -> bool {
    let same_port = address.as_str().rsplit_once(':').is_some_and(|(_, port)| port.parse() == Ok(own.port()));
    let same_ip =
        ip == own.ip().to_canonical() || (own.ip().is_unspecified() && (ip.is_loopback() || Some(ip) == peer.local_ip));
    same_port && same_ip
}

/// Checks what a backend counted.
pub(super) fn counters(wire: &v1::Counters, sequence: u64) -> Result<LoadReport, Status> {
    let errors = [wire.errors_overload, wire.errors_endpoint, wire.errors_deadline];
    let errors = errors.into_iter().try_fold(0u64, u64::checked_add).filter(|errors| *errors <= wire.completions);
    let Some(errors) = errors else {
        let words = "there are more errors than completed calls";
        let sent = wire.completions.to_string();
        return Err(convert::refused(InvalidArgument, "COUNTERS_INCONSISTENT", words, &[("completions", &sent)]));
    };
    let own = [("cpu_utilization", wire.cpu_utilization), ("application_utilization", wire.application_utilization)];
    let named = wire.utilization.iter().map(|(name, value)| (name.as_str(), *value));
    let mut fullest = None;
    for (what, value) in own.into_iter().chain(named) {
        let permille = utilization_permille(what, value).map_err(|e| {
            let sent = [("field", what), ("value", &value.to_string())];
            convert::refused(InvalidArgument, "UTILIZATION_OUT_OF_RANGE", e.to_string(), &sent)
        })?;
        // 0 means not measured.
        fullest = fullest.max(Some(permille).filter(|permille| *permille > 0));
    }
    Ok(LoadReport {
        sequence,
        completions: wire.completions,
        errors,
        overloads: wire.errors_overload,
        in_flight_us: wire.in_flight_us,
        in_flight: wire.in_flight,
        utilization_permille: fullest,
    })
}

/// Words that a backend was told before and repeats; those that have ended are left out. A word on more than the
/// backend itself is taken for the backend alone: all others repeat it as well, and nobody speaks for others.
pub(super) fn overrides(
    wire: &[v1::Override],
    registration: &Registration,
    now_unix_ms: u64,
) -> Result<Vec<Override>, Status> {
    if wire.len() > REPORTED_OVERRIDES_MAX {
        let words = format!("{} overrides, at most {REPORTED_OVERRIDES_MAX} are allowed", wire.len());
        return Err(convert::refused(InvalidArgument, "OVERRIDES_TOO_MANY", words, &[]));
    }
    let words = wire.iter().map(|word| one_override(word, registration, now_unix_ms));
    words.filter_map(Result::transpose).collect()
}

fn one_override(
    wire: &v1::Override,
    registration: &Registration,
    now_unix_ms: u64,
) -> Result<Option<Override>, Status> {
    let invalid =
        |reason, words: &str, key, sent: &str| Err(convert::refused(InvalidArgument, reason, words, &[(key, sent)]));
    let spec = &registration.endpoint;
    let is_about_it = match convert::scope(wire.scope.as_ref())? {
        Scope::Address(address) => address == spec.address,
        Scope::Locality(locality) => spec.locality.is_within(&locality),
        Scope::Service => true,
    };
    if wire.service != registration.service.as_str() || !is_about_it {
        let words = "a backend repeats overrides about itself alone";
        return Err(convert::refused(PermissionDenied, "OVERRIDE_FOREIGN", words, &[("service", &wire.service)]));
    }
    let set_at = wire.set_at_unix_ms;
    if set_at == 0 || wire.replica.is_empty() {
        return invalid(
            "OVERRIDE_UNSIGNED",
            "an override says when and by which replica it was set",
            "replica",
            &wire.replica,
        );
    }
    if set_at > now_unix_ms.saturating_add(convert::millis(CLOCKS_DIFFER_MAX)) {
        return invalid(
            "OVERRIDE_FROM_FUTURE",
            "an override was set in the future",
            "set_at_unix_ms",
            &set_at.to_string(),
        );
    }
    let word = Override {
        service: registration.service.clone(),
        scope: Scope::Address(spec.address.clone()),
        action: convert::action(wire)?,
        reason: wire.reason.clone(),
        actor: wire.actor.clone(),
        set_at_unix_ms: set_at,
        replica: wire.replica.clone(),
        expires_at_unix_ms: wire.expires_at_unix_ms,
        remaining: None,
    };
    Ok(store::revived(word, now_unix_ms))
}

#[cfg(test)]
mod tests;
