//! Many runs on all cores. What comes out does not depend on how many threads there were: each run has its place in the results.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::{
    digest::{Cell, Digest, close_gaps},
    dispatch::Policy,
    measure::Run,
    run::run,
    scenario::Scenario,
};

/// One run to be made.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// What is played.
    pub scenario: &'a Scenario,
    /// By which policy.
    pub policy: Policy,
    /// With which chance.
    pub seed: u64,
}

/// Threads that are of use here.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Makes all runs, and of each what `reduce` keeps of it, in the order of the jobs. `done` hears after each how many there are.
pub fn play<T: Send>(
    jobs: &[Job<'_>],
    threads: usize,
    reduce: impl Fn(Run) -> T + Sync,
    done: impl Fn(usize) + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let kept: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::with_capacity(jobs.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Relaxed);
                    let Some(job) = jobs.get(at) else { break };
                    let value = reduce(run(job.scenario, job.policy, job.seed));
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.push((at, value));
                    done(kept.len());
                }
            });
        }
    });
    let mut kept = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
    kept.sort_by_key(|(at, _)| *at);
    kept.into_iter().map(|(_, value)| value).collect()
}

/// Compares policies in a scenario, each with the seeds 1 to `seeds`, so that all of them meet the same calls.
pub fn compare(scenario: &Scenario, policies: &[Policy], seeds: u64, done: impl Fn(usize) + Sync) -> Vec<Cell> {
    let mut cells = cells(scenario, policies, seeds, done);
    close_gaps(&mut cells);
    cells
}

/// The same, with nothing in a cell that comes of another.
pub fn cells(scenario: &Scenario, policies: &[Policy], seeds: u64, done: impl Fn(usize) + Sync) -> Vec<Cell> {
    let of =
        |policy: &Policy| -> Vec<Job<'_>> { (1..=seeds).map(|seed| Job { scenario, policy: *policy, seed }).collect() };
    let jobs: Vec<Job<'_>> = policies.iter().flat_map(of).collect();
    let mut digests = play(&jobs, threads(), |run| Digest::of(&run), done).into_iter();
    let cell = |policy: &Policy| Cell { policy: *policy, seeds: digests.by_ref().take(seeds as usize).collect() };
    policies.iter().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::builtin;

    #[test]
    fn results_come_in_the_order_of_the_jobs_however_many_threads_there_are() {
        let mut scenario = builtin("headline").unwrap();
        scenario.endpoints[0].count = 2;
        scenario.clients.count = 2;
        (scenario.warm_up_ms, scenario.measured_ms) = (1_000, 1_000);
        let jobs: Vec<Job<'_>> = (0..6).map(|seed| Job { scenario: &scenario, policy: Policy::Random, seed }).collect();
        let one = play(&jobs, 1, |run| (run.seed, run.events), |_| {});
        let most = AtomicUsize::new(0);
        let three = play(&jobs, 3, |run| (run.seed, run.events), |done| _ = most.fetch_max(done, Relaxed));
        assert_eq!(one, three);
        assert_eq!(one.iter().map(|(seed, _)| *seed).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(most.into_inner(), 6);
    }
}
