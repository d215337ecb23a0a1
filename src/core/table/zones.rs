//! Which zones are too full for the clients in them, and who helps, where clients prefer their own zone. Below four fifths a
//! zone keeps its calls; what it has above that goes to the others, to each as it has room for (water-filling). When all
//! are full, all are to be equally full.
//!
//! What clients of a zone call is known from themselves, and is the same whoever serves it. So the answer does not depend on
//! what help there is already, and cannot swing.

use std::{collections::BTreeMap, time::Duration};

use super::{endpoint::Endpoint, service::Service, words::Words};
use crate::{
    config::PolicyKind,
    event::Client,
    model::{Locality, Timestamp},
    snapshot::Help,
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// Weight of the newest look against the past: half of what counts is younger than 10 s.
const SMOOTHING: f64 = 0.3;

/// A zone gets help from this utilisation on, and no longer below that: five points apart, so that it does not flap.
const FULL: f64 = 0.8;
const NOT_FULL: f64 = 0.75;

/// The least part of its calls that goes elsewhere while it is helped, so that connections there stay warm; and the most.
const HELP: std::ops::RangeInclusive<f64> = 0.01..=0.9;

/// Points by which help must change to be worth new lists.
const HELP_STEP: f64 = 0.02;

/// The part of its capacity that counts as room in any zone.
const ROOM_MIN: f64 = 0.001;

/// Calls per second of all clients below which nothing is known of any.
const RATE_MIN: f64 = 1.0;

#[derive(Debug, Default, Clone)]
pub(super) struct Zones {
    zones: BTreeMap<Locality, Zone>,
    /// Calls of those who are in no zone of an endpoint.
    elsewhere: Rate,
    looked_at: Timestamp,
    /// The last answer.
    pub(super) help: BTreeMap<Locality, Help>,
}

#[derive(Debug, Default, Clone)]
struct Zone {
    rate: Rate,
    strength: Strength,
    /// Smoothed; `None` while too few of its endpoints have said how full they are.
    utilization: Option<f64>,
    /// The parts of its calls that go elsewhere.
    helped: Option<Parts>,
    /// What it does for others.
    given: f64,
}

/// Parts of the calls of a zone, by who takes them.
type Parts = BTreeMap<Locality, f64>;

#[derive(Debug, Default, Clone)]
struct Rate {
    calls: u64,
    per_second: f64,
}

impl Rate {
    fn look(&mut self, seconds: f64) {
        smooth(&mut self.per_second, std::mem::take(&mut self.calls) as f64 / seconds);
    }
}

fn smooth(estimate: &mut f64, sample: f64) {
    *estimate += SMOOTHING * (sample - *estimate);
}

/// What the endpoints of a zone can do, and do.
#[derive(Debug, Default, Clone, Copy)]
struct Strength {
    capacity: f64,
    /// What calls are divided by.
    drawn: f64,
    told: f64,
    work: f64,
}

impl Strength {
    fn and(self, endpoint: &Endpoint) -> Self {
        let capacity = endpoint.capacity_milli() as f64;
        let (told, utilization) = match endpoint.load.utilization_permille() {
            Some(permille) => (capacity, f64::from(permille) / 1000.0),
            None => (0.0, 0.0),
        };
        Self {
            capacity: self.capacity + capacity,
            drawn: self.drawn + capacity,
            told: self.told + told,
            work: self.work + told * utilization,
        }
    }

    fn utilization(self) -> Option<f64> {
        (self.told * 2.0 >= self.capacity && self.told > 0.0).then(|| self.work / self.told)
    }
}

impl Zones {
    /// Counts calls of a client.
    pub(super) fn called(&mut self, client: &Client, calls: u64) {
        if self.zones.is_empty() {
            return;
        }
        let own = self.zones.iter_mut().find(|(zone, _)| zone.as_str() == client.locality.zone());
        let own = own.filter(|(zone, _)| !zone.as_str().is_empty());
        let rate = own.map_or(&mut self.elsewhere, |(_, zone)| &mut zone.rate);
        rate.calls = rate.calls.saturating_add(calls);
    }

    /// The balancer was away: what came in meanwhile is not what is called in a period.
    pub(super) fn resumed(&mut self, now: Timestamp) {
        self.looked_at = now;
        self.elsewhere.calls = 0;
        self.zones.values_mut().for_each(|zone| zone.rate.calls = 0);
    }

    /// When time alone may change something.
    pub(super) fn due(&self) -> Option<Timestamp> {
        (!self.zones.is_empty()).then(|| self.looked_at.after(LOOK))
    }

    /// Who helps whom. Where it is what it was, but for two points, it stays as it was to the last digit.
    fn spread(&mut self) {
        let load = Load::of(self);
        let new: BTreeMap<Locality, Parts> =
            self.zones.iter().filter_map(|(at, zone)| Some((at.clone(), load.helped(at, zone)?))).collect();
        let mut given: BTreeMap<Locality, f64> = BTreeMap::new();
        for (at, zone) in &mut self.zones {
            let new = new.get(at);
            if new.is_none_or(|new| !zone.is_near(new)) {
                zone.helped = new.cloned();
            }
            for (other, part) in zone.helped.iter().flatten() {
                *given.entry(other.clone()).or_default() += load.of_clients(zone) * part;
            }
        }
        for (at, zone) in &mut self.zones {
            zone.given = given.remove(at).unwrap_or(0.0);
        }
        self.help = self.zones.iter().filter_map(|(at, zone)| Some((at.clone(), self.help(zone)?))).collect();
    }

    /// Clients divide their calls by weight and capacity: what an endpoint elsewhere has of its weight, beside one at home.
    fn help(&self, zone: &Zone) -> Option<Help> {
        let helped = zone.helped.as_ref()?;
        let at_home = (1.0 - helped.values().sum::<f64>()) / zone.strength.drawn;
        let weight_milli = |(other, part): (&Locality, &f64)| {
            let drawn = self.zones.get(other)?.strength.drawn;
            Some((other.clone(), ((part / drawn / at_home * 1000.0).round() as u32).max(1)))
        };
        Some(Help { weight_milli: helped.iter().filter_map(weight_milli).collect() })
    }
}

impl Zone {
    fn is_near(&self, new: &Parts) -> bool {
        let Some(held) = &self.helped else { return false };
        let of = |parts: &Parts, zone| parts.get(zone).copied().unwrap_or(0.0);
        held.keys().chain(new.keys()).all(|zone| (of(held, zone) - of(new, zone)).abs() < HELP_STEP)
    }
}

/// What there is to do in all zones, by whose clients.
struct Load {
    /// To which utilisation each zone is filled.
    level: f64,
    /// What a call comes to.
    per_call: f64,
    /// What those who are in no zone have an endpoint do, by weight and capacity of that.
    by_strangers: f64,
    /// What each zone could do beside its own; empty while too little is known.
    room: BTreeMap<Locality, f64>,
}

impl Load {
    fn of(zones: &Zones) -> Self {
        let all = || zones.zones.values();
        let rate = zones.elsewhere.per_second + all().map(|zone| zone.rate.per_second).sum::<f64>();
        let work: f64 = all().map(|zone| zone.utilization.unwrap_or(0.0) * zone.strength.capacity).sum();
        let capacity: f64 = all().map(|zone| zone.strength.capacity).sum();
        let drawn: f64 = all().map(|zone| zone.strength.drawn).sum();
        let per_call = work / rate.max(RATE_MIN);
        let mut load = Self {
            level: FULL.max(work / capacity.max(f64::MIN_POSITIVE)),
            per_call,
            by_strangers: per_call * zones.elsewhere.per_second / drawn.max(f64::MIN_POSITIVE),
            room: BTreeMap::new(),
        };
        if rate >= RATE_MIN && all().all(|zone| zone.utilization.is_some()) {
            let room = |zone: &Zone| {
                // What is measured counts as well: not everybody who calls tells of it.
                let measured = zone.utilization.unwrap_or(1.0) * zone.strength.capacity - zone.given;
                let room = load.level * zone.strength.capacity - load.own(zone).max(measured);
                // Never nothing: who helps would come and go with the last digit.
                room.max(ROOM_MIN * zone.strength.capacity)
            };
            load.room = zones.zones.iter().map(|(at, zone)| (at.clone(), room(zone))).collect();
        }
        load
    }

    fn of_clients(&self, zone: &Zone) -> f64 {
        self.per_call * zone.rate.per_second
    }

    /// What a zone would have to do if its clients had no help.
    fn own(&self, zone: &Zone) -> f64 {
        self.of_clients(zone) + self.by_strangers * zone.strength.drawn
    }

    /// The parts of its calls for which a zone is to get help.
    fn helped(&self, at: &Locality, zone: &Zone) -> Option<Parts> {
        let (own, capacity, of_clients) = (self.own(zone), zone.strength.capacity, self.of_clients(zone));
        let excess = own - self.level * capacity;
        let is_full = match &zone.helped {
            Some(_) => own >= NOT_FULL * capacity && excess >= (NOT_FULL - FULL) * capacity,
            None => excess > 0.0 && zone.utilization.is_some_and(|utilization| utilization > FULL),
        };
        let others = || self.room.iter().filter(|(other, _)| *other != at);
        let room: f64 = others().map(|(_, room)| room).sum();
        if !is_full || room <= 0.0 || of_clients <= 0.0 {
            return None;
        }
        let helped = (excess.clamp(0.0, room) / of_clients).clamp(*HELP.start(), *HELP.end());
        Some(others().map(|(other, own)| (other.clone(), helped * own / room)).collect())
    }
}

impl Service {
    /// Keeps to what zones can take.
    pub(super) fn look_at_zones(&mut self, words: Option<&Words>, now: Timestamp) {
        let is_wanted = self.config.locality.prefer_zone
            && match self.config.policy {
                // Which endpoint a key goes to is not for loads to say.
                PolicyKind::RingHash => false,
                PolicyKind::LeastLoad | PolicyKind::WeightedRoundRobin | PolicyKind::RoundRobin => true,
            };
        if !is_wanted {
            self.zones = Zones::default();
            return;
        }
        let elapsed = now.since(self.zones.looked_at);
        if !self.zones.zones.is_empty() && elapsed < LOOK {
            return;
        }
        let strengths = self.strengths(words);
        let seconds = elapsed.as_secs_f64().max(1.0);
        let zones = &mut self.zones;
        zones.looked_at = now;
        zones.elsewhere.look(seconds);
        zones.zones.retain(|at, _| strengths.contains_key(at));
        for (at, strength) in strengths {
            let zone = zones.zones.entry(at).or_default();
            zone.rate.look(seconds);
            zone.strength = strength;
            zone.utilization = strength.utilization().map(|sample| {
                let mut utilization = zone.utilization.unwrap_or(sample);
                smooth(&mut utilization, sample);
                utilization
            });
        }
        zones.spread();
    }

    /// Of each zone, those of the best tier that are offered.
    fn strengths(&self, words: Option<&Words>) -> BTreeMap<Locality, Strength> {
        let is_offered = |e: &&Endpoint| e.may_be_offered() && !words.is_some_and(|words| words.take_out(&e.spec));
        let offered: Vec<&Endpoint> = self.endpoints.values().filter(is_offered).collect();
        let best = offered.iter().map(|e| e.spec.priority).min();
        let mut strengths: BTreeMap<Locality, Strength> = BTreeMap::new();
        for endpoint in offered.into_iter().filter(|e| Some(e.spec.priority) == best) {
            if let Ok(zone) = Locality::parse(endpoint.spec.locality.zone()) {
                let strength = strengths.entry(zone).or_default();
                *strength = strength.and(endpoint);
            }
        }
        strengths
    }
}
