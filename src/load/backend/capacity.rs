//! Virtual capacity: slots that calls hold for as long as work would take, and a bounded queue before them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use super::Distribution;

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Debug)]
pub(crate) struct Capacity {
    slots: Semaphore,
    slots_max: u32,
    queue_max: u32,
    waiting: AtomicU32,
    mean: Duration,
    distribution: Distribution,
    random: Mutex<StdRng>,
    // Timers fire late, by a millisecond as a rule. What one call slept too long the next one sleeps less, so that the
    // mean holds.
    overslept_us: AtomicU64,
}

// Counts as waiting until dropped, be it for a slot or because the call was cancelled.
struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Capacity {
    pub(crate) fn new(mean: Duration, distribution: Distribution, slots_max: u32, queue_max: u32, seed: u64) -> Self {
        Self {
            slots: Semaphore::new(slots_max as usize),
            slots_max,
            queue_max,
            waiting: AtomicU32::new(0),
            mean,
            distribution,
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            overslept_us: AtomicU64::new(0),
        }
    }

    /// Calls that hold a slot or wait for one, per slot: 1.0 is full, above it calls wait.
    pub(crate) fn utilization(&self) -> f64 {
        let free = u32::try_from(self.slots.available_permits()).unwrap_or(u32::MAX);
        let busy = self.slots_max.saturating_sub(free) + self.waiting.load(Ordering::Relaxed);
        f64::from(busy) / f64::from(self.slots_max)
    }

    /// Waits for a slot, says so by `begun`, and holds the slot for one service time.
    pub(crate) async fn work(&self, begun: impl FnOnce()) -> Result<(), Full> {
        let slot = match self.slots.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue_max {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    return Err(Full);
                }
                let waiting = Waiting(&self.waiting);
                // Closed never: nobody closes it.
                let slot = self.slots.acquire().await.map_err(|_| Full)?;
                drop(waiting);
                slot
            }
        };
        begun();
        let wanted =
            self.distribution.sample(self.mean, &mut *self.random.lock().unwrap_or_else(PoisonError::into_inner));
        self.sleep(wanted).await;
        drop(slot);
        Ok(())
    }

    async fn sleep(&self, wanted: Duration) {
        let owed = Duration::from_micros(self.overslept_us.swap(0, Ordering::Relaxed));
        let shorter = wanted.saturating_sub(owed);
        let mut left = owed.saturating_sub(wanted);
        if !shorter.is_zero() {
            let began = Instant::now();
            sleep(shorter).await;
            left += began.elapsed().saturating_sub(shorter);
        }
        self.overslept_us.fetch_add(u64::try_from(left.as_micros()).unwrap_or(0), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn beyond_slots_and_queue_a_call_is_refused() {
        let capacity = Capacity::new(Duration::from_millis(10), Distribution::Fixed, 2, 3, 1);
        let calls = (0..7).map(|_| capacity.work(|| {}));
        let outcomes = futures_util::future::join_all(calls).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), 2);
        assert_eq!(capacity.utilization(), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_wait_take_turns_in_the_slots() {
        let capacity = Capacity::new(Duration::from_millis(10), Distribution::Fixed, 2, 10, 1);
        let began = Instant::now();
        futures_util::future::join_all((0..6).map(|_| capacity.work(|| {}))).await;
        assert_eq!(began.elapsed(), Duration::from_millis(30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_cancelled_while_it_waits_gives_its_place_back() {
        let capacity = Arc::new(Capacity::new(Duration::from_secs(10), Distribution::Fixed, 1, 1, 1));
        let holder = tokio::spawn({
            let capacity = Arc::clone(&capacity);
            async move { capacity.work(|| {}).await }
        });
        tokio::task::yield_now().await;
        for _ in 0..3 {
            let waiting = tokio::time::timeout(Duration::from_millis(5), capacity.work(|| {})).await;
            assert!(waiting.is_err(), "it waits, it is not refused");
        }
        assert_eq!(holder.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn late_timers_do_not_change_the_mean() {
        let capacity = Capacity::new(Duration::from_micros(2_500), Distribution::Fixed, 1, 1, 1);
        let began = Instant::now();
        for _ in 0..100 {
            capacity.work(|| {}).await.unwrap();
        }
        let took = began.elapsed();
        assert!((Duration::from_millis(240)..Duration::from_millis(400)).contains(&took), "{took:?}");
    }
}
