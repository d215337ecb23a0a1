//! Shares for clients that know of nothing but weights (`weighted_round_robin`): they cannot see queues, so the balancer sees
//! them for them, as old as its reports are. Each endpoint is given what its capacity says of the calls of a horizon, and
//! besides what it has less in flight than its part of all, or not what it has more. A correction that takes at least twice
//! as long as its effect takes to be seen never overshoots, so the horizon is twice the delay.

use std::{collections::BTreeMap, time::Duration};

use super::{capacity::Tier, service::Service};
use crate::{
    config::PolicyKind,
    limits::{CAPACITY_MILLI_MAX, CAPACITY_MILLI_MIN},
    model::{Address, Timestamp},
};

/// From a report to the clients: lists that differ in nothing but weights go out once a second.
const PUSH: Duration = Duration::from_secs(1);

/// A smaller change is no new list at once. Simulated with 20 endpoints of 8 slots (load 0.8, two of them three times slower,
/// calls of 50 ms): as good as 2 %, with a list in 4 s instead of every second. What is left of it is set right in time.
const STEP_PERMILLE: u32 = 100;
const STEP_IN_TIME_PERMILLE: u32 = 30;
const IN_TIME: Duration = Duration::from_secs(5);

/// What an endpoint says of its calls counts in the sums up to so many times what the median one says for its share, and at
/// least up to so many: one that says anything would otherwise drown what the others differ by. For its own share all of it
/// counts: a queue is worked off as long as it is, and one that lies loses only its own calls.
const BELIEVED_TIMES: f64 = 4.0;
const BELIEVED_MIN: f64 = 4.0;

/// What the endpoints of one tier have in common.
#[derive(Default)]
struct Totals {
    weights: f64,
    /// Weight times capacity: of all, and of those whose reports are evidence.
    shares: f64,
    shares_heard: f64,
    calls_per_second: f64,
    in_flight: f64,
}

/// What each has said, per share: calls in flight, and calls per second.
#[derive(Default)]
struct Told {
    in_flight: Vec<f64>,
    calls_per_second: Vec<f64>,
}

/// The lower one of two in the middle: of two endpoints one may lie. 0 of none.
fn usual(mut told: Vec<f64>) -> f64 {
    told.sort_by(f64::total_cmp);
    told.get(told.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

fn believed(told: f64, usual: f64, share: f64) -> f64 {
    told.min((BELIEVED_TIMES * usual * share).max(BELIEVED_MIN))
}

/// A part of the whole.
struct Part<'a> {
    address: &'a Address,
    tier: Tier<'a>,
    weight: f64,
    share: f64,
    calls_per_second: f64,
    in_flight: Option<f64>,
    is_frozen: bool,
}

impl Service {
    /// Brings the shares up to date, where the policy asks for them; to be called once a second. Weights are those of the
    /// last snapshot, with what operators and slow starts make of them: what is wanted of an endpoint is not to be evened
    /// out again.
    pub(super) fn weigh(&mut self, now: Timestamp) {
        match self.config.policy {
            PolicyKind::WeightedRoundRobin => {}
            PolicyKind::LeastLoad | PolicyKind::RoundRobin | PolicyKind::RingHash => return,
        }
        let Some(shown) = self.snapshot.clone() else { return };
        let horizon_s = 2.0 * (self.config.report_period + PUSH).as_secs_f64();
        let mut tiers: BTreeMap<Tier<'_>, Totals> = BTreeMap::new();
        let mut told: BTreeMap<Tier<'_>, Told> = BTreeMap::new();
        let mut parts = Vec::with_capacity(shown.endpoints.len());
        for seen in shown.endpoints.iter().filter(|e| e.weight > 0) {
            let Some(endpoint) = self.endpoints.get(&seen.spec.address) else { continue };
            let tier = self.tier(&seen.spec);
            let weight = f64::from(seen.weight);
            let share = weight * endpoint.capacity.ratio();
            let is_told = endpoint.load.sequence().is_some() && !endpoint.is_late();
            let in_flight = is_told.then(|| f64::from(endpoint.load.in_flight()));
            let total = tiers.entry(tier).or_default();
            total.weights += weight;
            total.shares += share;
            let (calls_per_second, is_frozen) = (endpoint.load.calls_per_second(), endpoint.capacity.is_frozen());
            if let Some(in_flight) = in_flight {
                let told = told.entry(tier).or_default();
                told.in_flight.push(in_flight / share.max(f64::MIN_POSITIVE));
                told.calls_per_second.push(calls_per_second / share.max(f64::MIN_POSITIVE));
            }
            let address = &seen.spec.address;
            parts.push(Part { address, tier, weight, share, calls_per_second, in_flight, is_frozen });
        }
        let usual: BTreeMap<Tier<'_>, (f64, f64)> = told
            .into_iter()
            .map(|(tier, told)| (tier, (usual(told.in_flight), usual(told.calls_per_second))))
            .collect();
        for part in &parts {
            let Some(total) = tiers.get_mut(&part.tier) else { continue };
            let (in_flight, calls_per_second) = usual.get(&part.tier).copied().unwrap_or_default();
            if let Some(told) = part.in_flight.filter(|_| !part.is_frozen) {
                total.shares_heard += part.share;
                total.calls_per_second += believed(part.calls_per_second, calls_per_second, part.share);
                total.in_flight += believed(told, in_flight, part.share);
            }
        }
        let mut wanted = Vec::with_capacity(parts.len());
        for Part { address, tier, weight, share, in_flight, is_frozen, .. } in parts {
            let Some(tier) = tiers.get(&tier) else { continue };
            // Those that are not heard of are taken to be called as their shares say.
            let calls = tier.calls_per_second * horizon_s * tier.shares / tier.shares_heard.max(f64::MIN_POSITIVE);
            let mut correction = match in_flight {
                Some(in_flight) if calls > 0.0 && tier.shares_heard > 0.0 => {
                    (share / tier.shares_heard * tier.in_flight - in_flight) / calls
                }
                Some(_) | None => 0.0,
            };
            if is_frozen {
                // One that fails its calls has few in flight, and that is no reason to send it more.
                correction = correction.min(0.0);
            }
            let of_all = (share / tier.shares + correction) * tier.weights / weight;
            let milli = (of_all * 1000.0).round().max(0.0) as u32;
            wanted.push((address, milli.clamp(CAPACITY_MILLI_MIN, CAPACITY_MILLI_MAX)));
        }
        let step = if now.since(self.scale.weighed_at) < IN_TIME { STEP_PERMILLE } else { STEP_IN_TIME_PERMILLE };
        let is_step =
            |held: u32, wanted: u32| u64::from(held.abs_diff(wanted)) * 1000 >= u64::from(held) * u64::from(step);
        let held = |address| self.endpoints.get(address).map_or(0, |endpoint| endpoint.corrected_milli);
        // One that moved is a new list, and then all may as well be as they are.
        if wanted.iter().any(|(address, milli)| is_step(held(address), *milli)) {
            self.scale.weighed_at = now;
            for (address, milli) in wanted {
                if let Some(endpoint) = self.endpoints.get_mut(address) {
                    endpoint.corrected_milli = milli;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
