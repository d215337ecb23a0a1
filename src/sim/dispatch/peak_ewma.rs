//! Peak-EWMA: of two drawn at random the one with the lower cost, its moving average of latencies times its calls in flight and
//! one more. The average jumps up to a peak at once and comes down in its own time. Finagle's `PeakEwma` (Twitter) and tower's
//! `load::PeakEwma`: decay 10 s, and one that nothing is known of is taken once, then waited for.

use lookaside_sdk::picker::Rng;

use super::{Choice, Dispatcher, End, Listed, known::Known};
use crate::world::World;

/// In this time what was heard loses all but 1/e of its weight.
const DECAY_US: f64 = 10e6;
/// Cost of one that has calls and has answered none yet: more than any that has answered.
const UNHEARD_US: f64 = 1e15;

/// One client that knows latencies of its own calls.
#[derive(Debug, Default)]
pub(super) struct PeakEwma {
    known: Known<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    latency_us: f64,
    at_us: u64,
    in_flight: u32,
}

impl Heard {
    fn hear(&mut self, latency_us: f64, now_us: u64) {
        let keeps = (-(now_us.saturating_sub(self.at_us) as f64) / DECAY_US).exp();
        self.at_us = now_us;
        self.latency_us = latency_us.max(self.latency_us * keeps + latency_us * (1.0 - keeps));
    }

    fn cost(&mut self, now_us: u64) -> f64 {
        // Silence is heard as a latency of 0: a bad endpoint gets another chance in time.
        self.hear(0.0, now_us);
        if self.latency_us == 0.0 && self.in_flight > 0 {
            return UNHEARD_US + f64::from(self.in_flight);
        }
        self.latency_us * f64::from(self.in_flight + 1)
    }
}

impl Dispatcher for PeakEwma {
    fn list(&mut self, list: &[Listed], _now_us: u64) {
        self.known.list(list);
    }

    fn choose(&mut self, _world: &World, now_us: u64, rng: &mut Rng, tried: &[u32]) -> Choice {
        let Some((first, second)) = self.known.draw_two(rng, tried) else { return Choice::Nobody };
        let mut cost = |at| self.known.state(at).cost(now_us);
        let best = match second {
            Some(second) if cost(second) < cost(first) => second,
            Some(_) | None => first,
        };
        Choice::Send(self.known.endpoint(best))
    }

    fn sent(&mut self, endpoint: u32, _now_us: u64) {
        if let Some(heard) = self.known.find(endpoint) {
            heard.in_flight += 1;
        }
    }

    fn ended(&mut self, end: &End) -> bool {
        if let Some(heard) = self.known.find(end.endpoint) {
            heard.in_flight = heard.in_flight.saturating_sub(1);
            // Failures as well: neither of the two looks at what an answer says.
            heard.hear(end.latency_us as f64, end.now_us);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use lookaside_sdk::picker::Class;

    use super::*;
    use crate::dispatch::known::listed;

    #[test]
    fn the_average_jumps_up_and_decays_by_a_factor_e_in_ten_seconds() {
        let mut heard = Heard::default();
        heard.hear(1_000.0, 0);
        heard.hear(100.0, 0);
        assert_eq!(heard.latency_us, 1_000.0, "a moment later the peak is all there");
        heard.hear(100.0, 10_000_000);
        let keeps = (-1.0_f64).exp();
        assert!((heard.latency_us - (1_000.0 * keeps + 100.0 * (1.0 - keeps))).abs() < 1e-9);
        heard.hear(2_000.0, 10_000_001);
        assert_eq!(heard.latency_us, 2_000.0);
        heard.in_flight = 2;
        assert!((heard.cost(20_000_001) - 2_000.0 * keeps * 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_cheaper_of_two_gets_the_call_and_who_was_never_heard_gets_one() {
        let mut dispatcher = PeakEwma::default();
        dispatcher.list(&listed([1, 2]), 0);
        let mut rng = Rng::from_seed(1);
        let mut choose = |dispatcher: &mut PeakEwma| dispatcher.choose(&World::default(), 1_000, &mut rng, &[]);
        dispatcher.sent(1, 0);
        assert_eq!(choose(&mut dispatcher), Choice::Send(2), "1 has a call and has not answered");
        for (endpoint, latency_us) in [(1, 300), (2, 100)] {
            dispatcher.sent(endpoint, 0);
            let end = End { endpoint, class: Class::Ok, sent_us: 0, now_us: 0, rif: None, latency_us };
            dispatcher.ended(&end);
        }
        // 1 has one call in flight still: 300 x 2 against 100 x 1, then 100 x 8.
        assert_eq!(choose(&mut dispatcher), Choice::Send(2));
        (0..7).for_each(|_| dispatcher.sent(2, 0));
        assert_eq!(choose(&mut dispatcher), Choice::Send(1));
    }
}
