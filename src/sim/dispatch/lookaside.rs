//! The SDK's own picker, driven as `client-sdk/src/pool.rs`, `pool/asking.rs` and `call.rs` drive it: a new picker with each list
//! and connection, peers that outlive it, questions where they pay, retries from a budget, calls held back during overload. No
//! rule stands here.

use std::sync::Arc;

use lookaside_core::{config::CallConfig, snapshot};
use lookaside_sdk::picker::{
    Candidate, Class, Fleet, Offer, PROBE_BUDGET_PERCENT, Peer, Pick, Picker, Policy, Probing, RetryBudget, Rng, Said,
    Suspicion, Throttle,
};

use super::{Answer, Choice, Dispatcher, End, Listed};
use crate::world::World;

/// One client with the SDK.
#[derive(Debug)]
pub(super) struct Lookaside {
    fleet: Arc<Fleet>,
    picker: Picker<u32>,
    /// By endpoint.
    held: Vec<Held>,
    /// No longer in the list, with calls in flight.
    gone: Vec<Held>,
    peers: u64,
    probing: Probing,
    throttle: Throttle,
    retries: RetryBudget,
    may_repeat: bool,
    tried: Vec<u64>,
    /// Where the last call was sent.
    last: u32,
}

#[derive(Debug, Clone)]
struct Held {
    endpoint: u32,
    incarnation: u64,
    peer: Arc<Peer>,
    since_us: u64,
}

impl Lookaside {
    /// One of so many, which the balancer tells them in its ticks.
    pub(super) fn new(seed: u64, clients: u32) -> Self {
        let fleet = Arc::new(Fleet::new(seed));
        fleet.set_clients(clients.into());
        Self {
            picker: Picker::new(Policy::LeastLoad, fleet.clone(), []),
            fleet,
            held: Vec::new(),
            gone: Vec::new(),
            peers: 0,
            probing: Probing::default(),
            throttle: Throttle::default(),
            retries: RetryBudget::new(CallConfig::default().retry_budget_percent),
            may_repeat: true,
            tried: Vec::new(),
            last: 0,
        }
    }

    /// Whether asking pays, by one more answer.
    fn learn(&self, answer: Answer, now_us: u64) {
        self.probing.answered(answer.took_us);
        self.fleet.set_asks(self.probing.decide(self.fleet.answer_us_mean(), now_us));
    }

    fn note_tried(&mut self, tried: &[u32], now_us: u64) {
        self.tried.clear();
        for endpoint in tried {
            let id = self.peer(*endpoint, now_us).map(|peer| peer.id());
            self.tried.extend(id);
        }
    }

    /// Where a call that was sent then is counted.
    fn peer(&self, endpoint: u32, sent_us: u64) -> Option<Arc<Peer>> {
        let at = self.held.binary_search_by_key(&endpoint, |held| held.endpoint).ok();
        let now = at.map(|at| &self.held[at]).filter(|held| held.since_us <= sent_us);
        let before = || self.gone.iter().rev().find(|gone| gone.endpoint == endpoint && gone.since_us <= sent_us);
        now.or_else(before).map(|held| held.peer.clone())
    }
}

impl Dispatcher for Lookaside {
    fn list(&mut self, list: &[Listed], now_us: u64) {
        // A list in use that grows owes the newcomer its first call at once; a first list owes nobody.
        let in_use = !self.held.is_empty();
        let mut held: Vec<Held> = Vec::with_capacity(list.len());
        for listed in list {
            let known = self.held.binary_search_by_key(&listed.endpoint, |held| held.endpoint).ok();
            // Another start of it is another process: what was learnt of the old one does not hold for it.
            let same = known.map(|at| &self.held[at]).filter(|held| held.incarnation == listed.incarnation);
            held.push(same.cloned().unwrap_or_else(|| {
                self.peers += 1;
                let peer = Arc::new(Peer::new(self.peers));
                if in_use {
                    peer.mark_fresh();
                }
                Held { endpoint: listed.endpoint, incarnation: listed.incarnation, peer, since_us: now_us }
            }));
        }
        let offers = list.iter().zip(&held).map(|(listed, held)| Offer {
            peer: held.peer.clone(),
            weight: listed.weight,
            capacity_milli: listed.capacity_milli,
            priority: listed.priority,
            ready: listed.ready,
            item: listed.endpoint,
        });
        self.picker = Picker::new(Policy::LeastLoad, self.fleet.clone(), offers);
        self.probing.set_wanted(held.len() > 1);
        held.sort_by_key(|held| held.endpoint);
        let stays = |old: &Held| {
            let at = held.binary_search_by_key(&old.endpoint, |held| held.endpoint);
            at.is_ok_and(|at| held[at].incarnation == old.incarnation)
        };
        self.gone.retain(|gone| gone.peer.in_flight() > 0);
        self.gone.extend(self.held.iter().filter(|old| old.peer.in_flight() > 0 && !stays(old)).cloned());
        self.held = held;
    }

    fn choose(&mut self, _: &World, now_us: u64, rng: &mut Rng, tried: &[u32]) -> Choice {
        if tried.is_empty() && self.throttle.holds_back(now_us, rng) {
            return Choice::HeldBack;
        }
        self.note_tried(tried, now_us);
        self.probing.budget.earn();
        let chosen = match self.picker.pick_or_ask(None, now_us, rng, &self.tried) {
            Some(Pick::Sure(chosen)) => Some(chosen),
            Some(Pick::Ask([first, second])) if self.probing.budget.spend(2) => {
                return Choice::Ask([first.item, second.item]);
            }
            Some(Pick::Ask(pair)) => {
                let unasked = pair.map(|candidate| (&*candidate.peer, Said::Unasked));
                self.picker.settle(unasked, now_us, rng, &self.tried)
            }
            None => None,
        };
        chosen.map_or(Choice::Nobody, |chosen| Choice::Send(sent(chosen, now_us)))
    }

    fn patience_us(&self) -> Option<u64> {
        Some(self.probing.patience_us(self.fleet.answer_us_mean()))
    }

    fn ticked(&mut self, fleet: &snapshot::Fleet, _: u64) {
        self.throttle.set_on(fleet.is_overload);
        let percent = if fleet.probe_percent > 0 { fleet.probe_percent } else { PROBE_BUDGET_PERCENT };
        self.probing.budget.set_percent(percent);
    }

    fn sent(&mut self, endpoint: u32, _: u64) {
        self.last = endpoint;
    }

    fn settle(&mut self, asked: [(u32, Option<Answer>); 2], now_us: u64, rng: &mut Rng, tried: &[u32]) -> Option<u32> {
        self.note_tried(tried, now_us);
        asked.iter().filter_map(|(_, answer)| *answer).for_each(|answer| self.learn(answer, now_us));
        let said = |answer: Option<Answer>| answer.map_or(Said::Nothing, |answer| Said::Rif(answer.rif));
        let peers = asked.map(|(endpoint, answer)| (self.peer(endpoint, now_us), said(answer)));
        let [(Some(first), said_first), (Some(second), said_second)] = peers else {
            // One of them has left the list meanwhile.
            return self.picker.pick_for(None, now_us, rng, &self.tried).map(|chosen| sent(chosen, now_us));
        };
        let asked = [(&*first, said_first), (&*second, said_second)];
        self.picker.settle(asked, now_us, rng, &self.tried).map(|chosen| sent(chosen, now_us))
    }

    fn probes(&mut self, now_us: u64, rng: &mut Rng, out: &mut Vec<u32>) {
        let wandered = self.picker.wander(rng).map(|candidate| candidate.item);
        let wandered = wandered.filter(|_| self.probing.budget.spend(1));
        let looked_at = || (!self.probing.asks() && self.probing.take_look(now_us)).then_some(self.last);
        out.extend(wandered.or_else(looked_at));
    }

    fn probe_answered(&mut self, endpoint: u32, answer: Answer, now_us: u64) {
        if let Some(peer) = self.peer(endpoint, now_us) {
            // Said somewhere between the question and now: perhaps half-way.
            self.picker.heard(&peer, Said::Rif(answer.rif), now_us - answer.took_us / 2, now_us);
        }
        self.learn(answer, now_us);
    }

    fn ended(&mut self, end: &End) -> bool {
        let Some(peer) = self.peer(end.endpoint, end.sent_us) else { return false };
        let answered = end.rif.is_some();
        self.throttle.ended(end.class, end.now_us);
        if answered {
            self.probing.told();
            self.picker.answered(&peer, end.sent_us, end.now_us);
        }
        self.may_repeat = match end.class {
            Class::Ok | Class::Caller => {
                self.retries.went_well(end.now_us);
                true
            }
            Class::Cancelled | Class::Overload | Class::Endpoint | Class::Deadline => self.retries.failed(end.now_us),
        };
        let suspicion = self.picker.ended(&peer, end.class, Some(end.sent_us), answered, end.rif, end.now_us);
        match suspicion {
            Some(Suspicion::FailuresInARow | Suspicion::Silence) => true,
            None => false,
        }
    }

    fn may_repeat(&mut self, _: u64) -> bool {
        self.may_repeat && !self.throttle.is_on()
    }

    fn is_alarmed(&mut self) -> bool {
        self.fleet.take_alarm()
    }

    fn survey(&mut self, now_us: u64, out: &mut Vec<u32>) {
        out.extend(self.picker.survey(now_us).map(|candidate| candidate.item));
    }
}

/// What is chosen is sent at once.
fn sent(chosen: &Candidate<u32>, now_us: u64) -> u32 {
    chosen.peer.sent(now_us);
    chosen.item
}
