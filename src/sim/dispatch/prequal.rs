//! An emulation of Prequal (Wydrowski, Kleinberg, Rumble, Archer: "Load is not what you should balance: Introducing Prequal",
//! NSDI 2024), built from the paper's rules and parameters; nobody outside has the original. Each call has three random
//! endpoints probed for the calls after it, and goes by the answers in a pool: among those with few calls in flight ("cold") to
//! the one with the lowest latency, else to the one with the fewest calls. The paper withholds its heuristics against
//! endpoints that fail fast, so there are none here. Where the paper leaves a choice, a comment says which we made.

use lookaside_sdk::picker::Rng;

use super::{Answer, Choice, Dispatcher, Listed, known::Known};
use crate::world::World;

/// Answers in the pool.
const POOL_MAX: usize = 16;
/// No answer is used when it is older.
const AGE_US_MAX: u64 = 1_000_000;
/// Probes per call.
const PROBES: usize = 3;
/// Answers removed per call, by turns the oldest and the worst.
const REMOVED: f64 = 1.0;
/// How much faster answers may go than they come in: the paper's delta.
const DELTA: f64 = 1.0;
/// The paper's formula for uses of one answer has no value where the pool holds the whole fleet; then this many.
const USES_MAX: f64 = 16.0;
/// With fewer answers the call goes anywhere.
const POOL_MIN: usize = 2;
/// Answers that the border between hot and cold is taken from. The paper says "recent"; these are about 40 calls.
const RECENT_MAX: usize = 128;

/// One client that probes ahead of its calls.
#[derive(Debug)]
pub(super) struct Prequal {
    known: Known<()>,
    /// Which part of recent answers is cold; 0 makes all of them hot, so that latencies count for nothing.
    quantile: f64,
    /// In the order in which they came.
    pool: Vec<Pooled>,
    /// Calls in flight of recent answers, and where the next goes.
    recent: Vec<u32>,
    recent_at: usize,
    /// Whether the worst is to be removed next, not the oldest.
    worst_is_next: bool,
}

#[derive(Debug, Clone, Copy)]
struct Pooled {
    endpoint: u32,
    rif: u32,
    latency_us: u64,
    at_us: u64,
    uses: u32,
}

impl Prequal {
    /// A client to which this part of recent answers, in thousandths, is cold.
    pub(super) fn new(quantile_permille: u32) -> Self {
        Self {
            known: Known::default(),
            quantile: f64::from(quantile_permille) / 1e3,
            pool: Vec::new(),
            recent: Vec::new(),
            recent_at: 0,
            worst_is_next: false,
        }
    }

    /// Above so many calls in flight an endpoint is hot; `None` where all are.
    fn border(&self) -> Option<u32> {
        if self.quantile <= 0.0 || self.recent.is_empty() {
            return None;
        }
        let mut recent = self.recent.clone();
        let at = ((recent.len() as f64 * self.quantile).ceil() as usize).clamp(1, recent.len()) - 1;
        Some(*recent.select_nth_unstable(at).1)
    }

    /// Places in the pool of the best and the worst by the hot-cold rule, `tried` aside.
    fn best_and_worst(&self, tried: &[u32]) -> Option<(usize, usize)> {
        let border = self.border();
        let rank = |at: &usize| {
            let Pooled { rif, latency_us, .. } = self.pool[*at];
            let hot = border.is_none_or(|border| rif > border);
            if hot { (true, u64::from(rif), latency_us) } else { (false, latency_us, u64::from(rif)) }
        };
        let fit = |at: &usize| !tried.contains(&self.pool[*at].endpoint);
        let best = (0..self.pool.len()).filter(fit).min_by_key(rank)?;
        Some((best, (0..self.pool.len()).filter(fit).max_by_key(rank)?))
    }

    fn remove_one(&mut self) {
        if self.pool.is_empty() {
            return;
        }
        let worst = self.best_and_worst(&[]).map_or(0, |(_, worst)| worst);
        self.pool.remove(if self.worst_is_next { worst } else { 0 });
        self.worst_is_next = !self.worst_is_next;
    }

    /// How often one answer may be used, its fraction by chance.
    fn uses(&self, rng: &mut Rng) -> u32 {
        let share_new = 1.0 - POOL_MAX as f64 / self.known.usable().max(1) as f64;
        let inflow = share_new * PROBES as f64 - REMOVED;
        let uses = if inflow > 0.0 { ((1.0 + DELTA) / inflow).clamp(1.0, USES_MAX) } else { USES_MAX };
        let more = (rng.below(1 << 20) as f64) < uses.fract() * f64::from(1 << 20);
        uses as u32 + u32::from(more)
    }
}

impl Dispatcher for Prequal {
    fn list(&mut self, list: &[Listed], _now_us: u64) {
        self.known.list(list);
        let Self { known, pool, .. } = self;
        pool.retain(|pooled| known.may_use(pooled.endpoint));
    }

    fn choose(&mut self, _world: &World, now_us: u64, rng: &mut Rng, tried: &[u32]) -> Choice {
        self.pool.retain(|pooled| now_us.saturating_sub(pooled.at_us) <= AGE_US_MAX);
        let best = if self.pool.len() < POOL_MIN { None } else { self.best_and_worst(tried) };
        let Some((best, _)) = best else {
            let any = self.known.draw(rng, tried);
            return any.map_or(Choice::Nobody, |at| Choice::Send(self.known.endpoint(at)));
        };
        let endpoint = self.pool[best].endpoint;
        for pooled in self.pool.iter_mut().filter(|pooled| pooled.endpoint == endpoint) {
            pooled.rif += 1;
        }
        // An answer is told how often it may be used when it is used first.
        if self.pool[best].uses == 0 {
            self.pool[best].uses = self.uses(rng);
        }
        self.pool[best].uses -= 1;
        if self.pool[best].uses == 0 {
            self.pool.remove(best);
        }
        self.remove_one();
        Choice::Send(endpoint)
    }

    fn probes(&mut self, _now_us: u64, rng: &mut Rng, out: &mut Vec<u32>) {
        let from = out.len();
        for _ in 0..PROBES {
            let Some(at) = self.known.draw(rng, &out[from..]) else { return };
            let endpoint = self.known.endpoint(at);
            if !out[from..].contains(&endpoint) {
                out.push(endpoint);
            }
        }
    }

    fn probe_answered(&mut self, endpoint: u32, answer: Answer, now_us: u64) {
        if !self.known.may_use(endpoint) {
            return;
        }
        if self.recent.len() < RECENT_MAX {
            self.recent.push(answer.rif);
        } else {
            self.recent[self.recent_at] = answer.rif;
            self.recent_at = (self.recent_at + 1) % RECENT_MAX;
        }
        if self.pool.len() >= POOL_MAX {
            self.pool.remove(0);
        }
        let Answer { rif, latency_us, .. } = answer;
        self.pool.push(Pooled { endpoint, rif, latency_us, at_us: now_us, uses: 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::known::listed;

    fn client(quantile_permille: u32, endpoints: u32, answers: &[(u32, u32, u64)]) -> Prequal {
        let mut prequal = Prequal::new(quantile_permille);
        prequal.list(&listed(0..endpoints), 0);
        for (endpoint, rif, latency_us) in answers {
            prequal.probe_answered(*endpoint, Answer { rif: *rif, latency_us: *latency_us, took_us: 0 }, 0);
        }
        prequal
    }

    fn choose(prequal: &mut Prequal, now_us: u64) -> Choice {
        prequal.choose(&World::default(), now_us, &mut Rng::from_seed(1), &[])
    }

    #[test]
    fn the_cold_one_with_the_lowest_latency_is_best_and_the_hot_one_with_the_most_calls_worst() {
        let answers = [(0, 9, 10), (1, 2, 300), (2, 3, 200), (3, 8, 5)];
        let prequal = client(500, 100, &answers);
        assert_eq!(prequal.border(), Some(3), "the second of four");
        assert_eq!(prequal.best_and_worst(&[]), Some((2, 0)));
        assert_eq!(prequal.best_and_worst(&[2, 0]), Some((1, 3)));
        let prequal = client(0, 100, &answers);
        assert_eq!((prequal.border(), prequal.best_and_worst(&[])), (None, Some((1, 0))), "by calls alone");
    }

    #[test]
    fn each_call_takes_an_answer_counts_itself_and_removes_one_more_by_turns() {
        let mut prequal = client(0, 10_000, &[(4, 7, 0), (5, 1, 0), (6, 2, 0), (5, 3, 0), (7, 9, 0)]);
        assert_eq!(choose(&mut prequal, 0), Choice::Send(5));
        // 10,000 endpoints: (1 + 1) / (3 - 1), once each. The answer used is gone, then the oldest, 4.
        let left: Vec<_> = prequal.pool.iter().map(|pooled| (pooled.endpoint, pooled.rif)).collect();
        assert_eq!(left, [(6, 2), (5, 4), (7, 9)], "5 has one more call");
        assert_eq!(choose(&mut prequal, 0), Choice::Send(6));
        let left: Vec<_> = prequal.pool.iter().map(|pooled| pooled.endpoint).collect();
        assert_eq!(left, [5], "then the worst, 7");
    }

    #[test]
    fn answers_are_used_as_often_as_the_paper_says() {
        let mut rng = Rng::from_seed(1);
        let mut mean = |endpoints| {
            let prequal = client(0, endpoints, &[]);
            (0..10_000).map(|_| f64::from(prequal.uses(&mut rng))).sum::<f64>() / 10_000.0
        };
        // 100 endpoints: 2 / (0.84 x 3 - 1) = 1.316.
        assert!((mean(100) - 1.316).abs() < 0.02);
        assert_eq!(mean(10), USES_MAX);
    }

    #[test]
    fn the_pool_holds_sixteen_for_a_second_and_with_one_the_call_goes_anywhere() {
        let answers: Vec<_> = (0..20).map(|endpoint| (endpoint, 1, 1)).collect();
        let mut prequal = client(0, 20, &answers);
        assert_eq!((prequal.pool.len(), prequal.pool[0].endpoint), (16, 4));
        assert!(matches!(choose(&mut prequal, AGE_US_MAX + 1), Choice::Send(_)));
        assert!(prequal.pool.is_empty());
        let mut out = Vec::new();
        prequal.probes(0, &mut Rng::from_seed(1), &mut out);
        out.sort_unstable();
        out.dedup();
        assert_eq!(out.len(), PROBES, "three different ones");
        assert_eq!(choose(&mut Prequal::new(0), 0), Choice::Nobody);
    }
}
