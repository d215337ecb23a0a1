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
    hash,
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

/// What is measured in a zone bears out so much more of what its clients claim to call: it lags behind.
const BORNE_OUT: f64 = 1.1;

/// Machines that are told apart among those who are in no zone.
const STRANGERS: usize = 32;

/// Calls per second of all clients below which nothing is known of any.
const RATE_MIN: f64 = 1.0;

#[derive(Debug, Default, Clone)]
pub(super) struct Zones {
    zones: BTreeMap<Locality, Zone>,
    /// Calls of those who are in no zone of an endpoint.
    elsewhere: Strangers,
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
    /// What it does for others, and did at the look before.
    given: f64,
    given_before: f64,
    /// The part of its calls that went elsewhere and what it did for others while that utilisation was measured, smoothed like
    /// that. Of the two the one is early and the other late: new help shows in reports some time between two looks, and
    /// until it does neither is to speak against what clients say.
    sent_then: f64,
    given_then: f64,
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

/// Those who are in no zone: of what they call, which goes everywhere, nothing measured says who it is of. So it counts as
/// far as it does not hang on one machine's word: without the row that tells most.
#[derive(Debug, Default, Clone)]
struct Strangers {
    calls: [u64; STRANGERS],
    rate: Rate,
}

impl Strangers {
    fn row(&mut self, client: &Client) -> Option<&mut u64> {
        self.calls.get_mut((hash::number(client.peer.0) % STRANGERS as u64) as usize)
    }

    fn look(&mut self, seconds: f64) {
        let mut calls = std::mem::take(&mut self.calls);
        calls.sort_unstable();
        let (_, others) = calls.split_last().unwrap_or((&0, &[]));
        self.rate.calls = others.iter().fold(0, |sum, calls| sum.saturating_add(*calls));
        self.rate.look(seconds);
    }
}

fn smooth(estimate: &mut f64, sample: f64) {
    *estimate += SMOOTHING * (sample - *estimate);
}

/// What the endpoints of a zone can do, and do.
#[derive(Debug, Default, Clone, Copy)]
struct Strength {
    capacity: f64,
    /// What lists divide calls by.
    drawn: f64,
    told: f64,
    work: f64,
}

impl Strength {
    /// Where backends of the service measure how full they are, one that is idle may never have had anything to name.
    fn and(self, endpoint: &Endpoint, is_measured: bool) -> Self {
        let capacity = endpoint.capacity_milli() as f64;
        let is_idle = is_measured && endpoint.load.is_idle();
        let (told, utilization) = match endpoint.load.utilization_permille().or(is_idle.then_some(0)) {
            Some(permille) => (capacity, f64::from(permille) / 1000.0),
            None => (0.0, 0.0),
        };
        Self {
            capacity: self.capacity + capacity,
            drawn: self.drawn,
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
        let held = match own {
            Some((_, zone)) => Some(&mut zone.rate.calls),
            None => self.elsewhere.row(client),
        };
        if let Some(held) = held {
            *held = held.saturating_add(calls);
        }
    }

    /// The balancer was away: what came in meanwhile is not what is called in a period.
    pub(super) fn resumed(&mut self, now: Timestamp) {
        self.looked_at = now;
        self.elsewhere.calls = Default::default();
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

    /// The part of the calls of a zone that stays in it.
    pub(super) fn kept(&self, zone: Option<&Locality>) -> f64 {
        let helped = zone.and_then(|zone| self.zones.get(zone)?.helped.as_ref());
        1.0 - helped.map_or(0.0, |helped| helped.values().sum())
    }

    /// The part that goes to another one.
    pub(super) fn sent(&self, from: &Locality, to: &Locality) -> Option<f64> {
        self.zones.get(from)?.helped.as_ref()?.get(to).copied()
    }

    /// Clients divide their calls by weight and capacity: what an endpoint elsewhere has of its weight, beside one at home.
    fn help(&self, zone: &Zone) -> Option<Help> {
        let helped = zone.helped.as_ref()?;
        let drawn_of = |zone: &Zone| Some(zone.strength.drawn).filter(|drawn| *drawn > 0.0);
        let at_home = (1.0 - helped.values().sum::<f64>()) / drawn_of(zone)?;
        let weight_milli = |(other, part): (&Locality, &f64)| {
            let drawn = drawn_of(self.zones.get(other)?)?;
            Some((other.clone(), ((part / drawn / at_home * 1000.0).round() as u32).max(1)))
        };
        Some(Help { weight_milli: helped.iter().filter_map(weight_milli).collect() })
    }
}

impl Zone {
    fn measured(&self) -> f64 {
        self.utilization.unwrap_or(0.0) * self.strength.capacity
    }

    /// What its clients can be believed to make: what they keep at home is measured there, beside what others do to it.
    fn claim(&self, by_strangers: f64) -> Claim {
        let at_home = self.measured() - self.given_then - by_strangers * self.strength.drawn;
        Claim { rate: self.rate.per_second, most: BORNE_OUT * at_home.max(0.0) / (1.0 - self.sent_then) }
    }

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
        let rate = zones.elsewhere.rate.per_second + all().map(|zone| zone.rate.per_second).sum::<f64>();
        let work: f64 = all().map(Zone::measured).sum();
        let capacity: f64 = all().map(|zone| zone.strength.capacity).sum();
        let drawn: f64 = all().map(|zone| zone.strength.drawn).sum();
        let claims = |by_strangers: f64| all().map(move |zone| zone.claim(by_strangers));
        let stranger = Claim { rate: zones.elsewhere.rate.per_second, most: work };
        let of_strangers = stranger.believed(per_call(claims(0.0).chain([stranger]).collect(), work));
        let by_strangers = of_strangers / drawn.max(f64::MIN_POSITIVE);
        let per_call = per_call(claims(by_strangers).collect(), work - of_strangers);
        let mut load = Self {
            level: FULL.max(work / capacity.max(f64::MIN_POSITIVE)),
            per_call,
            by_strangers,
            room: BTreeMap::new(),
        };
        if rate >= RATE_MIN && all().all(|zone| zone.utilization.is_some()) {
            let room = |zone: &Zone| {
                // What is measured counts as well: not everybody who calls tells of it.
                let room = load.level * zone.strength.capacity - load.own(zone).max(zone.measured() - zone.given);
                // Never nothing: who helps would come and go with the last digit.
                room.max(ROOM_MIN * zone.strength.capacity)
            };
            load.room = zones.zones.iter().map(|(at, zone)| (at.clone(), room(zone))).collect();
        }
        load
    }

    fn of_clients(&self, zone: &Zone) -> f64 {
        zone.claim(self.by_strangers).believed(self.per_call)
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

/// Calls per second that clients tell of, and the most work that they can have made with them. Anybody may say that it calls
/// a million times a second: believed is what is measured where these calls go.
#[derive(Debug, Clone, Copy)]
struct Claim {
    rate: f64,
    most: f64,
}

impl Claim {
    fn believed(self, per_call: f64) -> f64 {
        (self.rate * per_call).min(self.most)
    }
}

/// What a call comes to, where all that is believed is to be all there is to do.
fn per_call(mut claims: Vec<Claim>, work: f64) -> f64 {
    claims.retain(|claim| claim.rate > 0.0);
    // Those who are first believed no more.
    claims.sort_by(|a, b| (a.most / a.rate).total_cmp(&(b.most / b.rate)));
    let mut rest = work;
    for (at, claim) in claims.iter().enumerate() {
        let per_call = rest / claims[at..].iter().map(|claim| claim.rate).sum::<f64>();
        if claim.rate * per_call <= claim.most {
            return per_call;
        }
        rest -= claim.most;
    }
    f64::MAX
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
            let sent = zone.helped.iter().flatten().map(|(_, part)| part).sum();
            smooth(&mut zone.sent_then, sent);
            smooth(&mut zone.given_then, zone.given_before);
            zone.given_before = zone.given;
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
        let is_measured = self.endpoints.values().any(|e| e.load.utilization_permille().is_some());
        let mut strengths: BTreeMap<Locality, Strength> = BTreeMap::new();
        for endpoint in offered.into_iter().filter(|e| Some(e.spec.priority) == best) {
            if let Ok(zone) = Locality::parse(endpoint.spec.locality.zone()) {
                let strength = strengths.entry(zone).or_default();
                *strength = strength.and(endpoint, is_measured);
            }
        }
        // As lists have it: with ceilings, slow starts and what operators said, and no measure where the policy has none.
        let shown = self.snapshot.iter().flat_map(|snapshot| snapshot.offered());
        for seen in shown.filter(|e| Some(e.spec.priority) == best) {
            let zone = Locality::parse(seen.spec.locality.zone()).ok();
            if let Some(strength) = zone.and_then(|zone| strengths.get_mut(&zone)) {
                strength.drawn += seen.share() as f64;
            }
        }
        strengths
    }
}
