//! The ways to choose that need next to no memory: at random, in turn, the less busy of two.

use lookaside_sdk::picker::Rng;

use super::{Choice, Dispatcher, End, Listed};
use crate::world::World;

/// The endpoints that may be called: of the best tier that has one, by their numbers.
pub(super) fn usable(list: &[Listed]) -> Vec<u32> {
    let may = |listed: &&Listed| listed.ready && listed.weight > 0;
    let tier = list.iter().filter(may).map(|listed| listed.priority).min();
    let mut usable: Vec<u32> =
        list.iter().filter(may).filter(|listed| Some(listed.priority) == tier).map(|listed| listed.endpoint).collect();
    usable.sort_unstable();
    usable
}

/// One that was not tried, if chance finds it within a few draws.
fn draw(usable: &[u32], rng: &mut Rng, tried: &[u32]) -> Option<u32> {
    let mut drawn = None;
    for _ in 0..8 {
        drawn = usable.get(rng.below(usable.len() as u64) as usize).copied();
        if drawn.is_some_and(|endpoint| !tried.contains(&endpoint)) {
            break;
        }
    }
    drawn
}

fn send(chosen: Option<u32>) -> Choice {
    chosen.map_or(Choice::Nobody, Choice::Send)
}

/// Any.
#[derive(Debug, Default)]
pub(super) struct Random {
    usable: Vec<u32>,
}

impl Dispatcher for Random {
    fn list(&mut self, list: &[Listed], _: u64) {
        self.usable = usable(list);
    }

    fn choose(&mut self, _: &World, _: u64, rng: &mut Rng, tried: &[u32]) -> Choice {
        send(draw(&self.usable, rng, tried))
    }
}

/// One after the other. Where a client begins is chance: all would otherwise call the same one first.
#[derive(Debug)]
pub(super) struct RoundRobin {
    usable: Vec<u32>,
    turn: usize,
}

impl RoundRobin {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Self { usable: Vec::new(), turn: rng.below(1 << 32) as usize }
    }
}

impl Dispatcher for RoundRobin {
    fn list(&mut self, list: &[Listed], _: u64) {
        self.usable = usable(list);
    }

    fn choose(&mut self, _: &World, _: u64, _: &mut Rng, tried: &[u32]) -> Choice {
        let count = self.usable.len();
        for _ in 0..count {
            self.turn = (self.turn + 1) % count;
            if !tried.contains(&self.usable[self.turn]) {
                return Choice::Send(self.usable[self.turn]);
            }
        }
        send(self.usable.first().copied())
    }
}

/// Of two at random the one with fewer of this client's calls in flight, as least_request of Envoy and gRPC A48.
#[derive(Debug, Default)]
pub(super) struct P2c {
    usable: Vec<u32>,
    /// By endpoint.
    in_flight: std::collections::BTreeMap<u32, u32>,
}

impl Dispatcher for P2c {
    fn list(&mut self, list: &[Listed], _: u64) {
        self.usable = usable(list);
    }

    fn choose(&mut self, _: &World, _: u64, rng: &mut Rng, tried: &[u32]) -> Choice {
        let Some(first) = draw(&self.usable, rng, tried) else { return Choice::Nobody };
        let second = (0..8).find_map(|_| draw(&self.usable, rng, tried).filter(|second| *second != first));
        let in_flight = |endpoint: u32| self.in_flight.get(&endpoint).copied().unwrap_or_default();
        Choice::Send(second.filter(|second| in_flight(*second) < in_flight(first)).unwrap_or(first))
    }

    fn sent(&mut self, endpoint: u32, _: u64) {
        *self.in_flight.entry(endpoint).or_default() += 1;
    }

    fn ended(&mut self, end: &End) -> bool {
        if let Some(in_flight) = self.in_flight.get_mut(&end.endpoint) {
            *in_flight = in_flight.saturating_sub(1);
        }
        false
    }
}
