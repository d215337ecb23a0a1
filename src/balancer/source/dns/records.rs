//! Records as endpoints: SRV priorities as failover tiers, SRV weights as weights, addresses with ports, and words on
//! where they came from. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lookaside_core::{
    limits::{PRIORITY_MAX, WEIGHT_MAX},
    model::{Address, EndpointSpec, WEIGHT_USUAL},
};

use super::ask::{Srv, Target};
use crate::config::{Dns, Records};

/// How much more a weight of 1 is worth than one of 0, which RFC 2782 wants small but not none.
const WEIGHT_OVER_NONE: u32 = 100;

/// Where a target is called, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) target: Target,
    pub(super) port: u16,
    pub(super) priority: u32,
    pub(super) weight: u32,
}

/// SRV priorities are any numbers, and tiers count up from `first`. Beyond the last tier there is, all share it.
pub(super) fn places(first: u32, records: &[Srv]) -> Vec<Place> {
    let priorities: BTreeSet<u16> = records.iter().map(|record| record.priority).collect();
    let tier = |priority: u16| {
        let at = priorities.range(..priority).count() as u32;
        first.saturating_add(at).min(PRIORITY_MAX)
    };
    let of = |priority: u16| records.iter().filter(move |record| record.priority == priority).map(|r| r.weight);
    let scales: BTreeMap<u16, Scale> =
        priorities.iter().map(|priority| (*priority, Scale::of(of(*priority)))).collect();
    let place = |record: &Srv| Place {
        target: record.target.clone(),
        port: record.port,
        priority: tier(record.priority),
        weight: scales.get(&record.priority).map_or(WEIGHT_USUAL, |scale| scale.weight(record.weight)),
    };
    records.iter().map(place).collect()
}

/// How SRV weights of one priority become weights: all times the same, so that the largest is at least the usual one. Only their
/// ratios mean something, and a share of a weight, as endpoints have that start or come back, needs a weight that can be divided.
struct Scale {
    most: u32,
    has_none: bool,
}

impl Scale {
    fn of(weights: impl Iterator<Item = u16> + Clone) -> Self {
        Self {
            most: weights.clone().max().unwrap_or(0).into(),
            has_none: weights.into_iter().any(|weight| weight == 0),
        }
    }

    fn weight(&self, weight: u16) -> u32 {
        if self.most == 0 {
            // No record prefers anybody.
            return WEIGHT_USUAL;
        }
        let times = if self.has_none { WEIGHT_OVER_NONE } else { WEIGHT_USUAL.div_ceil(self.most) };
        let scaled = u64::from(weight) * u64::from(times);
        let most = u64::from(self.most) * u64::from(times);
        let fitted = if most > u64::from(WEIGHT_MAX) { scaled * u64::from(WEIGHT_MAX) / most } else { scaled };
        fitted.clamp(1, u64::from(WEIGHT_MAX)) as u32
    }
}

/// Every address of every target. One that is there twice is taken where it is preferred most.
pub(super) fn endpoints<I: Iterator<Item = IpAddr>>(
    dns: &Dns,
    places: &[Place],
    addresses: impl Fn(&Target) -> I,
) -> Vec<EndpointSpec> {
    let mut endpoints: BTreeMap<SocketAddr, EndpointSpec> = BTreeMap::new();
    for place in places {
        for ip in addresses(&place.target) {
            let at = SocketAddr::new(ip, place.port);
            // An address and a port that is not 0 are always one.
            let Ok(address) = Address::parse(&at.to_string()) else { continue };
            let spec = EndpointSpec {
                locality: dns.locality.clone(),
                priority: place.priority,
                weight: place.weight,
                tls_name: dns.tls_name.clone().unwrap_or_else(|| place.target.text().clone()),
                ..EndpointSpec::at(address)
            };
            let better = |old: &EndpointSpec| {
                (spec.priority, old.weight, &spec.tls_name) < (old.priority, spec.weight, &old.tls_name)
            };
            match endpoints.entry(at) {
                Entry::Vacant(new) => {
                    new.insert(spec);
                }
                Entry::Occupied(mut old) => {
                    if better(old.get()) {
                        old.insert(spec);
                    }
                }
            }
        }
    }
    endpoints.into_values().collect()
}

/// What is asked, as people write it.
pub(super) fn question(dns: &Dns) -> String {
    let kind = match dns.records {
        Records::Srv => "SRV",
        Records::Addresses { v4: true, v6: true, .. } => "A+AAAA",
        Records::Addresses { v6: true, .. } => "AAAA",
        Records::Addresses { .. } => "A",
    };
    format!("{kind} {}.", dns.name)
}

/// What was asked and how it was answered.
pub(super) fn answered(dns: &Dns, endpoints: usize, targets: usize, lives: Option<Duration>) -> String {
    let count = |count: usize, what: &str, many: &str| format!("{count} {}", if count == 1 { what } else { many });
    let mut text = format!("{} -> {}", question(dns), count(endpoints, "address", "addresses"));
    if dns.records == Records::Srv {
        text.push_str(&format!(" of {}", count(targets, "target", "targets")));
    }
    if let Some(lives) = lives {
        text.push_str(&format!(", ttl {} s", lives.as_secs()));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use hickory_resolver::proto::rr::Name;
    use lookaside_core::model::Locality;

    use super::*;

    fn target(name: &str) -> Target {
        Target::new(&Name::from_ascii(name).unwrap()).unwrap()
    }

    fn srv(priority: u16, weight: u16) -> Srv {
        Srv { priority, weight, port: 80, target: target("a.example.") }
    }

    fn dns() -> Dns {
        Dns {
            name: "greeter.example".into(),
            records: Records::Addresses { v4: true, v6: true, port: NonZeroU16::MIN, weight: 100 },
            servers: Vec::new(),
            search: false,
            refresh_min: Duration::from_secs(1),
            refresh_max: Duration::from_secs(30),
            locality: Locality::parse("eu/a").unwrap(),
            priority: 0,
            tls_name: None,
        }
    }

    #[test]
    fn srv_priorities_become_tiers_without_gaps() {
        let tiers = |first, priorities: &[u16]| {
            let records: Vec<Srv> = priorities.iter().map(|priority| srv(*priority, 1)).collect();
            places(first, &records).iter().map(|place| place.priority).collect::<Vec<_>>()
        };
        assert_eq!(tiers(0, &[10, 0, 10, 65_535]), [1, 0, 1, 2]);
        assert_eq!(tiers(3, &[7, 9]), [3, 4]);
        let many: Vec<u16> = (0..200).collect();
        assert_eq!(tiers(0, &many).into_iter().max(), Some(PRIORITY_MAX), "further ones share the last");
    }

    #[test]
    fn srv_weights_keep_their_ratios_and_none_is_small_but_not_nothing() {
        let weights = |weights: &[u16]| {
            let records: Vec<Srv> = weights.iter().map(|weight| srv(0, *weight)).collect();
            places(0, &records).iter().map(|place| place.weight).collect::<Vec<_>>()
        };
        assert_eq!(weights(&[10, 60]), [20, 120]);
        assert_eq!((weights(&[1, 1]), weights(&[50, 200])), (vec![100, 100], vec![50, 200]));
        assert_eq!(weights(&[0, 0]), [100, 100], "nobody is preferred");
        assert_eq!(weights(&[0, 1, 2]), [1, 100, 200]);
        assert_eq!(weights(&[65_535, 13_107]), [10_000, 2_000]);
        assert_eq!(weights(&[0, 1, 65_535]), [1, 1, 10_000]);
    }

    #[test]
    fn an_address_that_is_there_twice_is_taken_where_it_is_preferred() {
        let place = |name: &str, priority, weight| Place { target: target(name), port: 80, priority, weight };
        let both = |places: &[Place]| {
            let found = endpoints(&dns(), places, |_| ["10.0.0.1", "::1"].map(|a| a.parse().unwrap()).into_iter());
            let of = |e: &EndpointSpec| format!("{} {} {} {}", e.address, e.tls_name, e.priority, e.weight);
            found.iter().map(of).collect::<Vec<_>>()
        };
        let places = [place("B.example.", 1, 9), place("c.example.", 0, 5), place("a.example.", 0, 5)];
        assert_eq!(both(&places), ["10.0.0.1:80 a.example 0 5", "[::1]:80 a.example 0 5"]);
        assert_eq!(both(&places[..1]), ["10.0.0.1:80 b.example 1 9", "[::1]:80 b.example 1 9"]);
    }

    #[test]
    fn what_was_asked_reads_as_in_a_zone_file() {
        assert_eq!(
            answered(&dns(), 1, 1, Some(Duration::from_secs(5))),
            "A+AAAA greeter.example. -> 1 address, ttl 5 s"
        );
        let srv = Dns { records: Records::Srv, ..dns() };
        assert_eq!(answered(&srv, 3, 2, None), "SRV greeter.example. -> 3 addresses of 2 targets");
    }
}
