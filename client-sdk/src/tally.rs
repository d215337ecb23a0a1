//! Counts how the calls to one endpoint ended, until the pick stream carries the counts to the balancer. What could not be
//! delivered stays, and goes with the next message, unless it is old by then.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use lookaside_proto::v1::EndpointOutcomes;

use crate::outcome::Class;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    ok: AtomicU64,
    caller: AtomicU64,
    cancelled: AtomicU64,
    overload: AtomicU64,
    endpoint: AtomicU64,
    deadline: AtomicU64,
    connect_failed: AtomicU64,
    ok_latency_us: AtomicU64,
    suspicion: Mutex<Option<String>>,
}

impl Tally {
    /// Counts an end. Whether it is the first that blames the endpoint since the last report.
    pub(crate) fn count(&self, class: Class, took_us: u64) -> bool {
        let counter = match class {
            Class::Ok => {
                self.ok_latency_us.fetch_add(took_us, Relaxed);
                &self.ok
            }
            Class::Caller => &self.caller,
            Class::Cancelled => &self.cancelled,
            Class::Overload => &self.overload,
            Class::Endpoint => &self.endpoint,
            Class::Deadline => &self.deadline,
        };
        counter.fetch_add(1, Relaxed) == 0 && class == Class::Endpoint
    }

    pub(crate) fn connect_failed(&self) {
        self.connect_failed.fetch_add(1, Relaxed);
    }

    /// Something is wrong with it, in words; the balancer should look at once.
    pub(crate) fn suspect(&self, detail: String) {
        *self.suspicion.lock().unwrap_or_else(PoisonError::into_inner) = Some(detail);
    }

    /// Takes what was counted since the last time; `None` when there is nothing to tell.
    pub(crate) fn take(&self, address: &str, incarnation: u64, in_flight: u32) -> Option<EndpointOutcomes> {
        let suspicion = self.suspicion.lock().unwrap_or_else(PoisonError::into_inner).take();
        let take = |counter: &AtomicU64| counter.swap(0, Relaxed);
        let outcomes = EndpointOutcomes {
            address: address.to_owned(),
            incarnation,
            ok: take(&self.ok),
            caller: take(&self.caller),
            cancelled: take(&self.cancelled),
            overload: take(&self.overload),
            endpoint: take(&self.endpoint),
            deadline: take(&self.deadline),
            connect_failed: take(&self.connect_failed),
            ok_latency_us: take(&self.ok_latency_us),
            in_flight,
            suspect: suspicion.is_some(),
            detail: suspicion.unwrap_or_default(),
        };
        let o = &outcomes;
        let counts = [o.ok, o.caller, o.cancelled, o.overload, o.endpoint, o.deadline, o.connect_failed];
        let silent = counts.iter().all(|n| *n == 0) && o.in_flight == 0 && !o.suspect;
        (!silent).then_some(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_once() {
        let tally = Tally::default();
        tally.count(Class::Ok, 40);
        tally.count(Class::Ok, 60);
        tally.count(Class::Deadline, 9);
        assert!(tally.count(Class::Endpoint, 1) && !tally.count(Class::Endpoint, 1), "news once");
        tally.suspect("silent".into());
        let told = tally.take("a:1", 7, 3).expect("something to tell");
        assert_eq!((told.ok, told.deadline, told.ok_latency_us, told.in_flight), (2, 1, 100, 3));
        assert!(told.endpoint == 2 && tally.count(Class::Endpoint, 1), "and again after a report");
        assert!(told.suspect && told.detail == "silent");
        tally.take("a:1", 7, 0);
        assert_eq!(tally.take("a:1", 7, 0), None);
    }
}
