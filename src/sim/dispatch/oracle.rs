//! Join the shortest queue, with a god's eye: the truth of this moment, calls on their way included. No client can know that;
//! it shows what is left to gain by knowing more.

use lookaside_sdk::picker::Rng;

use super::{Choice, Dispatcher, Listed, simple::usable};
use crate::world::{Truth, World};

/// Sees all and knows the speeds.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    usable: Vec<u32>,
}

/// How slow a call would be there, and how full it would get; the less the better.
fn burden(truth: &Truth) -> (f64, f64) {
    let fullness = f64::from(truth.in_flight + 1) / f64::from(truth.cores);
    let speed = if truth.speed > 0.0 { truth.speed } else { f64::MIN_POSITIVE };
    (fullness.max(1.0) / speed, fullness / speed)
}

impl Dispatcher for Oracle {
    fn list(&mut self, list: &[Listed], _: u64) {
        self.usable = usable(list);
    }

    fn choose(&mut self, world: &World, _: u64, rng: &mut Rng, tried: &[u32]) -> Choice {
        // From a place at random, so that of equals none is preferred.
        let start = rng.below(self.usable.len() as u64) as usize;
        let (after, before) = self.usable.split_at(start.min(self.usable.len()));
        let mut best: Option<(u32, bool, (f64, f64))> = None;
        for endpoint in before.iter().chain(after) {
            let Some(truth) = world.endpoints.get(*endpoint as usize) else { continue };
            let (is_bad, burden) = (tried.contains(endpoint) || !truth.serves, burden(truth));
            if best.is_none_or(|(_, worst, least)| (is_bad, burden) < (worst, least)) {
                best = Some((*endpoint, is_bad, burden));
            }
        }
        best.map_or(Choice::Nobody, |(endpoint, _, _)| Choice::Send(endpoint))
    }
}
