//! What a source remembers of its name, and what it makes of a round of answers: a listing, or a failure that leaves the
//! last one standing. Pure. A failure is never an absence, and an absence is believed when it was said several times in
//! a row.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lookaside_core::model::{Address, EndpointSpec};

use super::{
    ask::{Absence, Answer, Srv, Target},
    records::{self, Place},
};
use crate::{
    config::{Dns, Records},
    limits::{DNS_EMPTY_TRIES, DNS_TARGETS_MAX},
};

/// Targets that a text names; of further ones it says how many.
const NAMED_MAX: usize = 3;

/// All answers of one round.
pub(super) struct Round {
    /// To the question for SRV records, where that is the first question.
    pub(super) srv: Option<Answer<Srv>>,
    /// To those for addresses: of the name itself, or of every target.
    pub(super) addresses: BTreeMap<Target, Asked>,
}

/// Answers for one target; `None` where a family is not asked for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) v4: Option<Answer<IpAddr>>,
    pub(super) v6: Option<Answer<IpAddr>>,
}

/// What a round came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// All endpoints there are, and for how long that holds.
    Listed { endpoints: Vec<EndpointSpec>, detail: String, lives: Option<Duration> },
    /// What was listed last stays.
    Failed { reason: String, lives: Option<Duration> },
}

/// What is remembered from round to round.
#[derive(Debug, Default)]
pub(super) struct Memory {
    targets: BTreeMap<Target, Held>,
    /// What the table has from whoever followed the name before, without those that turned up since. It is not known
    /// which target they are of, so they stay for as long as their family could not be asked for everywhere.
    inherited: BTreeMap<Address, EndpointSpec>,
    /// Rounds in a row in which there were no SRV records.
    srv_empties: u32,
    /// Rounds so far in which the first listing had to wait.
    waits: u32,
    listed: bool,
}

/// The last good addresses of a target; `None` where nobody knows of any, nor that there are none.
#[derive(Debug, Default)]
struct Held {
    v4: Option<BTreeSet<IpAddr>>,
    v6: Option<BTreeSet<IpAddr>>,
    /// Rounds in a row in which it had none.
    empties: u32,
}

/// How a target fared in a round.
enum Fared {
    /// Its addresses are new, and live so long. With them, what was wrong all the same.
    Fresh(Duration, SocketAddr, Option<String>),
    /// It has none, for this reason, and that is believed.
    Gone(Absence, Option<Duration>),
    /// What it had stays.
    Kept(String, Option<Duration>),
}

impl Memory {
    /// One that knows nothing of the name, at a time when the table has these from its source.
    pub(super) fn after(inherited: impl Iterator<Item = EndpointSpec>) -> Self {
        Self { inherited: inherited.map(|spec| (spec.address.clone(), spec)).collect(), ..Self::default() }
    }

    /// Takes a round in.
    pub(super) fn hear(&mut self, dns: &Dns, own: &Target, round: Round) -> Heard {
        let (places, lives, from) = match (dns.records, round.srv) {
            (Records::Addresses { port, weight, .. }, _) => {
                let place = Place { target: own.clone(), port: port.get(), priority: dns.priority, weight };
                (vec![place], None, None)
            }
            (Records::Srv, Some(Answer::Found { records, lives, from })) => {
                self.srv_empties = 0;
                let places = records::places(dns.priority, &records);
                let targets: BTreeSet<&Target> = places.iter().map(|place| &place.target).collect();
                if targets.len() > DNS_TARGETS_MAX {
                    let reason = format!("{} targets, at most {DNS_TARGETS_MAX} are allowed", targets.len());
                    return Heard::Failed { reason, lives: Some(lives) };
                }
                (places, Some(lives), Some(from))
            }
            (Records::Srv, Some(Answer::Empty { absence, lives, from })) => {
                return self.no_srv(dns, absence, lives, from);
            }
            (Records::Srv, Some(Answer::Failed(error))) => {
                self.srv_empties = 0;
                return Heard::Failed { reason: error.to_string(), lives: None };
            }
            (Records::Srv, None) => return Heard::Failed { reason: "it was not asked".to_owned(), lives: None },
        };
        self.resolved(dns, places, round.addresses, lives, from)
    }

    fn no_srv(&mut self, dns: &Dns, absence: Absence, lives: Option<Duration>, from: SocketAddr) -> Heard {
        self.srv_empties = self.srv_empties.saturating_add(1);
        if self.srv_empties < DNS_EMPTY_TRIES {
            return Heard::Failed { reason: doubted(from, absence, self.srv_empties), lives };
        }
        // What is remembered of targets stays: when they come back, one of them may be out of reach.
        self.listed = true;
        let detail = format!("{}: {}, from {from}", records::question(dns), absence.words());
        Heard::Listed { endpoints: Vec::new(), detail, lives }
    }

    fn resolved(
        &mut self,
        dns: &Dns,
        places: Vec<Place>,
        mut asked: BTreeMap<Target, Asked>,
        mut lives: Option<Duration>,
        mut from: Option<SocketAddr>,
    ) -> Heard {
        let targets: BTreeSet<Target> = places.iter().map(|place| place.target.clone()).collect();
        self.targets.retain(|target, _| targets.contains(target));
        let (mut fresh, mut unknown, mut complaints, mut retry) = (0, [false; 2], Vec::new(), None);
        let mut gone = None::<Absence>;
        for target in &targets {
            let held = self.targets.entry(target.clone()).or_default();
            let asked = asked.remove(target).unwrap_or_default();
            let families = [asked.v4.is_some(), asked.v6.is_some()];
            let fared = held.hear(asked);
            let missing = held.unknown(families);
            unknown = [unknown[0] || missing[0], unknown[1] || missing[1]];
            match fared {
                Fared::Fresh(life, server, complaint) => {
                    fresh += 1;
                    lives = Some(lives.map_or(life, |lives| lives.min(life)));
                    from.get_or_insert(server);
                    complaints.extend(complaint.map(|complaint| (target, complaint)));
                }
                Fared::Gone(absence, life) => {
                    retry = shorter(retry, life);
                    gone.get_or_insert(absence);
                }
                Fared::Kept(complaint, life) => {
                    retry = shorter(retry, life);
                    complaints.push((target, complaint));
                }
            }
        }
        let mut endpoints = records::endpoints(dns, &places, |target| {
            let held = self.targets.get(target);
            held.into_iter().flat_map(|held| held.v4.iter().chain(&held.v6).flatten().copied())
        });
        let complaint = told(&complaints, targets.len());
        // A first listing ends the settling of its service, so what is missing from it counts as absent.
        let is_partial = !self.listed && unknown != [false; 2] && self.waits < DNS_EMPTY_TRIES;
        if !complaints.is_empty() && (fresh == 0 || endpoints.is_empty() || is_partial) {
            self.waits = self.waits.saturating_add(1);
            return Heard::Failed { reason: complaint, lives: retry };
        }
        self.listed = true;
        self.inherited.retain(|address, _| unknown[usize::from(address.as_str().starts_with('['))]);
        endpoints.iter().for_each(|endpoint| drop(self.inherited.remove(&endpoint.address)));
        let mut detail = records::answered(dns, endpoints.len(), targets.len(), lives.filter(|_| fresh > 0));
        if let Some(absence) = gone {
            detail.push_str(&format!(", {}", absence.words()));
        }
        if let Some(from) = from {
            detail.push_str(&format!(", from {from}"));
        }
        if !complaint.is_empty() {
            detail.push_str(&format!("; {complaint}"));
        }
        if !self.inherited.is_empty() {
            detail.push_str(&format!("; {} from before stay until all answer", self.inherited.len()));
            endpoints.extend(self.inherited.values().cloned());
        }
        Heard::Listed { endpoints, detail, lives: if fresh > 0 { lives } else { retry } }
    }
}

impl Held {
    /// The families of which it may have addresses that nobody knows of, out of those asked for. Where none was, any.
    fn unknown(&self, asked: [bool; 2]) -> [bool; 2] {
        let any = asked == [false; 2];
        [(asked[0] || any) && self.v4.is_none(), (asked[1] || any) && self.v6.is_none()]
    }

    /// A family without addresses is believed at once where the other one has some: the name is there. A family that
    /// could not be asked for keeps those it had.
    fn hear(&mut self, asked: Asked) -> Fared {
        let (mut fresh, mut failed, mut empty) = (None::<(Duration, SocketAddr)>, None, None);
        let mut gone = [false; 2];
        for (at, (held, answer)) in [(&mut self.v4, asked.v4), (&mut self.v6, asked.v6)].into_iter().enumerate() {
            match answer {
                None => {}
                Some(Answer::Found { records, lives, from }) => {
                    *held = Some(records.into_iter().collect());
                    fresh = Some(fresh.map_or((lives, from), |(life, from)| (life.min(lives), from)));
                }
                Some(Answer::Empty { absence, lives, from }) => {
                    gone[at] = true;
                    let before = empty.and_then(|(_, lives, _)| lives);
                    empty = Some((absence, shorter(before, lives), from));
                }
                Some(Answer::Failed(error)) => failed = Some(error.to_string()),
            }
        }
        if let Some((life, from)) = fresh {
            self.empties = 0;
            self.forget(gone);
            return Fared::Fresh(life, from, failed);
        }
        if let Some(failure) = failed {
            self.empties = 0;
            return Fared::Kept(failure, None);
        }
        let Some((absence, lives, from)) = empty else {
            return Fared::Kept("it was not asked".to_owned(), None);
        };
        self.empties = self.empties.saturating_add(1);
        if self.empties < DNS_EMPTY_TRIES {
            return Fared::Kept(doubted(from, absence, self.empties), lives);
        }
        self.forget(gone);
        Fared::Gone(absence, lives)
    }

    fn forget(&mut self, gone: [bool; 2]) {
        let [v4, v6] = gone;
        if v4 {
            self.v4 = Some(BTreeSet::new());
        }
        if v6 {
            self.v6 = Some(BTreeSet::new());
        }
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}

fn doubted(from: SocketAddr, absence: Absence, times: u32) -> String {
    let words = absence.words();
    format!("{from} answers: {words}; believed after {DNS_EMPTY_TRIES} times in a row, this is the {times}.")
}

/// What was wrong, for a person.
fn told(complaints: &[(&Target, String)], targets: usize) -> String {
    let all = complaints.len();
    match complaints {
        [] => String::new(),
        [(_, complaint)] if targets == 1 => complaint.clone(),
        _ => {
            let first = complaints.iter().take(NAMED_MAX).map(|(target, why)| format!("{}: {why}", target.text()));
            let first = first.collect::<Vec<_>>().join("; ");
            let more = if all > NAMED_MAX { "; ..." } else { "" };
            format!("{all} of {targets} targets not resolved, what they had stays: {first}{more}")
        }
    }
}

#[cfg(test)]
mod tests;
