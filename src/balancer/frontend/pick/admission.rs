//! First lists go out at a bounded rate, by their size: after a restart everybody wants one at once, and those who have
//! theirs must not wait for the others. Each is given the moment of its turn; who would have to wait too long is asked to
//! come back later, or goes to another replica.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::limits::{ADMISSION_WAIT_MAX, ADMITTED_BYTES_AT_ONCE, ADMITTED_BYTES_PER_SECOND, FIRST_LIST_COST_BYTES};

/// Too many wait already.
#[derive(Debug, thiserror::Error)]
#[error("so many clients want their first list that this one would wait for more than {ADMISSION_WAIT_MAX:?}")]
pub(crate) struct Full;

/// The turns of all streams.
#[derive(Debug)]
pub(crate) struct Admission {
    /// When all that was admitted will have gone out at the rate.
    done_at: Mutex<Instant>,
}

impl Admission {
    /// Nobody waits.
    pub(crate) fn new() -> Self {
        Self { done_at: Mutex::new(Instant::now()) }
    }

    /// The moment from which a first list of this size may go out.
    ///
    /// # Errors
    /// [`Full`] when that is too far away.
    pub(super) fn enter(&self, list_bytes: usize, now: Instant) -> Result<Instant, Full> {
        let cost = time(list_bytes + FIRST_LIST_COST_BYTES);
        let mut done_at = self.done_at.lock().unwrap_or_else(PoisonError::into_inner);
        // What was not used is not saved up, beyond a burst.
        let turn = (*done_at).max(now.checked_sub(time(ADMITTED_BYTES_AT_ONCE)).unwrap_or(now));
        if turn.saturating_duration_since(now) > ADMISSION_WAIT_MAX {
            return Err(Full);
        }
        *done_at = turn + cost;
        Ok(turn.max(now))
    }
}

fn time(bytes: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / ADMITTED_BYTES_PER_SECOND as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_go_at_once_the_others_in_turn_and_nobody_waits_too_long() {
        let admission = Admission::new();
        let now = Instant::now() + Duration::from_secs(10);
        let cost = FIRST_LIST_COST_BYTES + 1_000;
        let mut turns = Vec::new();
        while let Ok(turn) = admission.enter(1_000, now) {
            turns.push(turn.duration_since(now));
        }
        let at_once = turns.iter().filter(|wait| wait.is_zero()).count();
        assert!(at_once.abs_diff(ADMITTED_BYTES_AT_ONCE / cost) <= 2, "{at_once}");
        assert!(turns.is_sorted());
        let last = *turns.last().unwrap();
        assert!(last <= ADMISSION_WAIT_MAX && last > ADMISSION_WAIT_MAX.mul_f64(0.99), "{last:?}");
        // A herd of 5,000 small lists has room.
        assert!(turns.len() >= 5_000, "{}", turns.len());
        // When their turns have come, there is room again.
        let later = now + last;
        assert!(admission.enter(1_000, later).is_ok());
    }
}
