//! Virtual capacity: slots that calls hold for as long as work would take, and a bounded queue before them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    busy: Mutex<Busy>,
    queue_max: u32,
    waiting: AtomicU32,
    mean: Duration,
    distribution: Distribution,
    random: Mutex<StdRng>,
    // Timers fire late, by a millisecond as a rule. What one call slept too long the next one sleeps less, so that the
    // mean holds.
    overslept_us: AtomicU64,
}

// Time that slots were taken, in sum.
#[derive(Debug)]
struct Busy {
    slots: u32,
    sum: Duration,
    advanced_to: Instant,
}

impl Busy {
    fn advance(&mut self, now: Instant) {
        self.sum += now.saturating_duration_since(self.advanced_to) * self.slots;
        self.advanced_to = self.advanced_to.max(now);
    }
}

// A slot counts as taken until dropped, be it that the work is done or that the call was cancelled.
struct Taken<'a>(&'a Capacity);

impl<'a> Taken<'a> {
    fn new(capacity: &'a Capacity) -> Self {
        capacity.busy().slots += 1;
        Self(capacity)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.busy().slots -= 1;
    }
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
            busy: Mutex::new(Busy { slots: 0, sum: Duration::ZERO, advanced_to: Instant::now() }),
            queue_max,
            waiting: AtomicU32::new(0),
            mean,
            distribution,
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            overslept_us: AtomicU64::new(0),
        }
    }

    // Brought up to date.
    fn busy(&self) -> MutexGuard<'_, Busy> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.advance(Instant::now());
        busy
    }

    /// For how long all slots would have been taken, had they been taken one after the other to the last: its growth over a
    /// time is the mean share of them in use.
    pub(crate) fn full_for(&self) -> Duration {
        self.busy().sum / self.slots_max
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
        let taken = Taken::new(self);
        begun();
        let wanted =
            self.distribution.sample(self.mean, &mut *self.random.lock().unwrap_or_else(PoisonError::into_inner));
        self.sleep(wanted).await;
        drop(taken);
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
    }

    #[tokio::test(start_paused = true)]
    async fn slots_in_use_are_summed_over_time_and_a_cancelled_call_gives_its_slot_back() {
        let capacity = Capacity::new(Duration::from_millis(10), Distribution::Fixed, 4, 10, 1);
        futures_util::future::join_all((0..6).map(|_| capacity.work(|| {}))).await;
        assert_eq!(capacity.full_for(), Duration::from_millis(60) / 4);
        assert!(tokio::time::timeout(Duration::from_millis(4), capacity.work(|| {})).await.is_err());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(capacity.full_for(), Duration::from_millis(64) / 4);
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
