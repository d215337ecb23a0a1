//! How often each request was executed: the proof that no call ran twice.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Request ids remembered; one more and the oldest is forgotten.
const REMEMBERED_MAX: usize = 200_000;

/// Longer ids are not counted: they are no ids of ours.
const ID_BYTES_MAX: usize = 128;

#[derive(Debug, Default)]
struct Counts {
    by_id: HashMap<String, u32>,
    order: VecDeque<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Executions(Mutex<Counts>);

impl Executions {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self, id: &str) {
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return;
        }
        let mut counts = self.lock();
        if let Some(count) = counts.by_id.get_mut(id) {
            *count = count.saturating_add(1);
            return;
        }
        if counts.order.len() >= REMEMBERED_MAX
            && let Some(oldest) = counts.order.pop_front()
        {
            counts.by_id.remove(&oldest);
        }
        counts.by_id.insert(id.to_owned(), 1);
        counts.order.push_back(id.to_owned());
    }

    pub(crate) fn of(&self, id: &str) -> u32 {
        self.lock().by_id.get(id).copied().unwrap_or(0)
    }

    pub(crate) fn all(&self) -> Vec<(String, u32)> {
        self.lock().by_id.iter().map(|(id, count)| (id.clone(), *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_counted_each_time_and_an_empty_one_never() {
        let executions = Executions::default();
        executions.count("a");
        executions.count("a");
        executions.count("");
        assert_eq!((executions.of("a"), executions.of("b")), (2, 0));
        assert_eq!(executions.all(), [("a".to_owned(), 2)]);
    }

    #[test]
    fn memory_is_bounded_by_forgetting_the_oldest() {
        let executions = Executions::default();
        for id in 0..=REMEMBERED_MAX {
            executions.count(&id.to_string());
        }
        assert_eq!((executions.of("0"), executions.of("1")), (0, 1));
    }
}
