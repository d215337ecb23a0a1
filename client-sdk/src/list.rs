//! The list a client holds, and what a new one from a balancer does to it. Parsed here, at the edge: a list that exists is sound.
//! Pure; who connects to what is for `pool` to say.

use std::{collections::BTreeSet, net::SocketAddr};

use http::HeaderName;
use lookaside_proto::v1;

use crate::{
    error::cut,
    picker::Policy,
    resolve::Place,
    snapshot::{Mode, Version},
    target,
};

/// A longer list is refused whole: half a list misleads.
pub(crate) const ENDPOINTS_MAX: usize = 10_000;
/// A list with a larger weight is refused: it is not meant so, and sums must not overflow.
pub(crate) const WEIGHT_MAX: u32 = 100_000_000;
/// A larger capacity is taken for this one: an estimate that is off must not cost the whole list.
const CAPACITY_MILLI_MAX: u32 = 1_000_000;
/// A list with a worse tier is refused.
pub(crate) const PRIORITY_MAX: u32 = 1_000;

/// The tier of a fallback beside a balancer's list: behind every tier that a list may have.
const SPARE_PRIORITY: u32 = PRIORITY_MAX + 1;

/// One endpoint of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) address: String,
    pub(crate) incarnation: u64,
    /// The name its certificate has to show; empty means the host of its address.
    pub(crate) tls_name: String,
    pub(crate) locality: String,
    pub(crate) priority: u32,
    pub(crate) weight: u32,
    /// Calls it serves at once compared with the others, thousandths; 0 is unknown.
    pub(crate) capacity_milli: u32,
    /// The main reason it stands where it stands, as the contract spells it; empty when there is none.
    pub(crate) reason: &'static str,
    /// What its places on a ring are computed from.
    pub(crate) hash_key: String,
    /// Not in the last list, which was incomplete: kept from the one before.
    pub(crate) kept: bool,
}

impl Listed {
    /// Whether it stands in for those that a balancer listed.
    pub(crate) fn is_spare(&self) -> bool {
        self.priority == SPARE_PRIORITY
    }

    /// An endpoint of a fallback. Whatever the name leads to has to show a certificate for that name.
    pub(crate) fn fallback(place: &Place) -> Self {
        let host = place.name.rsplit_once(':').map_or(&*place.name, |(host, _)| host);
        let is_name = place.name.parse::<SocketAddr>().is_err();
        let tls_name = if is_name { host.to_owned() } else { String::new() };
        Self { tls_name, ..Self::plain(place.address.to_string()) }
    }

    /// An endpoint of a static target: all alike.
    pub(crate) fn plain(address: String) -> Self {
        Self {
            hash_key: address.clone(),
            address,
            incarnation: 0,
            tls_name: String::new(),
            locality: String::new(),
            priority: 0,
            weight: PLAIN_WEIGHT,
            capacity_milli: 0,
            reason: "",
            kept: false,
        }
    }
}

/// What a ring of endpoints goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RingOf {
    pub(crate) seed: u64,
    /// Thousandths of a fair share; 0 is no bound.
    pub(crate) bound_milli: u32,
    /// The header that is a call's key, if any.
    pub(crate) header: Option<HeaderName>,
}

/// What balancers give an endpoint of which nothing special is known.
const PLAIN_WEIGHT: u32 = 100;

/// A list of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List {
    pub(crate) version: Option<Version>,
    pub(crate) digest: u64,
    pub(crate) complete: bool,
    pub(crate) mode: Mode,
    pub(crate) note: String,
    pub(crate) policy: Policy,
    /// For `RingHash`.
    pub(crate) ring: Option<RingOf>,
    pub(crate) endpoints: Vec<Listed>,
    /// How long it may serve without contact to a balancer, milliseconds; 0 means for ever.
    pub(crate) time_to_live_ms: u64,
}

impl List {
    /// A list that nobody sent: a static target.
    pub(crate) fn plain(addresses: &[String]) -> Self {
        Self::unsent(addresses.iter().cloned().map(Listed::plain).collect())
    }

    /// A list of these endpoints that nobody sent.
    pub(crate) fn unsent(endpoints: Vec<Listed>) -> Self {
        Self {
            version: None,
            digest: 0,
            complete: true,
            mode: Mode::Normal,
            note: String::new(),
            policy: Policy::LeastLoad,
            ring: None,
            endpoints,
            time_to_live_ms: 0,
        }
    }

    /// Reads a list off the wire. The error says, for the balancer's operator, why it is refused.
    pub(crate) fn parse(wire: v1::List) -> Result<Self, String> {
        let version = wire.version.map(version).ok_or("it has no version")?;
        if wire.endpoints.len() > ENDPOINTS_MAX {
            return Err(format!("{} endpoints, at most {ENDPOINTS_MAX}", wire.endpoints.len()));
        }
        let mode = mode(wire.mode());
        if wire.endpoints.is_empty() && wire.complete && mode != Mode::Empty {
            return Err("complete and without endpoints, but its mode is not EMPTY".to_owned());
        }
        let mut seen = BTreeSet::new();
        let mut endpoints = Vec::with_capacity(wire.endpoints.len());
        for endpoint in wire.endpoints {
            let reason = endpoint.reasons.first().map_or("", |r| r.code().as_str_name());
            let address = target::address(&endpoint.address).map_err(|e| e.to_string())?;
            if endpoint.weight > WEIGHT_MAX {
                return Err(format!("{address} has weight {}, at most {WEIGHT_MAX}", endpoint.weight));
            }
            if endpoint.priority > PRIORITY_MAX {
                return Err(format!("{address} has priority {}, at most {PRIORITY_MAX}", endpoint.priority));
            }
            if !seen.insert(address.clone()) {
                return Err(format!("it names {address} twice"));
            }
            let hash_key = if endpoint.hash_key.is_empty() { address.clone() } else { endpoint.hash_key };
            endpoints.push(Listed {
                hash_key,
                address,
                incarnation: endpoint.incarnation,
                tls_name: endpoint.tls_name,
                locality: endpoint.locality,
                priority: endpoint.priority,
                weight: endpoint.weight,
                capacity_milli: endpoint.capacity_milli.min(CAPACITY_MILLI_MAX),
                reason,
                kept: false,
            });
        }
        let (policy, ring) = policy(wire.policy)?;
        Ok(Self {
            version: Some(version),
            digest: wire.digest,
            complete: wire.complete,
            mode,
            note: cut(wire.note),
            policy,
            ring,
            endpoints,
            time_to_live_ms: wire.time_to_live_ms,
        })
    }

    /// What is held once this list has arrived. A complete one replaces what was held, whatever its epoch. An incomplete one is
    /// silent about endpoints it does not name: those stay beside it; those it names, with weight 0 too, are as it says.
    /// `None` when this list is older than the one held.
    pub(crate) fn over(mut self, held: Option<&List>) -> Option<List> {
        let Some(held) = held else { return Some(self) };
        if let (Some(new), Some(old)) = (self.version, held.version)
            && new.epoch == old.epoch
            && new.sequence < old.sequence
        {
            return None;
        }
        if !self.complete {
            let named: BTreeSet<String> = self.endpoints.iter().map(|e| e.address.clone()).collect();
            let unnamed = held.endpoints.iter().filter(|e| !e.is_spare() && !named.contains(&e.address));
            // As long as a list may be, however many incomplete ones come after another.
            let room = ENDPOINTS_MAX.saturating_sub(self.endpoints.len());
            self.endpoints.extend(unnamed.take(room).map(|e| Listed { kept: true, ..e.clone() }));
        }
        Some(self)
    }

    /// The balancer calls the list it sent last by a new version. Once that list is complete, those it did not name go.
    pub(crate) fn rebased(&self, version: Version, complete: bool) -> List {
        let mut list = List { version: Some(version), complete, ..self.clone() };
        if complete {
            list.endpoints.retain(|e| !e.kept);
        }
        list
    }

    /// The list with these behind all that it names, as long as no balancer says more.
    pub(crate) fn with_spares(&self, spares: &[Listed]) -> List {
        let mut list = self.clone();
        list.endpoints.retain(|e| !e.is_spare());
        let named: BTreeSet<&str> = self.endpoints.iter().map(|e| &*e.address).collect();
        let behind = |spare: &Listed| Listed { priority: SPARE_PRIORITY, kept: true, ..spare.clone() };
        let room = ENDPOINTS_MAX.saturating_sub(list.endpoints.len());
        list.endpoints.extend(spares.iter().filter(|e| !named.contains(&*e.address)).take(room).map(behind));
        list
    }

    /// Whether a fallback stands beside what a balancer listed.
    pub(crate) fn has_spares(&self) -> bool {
        self.endpoints.iter().any(Listed::is_spare)
    }

    /// The endpoints that a balancer listed and that may be called.
    pub(crate) fn offered(&self) -> impl Iterator<Item = &Listed> {
        self.endpoints.iter().filter(|e| e.weight > 0 && !e.is_spare())
    }

    /// Whether any endpoint may be called.
    pub(crate) fn offers_any(&self) -> bool {
        self.endpoints.iter().any(|e| e.weight > 0)
    }
}

pub(crate) fn version(wire: v1::Version) -> Version {
    Version { epoch: wire.epoch, sequence: wire.sequence }
}

fn mode(wire: v1::ListMode) -> Mode {
    match wire {
        v1::ListMode::Unspecified => Mode::Unknown,
        v1::ListMode::Normal => Mode::Normal,
        v1::ListMode::Panic => Mode::Panic,
        v1::ListMode::ZoneFailover => Mode::ZoneFailover,
        v1::ListMode::LastGood => Mode::LastGood,
        v1::ListMode::Empty => Mode::Empty,
    }
}

fn policy(wire: Option<v1::Policy>) -> Result<(Policy, Option<RingOf>), String> {
    Ok(match wire.and_then(|policy| policy.kind) {
        Some(v1::policy::Kind::LeastLoad(_)) | None => (Policy::LeastLoad, None),
        Some(v1::policy::Kind::WeightedRoundRobin(_)) => (Policy::WeightedRoundRobin, None),
        Some(v1::policy::Kind::RoundRobin(_)) => (Policy::RoundRobin, None),
        Some(v1::policy::Kind::RingHash(ring)) => {
            let header = match ring.header.as_str() {
                "" => None,
                name => {
                    Some(HeaderName::from_lowercase(name.as_bytes()).map_err(|_| format!("{name:?} is no header"))?)
                }
            };
            let ring = RingOf { seed: ring.hash_seed, bound_milli: ring.load_bound_milli, header };
            (Policy::RingHash, Some(ring))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(epoch: u64, sequence: u64, complete: bool, endpoints: &[(&str, u32)]) -> v1::List {
        v1::List {
            service: "s".into(),
            version: Some(v1::Version { epoch, sequence }),
            digest: sequence,
            complete,
            mode: v1::ListMode::Normal.into(),
            endpoints: endpoints
                .iter()
                .map(|(address, weight)| v1::Endpoint {
                    address: (*address).into(),
                    weight: *weight,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    fn list(epoch: u64, sequence: u64, complete: bool, endpoints: &[(&str, u32)]) -> List {
        List::parse(wire(epoch, sequence, complete, endpoints)).unwrap()
    }

    fn weights(list: &List) -> Vec<(&str, u32)> {
        list.endpoints.iter().map(|e| (e.address.as_str(), e.weight)).collect()
    }

    #[test]
    fn an_incomplete_list_is_silent_about_those_it_does_not_name() {
        let held = list(7, 17, true, &[("x:1", 100), ("y:1", 100), ("z:1", 100)]);
        let union = list(9, 2, false, &[("x:1", 50)]).over(Some(&held)).unwrap();
        assert_eq!(weights(&union), [("x:1", 50), ("y:1", 100), ("z:1", 100)]);
        let dropped = list(9, 4, false, &[("x:1", 50), ("y:1", 0)]).over(Some(&union)).unwrap();
        assert_eq!(weights(&dropped), [("x:1", 50), ("y:1", 0), ("z:1", 100)]);
        let replaced = list(9, 9, true, &[("x:1", 100), ("z:1", 100)]).over(Some(&dropped)).unwrap();
        assert_eq!(weights(&replaced), [("x:1", 100), ("z:1", 100)]);
    }

    #[test]
    fn sequences_order_within_one_epoch_only() {
        let held = list(7, 17, true, &[("x:1", 1)]);
        assert_eq!(list(7, 16, true, &[("y:1", 1)]).over(Some(&held)), None);
        assert!(list(7, 17, true, &[("y:1", 1)]).over(Some(&held)).is_some());
        assert!(list(3, 1, true, &[("y:1", 1)]).over(Some(&held)).is_some());
    }

    #[test]
    fn a_first_incomplete_list_serves_as_it_is() {
        assert_eq!(weights(&list(1, 1, false, &[("x:1", 1)]).over(None).unwrap()), [("x:1", 1)]);
    }

    #[test]
    fn incomplete_lists_one_after_another_do_not_grow_without_end() {
        let of = |epoch, first: usize| {
            let names: Vec<String> = (first..first + 4_000).map(|n| format!("h{n}:1")).collect();
            let named: Vec<(&str, u32)> = names.iter().map(|a| (a.as_str(), 1)).collect();
            list(epoch, 1, false, &named)
        };
        let mut held = of(1, 0);
        for epoch in 2..6 {
            held = of(epoch, epoch as usize * 4_000).over(Some(&held)).unwrap();
        }
        assert_eq!(held.endpoints.len(), ENDPOINTS_MAX);
        assert_eq!(held.endpoints[0].address, "h20000:1", "those named last come first");
    }

    #[test]
    fn malformed_lists_are_refused_in_words() {
        let refused = |wire: v1::List| List::parse(wire).unwrap_err();
        assert!(refused(v1::List { version: None, ..wire(1, 1, true, &[("x:1", 1)]) }).contains("version"));
        assert!(refused(wire(1, 1, true, &[])).contains("EMPTY"));
        assert!(refused(wire(1, 1, true, &[("x", 1)])).contains("host:port"));
        assert!(refused(wire(1, 1, true, &[("x:1", 1), ("x:1", 2)])).contains("twice"));
        assert!(refused(wire(1, 1, true, &[("x:1", u32::MAX)])).contains("weight"));
        let many: Vec<String> = (0..=ENDPOINTS_MAX).map(|n| format!("h{n}:1")).collect();
        let many: Vec<(&str, u32)> = many.iter().map(|a| (a.as_str(), 1)).collect();
        assert!(refused(wire(1, 1, true, &many)).contains("10001"));
    }

    #[test]
    fn a_capacity_is_read_and_an_absurd_one_cut() {
        let mut wire = wire(1, 1, true, &[("x:1", 1), ("y:1", 1), ("z:1", 1)]);
        for (endpoint, milli) in wire.endpoints.iter_mut().zip([0, 2_500, u32::MAX]) {
            endpoint.capacity_milli = milli;
        }
        let list = List::parse(wire).unwrap();
        let capacities: Vec<u32> = list.endpoints.iter().map(|e| e.capacity_milli).collect();
        assert_eq!(capacities, [0, 2_500, CAPACITY_MILLI_MAX]);
    }

    #[test]
    fn a_tick_that_completes_a_list_drops_those_it_did_not_name() {
        let held = list(7, 1, true, &[("x:1", 1), ("y:1", 1)]);
        let union = list(9, 2, false, &[("x:1", 1)]).over(Some(&held)).unwrap();
        let version = Version { epoch: 9, sequence: 5 };
        assert_eq!(weights(&union.rebased(version, false)).len(), 2);
        assert_eq!(weights(&union.rebased(version, true)), [("x:1", 1)]);
    }

    #[test]
    fn spares_stand_behind_the_list_and_go_with_the_next_word_of_a_balancer() {
        let held = list(7, 1, true, &[("x:1", 1), ("y:1", 0)]);
        let spares = |all: &[&str]| all.iter().map(|a| Listed::plain((*a).to_owned())).collect::<Vec<_>>();
        let with = held.with_spares(&spares(&["s:1", "y:1"])).with_spares(&spares(&["t:1"]));
        assert_eq!(weights(&with), [("x:1", 1), ("y:1", 0), ("t:1", PLAIN_WEIGHT)]);
        assert!(with.has_spares() && with.endpoints[2].priority > PRIORITY_MAX);
        assert_eq!(with.offered().map(|e| &*e.address).collect::<Vec<_>>(), ["x:1"]);
        assert_eq!(weights(&list(9, 2, false, &[("z:1", 1)]).over(Some(&with)).unwrap()).len(), 3);
        assert_eq!(
            with.rebased(Version { epoch: 9, sequence: 5 }, true),
            held.rebased(Version { epoch: 9, sequence: 5 }, true)
        );
    }

    #[test]
    fn a_fallback_has_to_show_the_name_it_was_found_by() {
        let found = |name: &str| Listed::fallback(&Place { name: name.into(), address: ([10, 0, 0, 1], 5).into() });
        assert_eq!((&*found("db.example:5").tls_name, &*found("db.example:5").address), ("db.example", "10.0.0.1:5"));
        assert_eq!(found("10.0.0.1:5").tls_name, "");
    }

    #[test]
    fn an_empty_list_is_obeyed_when_it_says_so() {
        let empty = v1::List { mode: v1::ListMode::Empty.into(), ..wire(1, 2, true, &[]) };
        let held = list(1, 1, true, &[("x:1", 1)]);
        let now = List::parse(empty).unwrap().over(Some(&held)).unwrap();
        assert!(!now.offers_any());
    }
}
