//! Two choices on fresh word: two endpoints at random are asked how many calls they have, and the call waits for both answers.
//! Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS 2001), with the round trip charged.

use lookaside_sdk::picker::Rng;

use super::{Choice, Dispatcher, Listed, known::Known};
use crate::world::World;

/// One client that asks two per call.
#[derive(Debug, Default)]
pub(super) struct ProbingP2c {
    known: Known<()>,
}

impl Dispatcher for ProbingP2c {
    fn list(&mut self, list: &[Listed], _now_us: u64) {
        self.known.list(list);
    }

    fn choose(&mut self, _world: &World, _now_us: u64, rng: &mut Rng, tried: &[u32]) -> Choice {
        match self.known.draw_two(rng, tried) {
            Some((first, Some(second))) => Choice::Ask([self.known.endpoint(first), self.known.endpoint(second)]),
            Some((only, None)) => Choice::Send(self.known.endpoint(only)),
            None => Choice::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{Answer, known::listed};

    #[test]
    fn two_are_asked_and_the_one_with_fewer_calls_gets_it() {
        let mut dispatcher = ProbingP2c::default();
        let mut rng = Rng::from_seed(1);
        assert_eq!(dispatcher.choose(&World::default(), 0, &mut rng, &[]), Choice::Nobody);
        dispatcher.list(&listed([4]), 0);
        assert_eq!(dispatcher.choose(&World::default(), 0, &mut rng, &[]), Choice::Send(4));
        dispatcher.list(&listed([4, 6]), 0);
        let Choice::Ask(mut asked) = dispatcher.choose(&World::default(), 0, &mut rng, &[]) else { panic!() };
        asked.sort_unstable();
        assert_eq!(asked, [4, 6]);
        let says = |rif| Some(Answer { rif, latency_us: 0, took_us: 0 });
        for (first, second, gets) in
            [(says(3), says(2), 6), (says(2), says(3), 4), (None, says(9), 6), (says(2), says(2), 4), (None, None, 4)]
        {
            assert_eq!(dispatcher.settle([(4, first), (6, second)], 0, &mut rng, &[]), Some(gets));
        }
    }
}
