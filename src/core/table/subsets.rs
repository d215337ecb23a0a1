//! Who sees whom, where there are more endpoints than one client is to see. Hashing alone gives some endpoints to more
//! clients than others, and does not know who calls how much. The balancer does: clients tell of their calls. So each
//! endpoint has seats, the cohorts that see it, and a weight by which what all of them send it is its share of the capacity
//! ([note 27](../../decisions/0027-exact-subsets.md)).
//!
//! Looked at every ten seconds, changed every thirty at most, and only for an imbalance that is none of chance. Until calls
//! are known there are no seats, and lists choose by hash alone.

use std::time::Duration;

use super::{endpoint::Endpoint, service::Service, words::Words};
use crate::{
    ceiling,
    event::Client,
    model::{Cohort, Locality, Timestamp},
    snapshot::Seats,
};

mod plan;

use plan::{Demands, Landing, Member};

/// Between two looks at who calls how much.
const LOOK: Duration = Duration::from_secs(10);

/// Between two plans, and before the first one.
const PLAN_PERIOD: Duration = Duration::from_secs(30);

/// Weight of the newest look against the past: half of what counts is younger than 20 s, and it is worth a minute of calls.
const SMOOTHING: f64 = 0.3;
const SMOOTHED_S: f64 = 60.0;

/// Calls per second below which nobody is planned for: chance alone decides who gets so few.
const RATE_MIN: f64 = 20.0;

/// A cohort that calls less is one that does not call.
const COHORT_RATE_MIN: f64 = 0.01;

/// Who calls the endpoints of a service.
#[derive(Debug, Default, Clone)]
pub(super) struct Subsets {
    groups: Vec<Group>,
    looked_at: Timestamp,
}

/// Those who prefer the same endpoints: clients of one zone, or all.
#[derive(Debug, Clone)]
struct Group {
    /// `None` where zones make no difference.
    zone: Option<Locality>,
    demands: Demands,
    since: Timestamp,
    planned_at: Option<Timestamp>,
    /// The tier that was planned for.
    priority: Option<u32>,
}

impl Group {
    fn is_for(&self, locality: &Locality) -> bool {
        self.zone.as_ref().is_none_or(|zone| zone.as_str() == locality.zone())
    }
}

impl Subsets {
    /// Counts calls of a client.
    pub(super) fn called(&mut self, client: &Client, calls: u64) {
        let Some(group) = self.groups.iter_mut().find(|group| group.is_for(&client.locality)) else { return };
        let seed = Cohort::of(&client.id, Locality::unknown()).seed;
        if let Some(demand) = group.demands.of(seed) {
            demand.calls = demand.calls.saturating_add(calls);
        }
    }

    /// The balancer was away: what came in meanwhile is not what is called in a period.
    pub(super) fn resumed(&mut self, now: Timestamp) {
        self.looked_at = now;
        for group in &mut self.groups {
            group.demands.all().iter_mut().for_each(|demand| demand.calls = 0);
        }
    }

    /// When time alone may change something.
    pub(super) fn due(&self) -> Option<Timestamp> {
        (!self.groups.is_empty()).then(|| self.looked_at.after(LOOK))
    }
}

impl Service {
    /// Keeps seats true to who calls.
    pub(super) fn plan_subsets(&mut self, words: Option<&Words>, now: Timestamp) {
        let size = self.config.subset().filter(|size| self.endpoints.len() > *size);
        let Some(size) = size else {
            if !self.subsets.groups.is_empty() {
                self.subsets = Subsets::default();
                self.endpoints.values_mut().for_each(|endpoint| endpoint.seats = Seats::default());
            }
            return;
        };
        let is_first = self.subsets.groups.is_empty();
        let elapsed = now.since(self.subsets.looked_at);
        if !is_first && elapsed < LOOK {
            return self.admit_newcomers(words);
        }
        self.regroup(now);
        let mut groups = std::mem::take(&mut self.subsets.groups);
        if !is_first {
            groups.iter_mut().for_each(|group| group.look(elapsed, now));
            self.land(&mut groups);
        }
        for group in groups.iter_mut().filter(|_| !is_first) {
            let (priority, mut members) = self.members(group, words);
            if members.len() <= size || group.demands.rate() < RATE_MIN {
                group.planned_at = None;
                members.iter_mut().for_each(|member| member.seats = Seats::default());
            } else if now.since(group.planned_at.unwrap_or(group.since)) >= PLAN_PERIOD {
                let calls = group.demands.rate() * SMOOTHED_S;
                let demands = &mut group.demands;
                if group.planned_at.is_none() || demands.is_short(&members, size) || demands.is_off(&members, calls) {
                    demands.plan(&mut members, size);
                    group.planned_at = Some(now);
                    group.priority = priority;
                }
            }
            self.seat(members);
        }
        self.subsets = Subsets { groups, looked_at: now };
        self.admit_newcomers(words);
    }

    /// What each group's endpoints get of whose calls: zones that are full have others take a part of theirs. A seed is one
    /// whatever the zone, so that those who are helped have seats like the helper's own clients, and the plan is for both.
    fn land(&self, groups: &mut [Group]) {
        let kept = |group: &Group| self.zones.kept(group.zone.as_ref());
        let helped = groups.iter().filter(|group| kept(group) < 1.0);
        let helped: Vec<_> =
            helped.filter_map(|group| Some((group.zone.clone()?, group.demands.rates(), kept(group)))).collect();
        for group in groups {
            let mut callers = vec![(group.demands.rates(), Landing { calls: kept(group), size: 1.0 })];
            for (from, rates, kept) in &helped {
                if let Some(calls) = group.zone.as_ref().and_then(|at| self.zones.sent(from, at)) {
                    callers.push((*rates, Landing { calls, size: (calls / kept).min(1.0) }));
                }
            }
            group.demands.share_out(&callers);
        }
    }

    /// A group for each zone of endpoints where clients prefer their own, otherwise one.
    fn regroup(&mut self, now: Timestamp) {
        let mut zones: Vec<Option<Locality>> = if self.config.locality.prefer_zone {
            let zones = self.endpoints.values().map(|e| e.spec.locality.zone()).filter(|zone| !zone.is_empty());
            zones.map(|zone| Locality::parse(zone).ok()).filter(Option::is_some).collect()
        } else {
            vec![None]
        };
        zones.sort();
        zones.dedup();
        self.subsets.groups.retain(|group| zones.contains(&group.zone));
        for zone in zones {
            if !self.subsets.groups.iter().any(|group| group.zone == zone) {
                let demands = Demands::default();
                self.subsets.groups.push(Group { zone, demands, since: now, planned_at: None, priority: None });
            }
        }
    }

    /// The best tier of a group: its priority, and who is in it.
    fn members(&self, group: &Group, words: Option<&Words>) -> (Option<u32>, Vec<Member>) {
        let is_served =
            |e: &&Endpoint| e.trusted && !e.is_leaving() && !words.is_some_and(|words| words.take_out(&e.spec));
        let served: Vec<&Endpoint> = self.endpoints.values().filter(is_served).collect();
        let is_meant = |e: &&Endpoint| group.is_for(&e.spec.locality);
        let meant: Vec<&Endpoint> = served.iter().copied().filter(is_meant).collect();
        let best = meant.iter().map(|e| e.spec.priority).min();
        // As snapshots cap it by the priority, and lists then by their own tier.
        let is_offered = |e: &&&Endpoint| Some(e.spec.priority) == best && e.may_be_offered();
        let offered = served.iter().filter(is_offered);
        let of_all = ceiling::of(offered.map(|e| (e.spec.weight.into(), self.capacity_milli(e))));
        let seen = |e: &Endpoint| self.capacity_milli(e).min(of_all);
        let ceiling = ceiling::of(meant.iter().filter(is_offered).map(|e| (e.spec.weight.into(), seen(e))));
        let capacity = |e: &Endpoint| {
            let percent = words.and_then(|words| words.effective(&e.spec).weight_percent).map_or(100, |(p, _)| p);
            let measured = seen(e).min(ceiling).max(1);
            let capacity = f64::from(e.spec.weight) * f64::from(percent) * f64::from(measured);
            if e.may_be_offered() { capacity } else { 0.0 }
        };
        let member =
            |e: &Endpoint| Member { address: e.spec.address.clone(), capacity: capacity(e), seats: e.seats.clone() };
        let mut members: Vec<Member> =
            meant.into_iter().filter(|e| Some(e.spec.priority) == best).map(member).collect();
        let whole: f64 = members.iter().map(|member| member.capacity).sum();
        members.iter_mut().for_each(|member| member.capacity /= whole.max(f64::MIN_POSITIVE));
        (best, members)
    }

    fn seat(&mut self, members: Vec<Member>) {
        for member in members {
            if let Some(endpoint) = self.endpoints.get_mut(&member.address) {
                endpoint.seats = member.seats;
            }
        }
    }

    /// Who has come since the last plan is seen at once, by as many cohorts as the others.
    fn admit_newcomers(&mut self, words: Option<&Words>) {
        let groups = std::mem::take(&mut self.subsets.groups);
        for group in groups.iter().filter(|group| group.planned_at.is_some()) {
            let is_new = |e: &Endpoint| {
                e.seats.cohorts == 0
                    && group.priority == Some(e.spec.priority)
                    && group.is_for(&e.spec.locality)
                    && e.may_be_offered()
            };
            if !self.endpoints.values().any(is_new) {
                continue;
            }
            let (_, mut members) = self.members(group, words);
            members.retain(|member| member.seats.cohorts == 0 && member.capacity > 0.0);
            members.iter_mut().for_each(|member| group.demands.admit(member));
            self.seat(members);
        }
        self.subsets.groups = groups;
    }
}

impl Group {
    fn look(&mut self, elapsed: Duration, now: Timestamp) {
        // What came in within the first period began at some time of it.
        let is_first = now.since(self.since) <= elapsed;
        for demand in self.demands.all() {
            let sample = std::mem::take(&mut demand.calls) as f64 / elapsed.as_secs_f64().max(1.0);
            demand.rate += if is_first { sample } else { SMOOTHING * (sample - demand.rate) };
            if demand.rate < COHORT_RATE_MIN {
                demand.rate = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        config::{Configuration, ConfiguredService, ServiceConfig},
        event::Event,
        model::{Address, EndpointSpec, ServiceName, SourceId},
        policy::assign,
        table::{Table, capacity::Capacity},
    };

    #[test]
    fn plans_are_for_the_capacities_of_lists() {
        let (now, name) = (Timestamp(0), ServiceName::parse("greeter").unwrap());
        let zones = ["eu/a", "eu/b"].map(|zone| Locality::parse(zone).unwrap());
        let mut config = ServiceConfig { subset_size: 4, ..ServiceConfig::default() };
        config.locality.prefer_zone = true;
        // Five in a zone of ten are fast, and the other zone is large and slow.
        let spec = |at: usize| EndpointSpec {
            locality: zones[usize::from(at >= 10)].clone(),
            ..EndpointSpec::at(Address::parse(&format!("10.0.0.{at}:1")).unwrap())
        };
        let endpoints = Some((0..60).map(spec).collect());
        let services = vec![ConfiguredService { name: name.clone(), config: config.into(), endpoints }];
        let configuration = Configuration { services, ..Configuration::default() };
        let mut table = Table::new(1, ServiceConfig::default(), now);
        let source = SourceId::parse("file").unwrap();
        table.apply(Event::Configured { source, configuration }, now).unwrap();
        let fast = spec(0).address;
        let slow = spec(9).address;
        {
            let service = table.services.get_mut(&name).unwrap();
            service.scale.is_known = true;
            for at in 0..60 {
                let milli = if at < 5 { 8_000 } else { 1_000 };
                service.endpoints.get_mut(&spec(at).address).unwrap().capacity = Capacity::restored(milli, now);
            }
        }
        let snapshot = table.publish(now).unwrap();
        let listed = assign(&snapshot.services[&name], &Cohort { seed: 0, locality: zones[0].clone() });
        let listed = listed.endpoints.iter().map(|e| f64::from(e.capacity_milli)).collect::<Vec<_>>();
        let most = |of: &[f64]| of.iter().copied().fold(0.0, f64::max) / of.iter().copied().fold(f64::MAX, f64::min);
        let service = table.services.get_mut(&name).unwrap();
        service.regroup(now);
        let group = service.subsets.groups.iter().find(|group| group.is_for(&zones[0])).unwrap();
        let (_, members) = service.members(group, None);
        let planned: BTreeMap<Address, f64> = members.into_iter().map(|m| (m.address, m.capacity)).collect();
        assert!((planned[&fast] / planned[&slow] - most(&listed)).abs() < 0.01, "{planned:?}, listed {listed:?}");
    }
}
