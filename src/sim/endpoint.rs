//! One endpoint: how it works through its calls, what its faults make of that, and what it says of itself. It knows nothing of
//! clients, and what a call is to it is a number.

use crate::{
    measure::Reading,
    scenario::{Group, Model},
};

mod lately;
mod work;

use lately::Lately;
use work::Work;

/// Whether an endpoint is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Nobody can connect to it.
    Absent,
    /// It serves.
    Serving,
    /// It serves, and has said that it leaves.
    Leaving,
}

/// What faults make of it, over all that hold at the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Condition {
    /// Its speed, times this; 0 while it stands still.
    pub(crate) speed_factor: f64,
    /// Calls fail after so long, at once or after having been held.
    pub(crate) fails_after_us: Option<u64>,
    /// Calls that fail like that, thousandths.
    pub(crate) fails_permille: u32,
    /// Those that fail count as in flight meanwhile.
    pub(crate) holds: bool,
    /// It says that it is idle.
    pub(crate) lies: bool,
}

impl Default for Condition {
    fn default() -> Self {
        Self { speed_factor: 1.0, fails_after_us: None, fails_permille: 0, holds: false, lies: false }
    }
}

/// What a liar says of its utilisation: not 0, which whoever divides by it would leave out.
const LIE_UTILIZATION: f64 = 0.01;

/// What it counted since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counters {
    /// Calls completed.
    pub(crate) completions: u64,
    /// Those that failed.
    pub(crate) errors: u64,
    /// Integral of calls in flight, microseconds.
    pub(crate) in_flight_us: f64,
    /// Integral of busy cores, microseconds.
    pub(crate) busy_us: f64,
    /// Time, microseconds.
    pub(crate) at_us: u64,
}

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) cores: u32,
    pub(crate) presence: Presence,
    /// Which start of it.
    pub(crate) incarnation: u64,
    /// Reports since then.
    pub(crate) reports: u64,
    pub(crate) condition: Condition,
    /// Attempts that reached it, over all starts.
    pub(crate) reached: u64,
    speed: f64,
    work: Work,
    /// Failing calls that count as in flight.
    held: u32,
    counters: Counters,
    /// As of the last report.
    reported: Counters,
    lately: Lately,
    /// Of the departure that is planned.
    generation: u32,
}

impl Endpoint {
    pub(crate) fn new(group: &Group) -> Self {
        let waiting_max = match group.model {
            Model::Ps => None,
            Model::Fcfs => Some(group.queue_max as usize),
        };
        Self {
            cores: group.cores,
            presence: Presence::Serving,
            incarnation: 1,
            reports: 0,
            condition: Condition::default(),
            reached: 0,
            speed: group.speed,
            work: Work::new(group.cores, group.speed, waiting_max),
            held: 0,
            counters: Counters::default(),
            reported: Counters::default(),
            lately: Lately::default(),
            generation: 0,
        }
    }

    /// Speed of a core now; 0 while it stands still.
    pub(crate) fn speed_now(&self) -> f64 {
        self.speed * self.condition.speed_factor
    }

    pub(crate) fn stands_still(&self) -> bool {
        self.condition.speed_factor == 0.0
    }

    /// Calls in flight, in truth.
    pub(crate) fn in_flight(&self) -> u32 {
        self.work.count() + self.held
    }

    /// Calls in flight, as it says.
    pub(crate) fn rif(&self) -> u32 {
        if self.condition.lies { 0 } else { self.in_flight() }
    }

    /// What calls took lately that came when about as many were in flight as now, microseconds.
    pub(crate) fn latency_us(&self) -> u64 {
        self.lately.median_near(self.rif())
    }

    /// Lets time pass.
    pub(crate) fn advance(&mut self, now_us: u64) {
        let passed_us = now_us.saturating_sub(self.counters.at_us);
        if passed_us > 0 {
            self.counters.in_flight_us += f64::from(self.in_flight()) * passed_us as f64;
            self.counters.busy_us += f64::from(self.work.busy_cores()) * passed_us as f64;
            self.counters.at_us = now_us;
            self.work.advance(passed_us);
        }
    }

    /// Takes a call of so much work in; false where there is no room for it.
    pub(crate) fn take(&mut self, call: u32, size_us: f64, now_us: u64) -> bool {
        self.advance(now_us);
        self.work.take(call, size_us)
    }

    /// A call that will fail is there.
    pub(crate) fn hold(&mut self, now_us: u64) {
        self.advance(now_us);
        self.held += u32::from(self.condition.holds);
    }

    /// A call failed that was held if `held`.
    pub(crate) fn failed(&mut self, held: bool, now_us: u64) {
        self.advance(now_us);
        self.held = self.held.saturating_sub(u32::from(held));
        self.counters.completions += 1;
        self.counters.errors += 1;
    }

    /// When the next call will be done if nothing changes, and the number by which that plan can be told from older ones.
    pub(crate) fn plan(&mut self, now_us: u64) -> Option<(u64, u32)> {
        self.advance(now_us);
        self.generation = self.generation.wrapping_add(1);
        let in_us = self.work.next_in_us()?;
        Some((now_us + in_us, self.generation))
    }

    /// Ends the call that was planned to be done now; `None` when plans have changed.
    pub(crate) fn finish(&mut self, generation: u32, now_us: u64) -> Option<u32> {
        if generation != self.generation {
            return None;
        }
        self.advance(now_us);
        let call = self.work.finish()?;
        self.counters.completions += 1;
        Some(call)
    }

    /// Notes what a call took that found so many in flight.
    pub(crate) fn note_latency(&mut self, rif: u32, latency_us: u64) {
        self.lately.note(rif, latency_us);
    }

    /// Stops to work on a call; false where it is not there.
    pub(crate) fn drop_call(&mut self, call: u32, now_us: u64) -> bool {
        self.advance(now_us);
        self.work.remove(call)
    }

    /// Its faults are others from now on.
    pub(crate) fn change(&mut self, condition: Condition, now_us: u64) {
        self.advance(now_us);
        self.condition = condition;
        self.work.set_speed(self.speed_now());
    }

    /// It is gone, with all that it had: these calls.
    pub(crate) fn crash(&mut self, now_us: u64) -> Vec<u32> {
        self.advance(now_us);
        self.presence = Presence::Absent;
        self.held = 0;
        self.generation = self.generation.wrapping_add(1);
        self.work.clear()
    }

    /// It is there, as a new process.
    pub(crate) fn start(&mut self, now_us: u64) {
        self.advance(now_us);
        self.presence = Presence::Serving;
        self.incarnation += 1;
        self.reports = 0;
        self.counters = Counters { at_us: now_us, ..Counters::default() };
        self.reported = self.counters;
        self.lately = Lately::default();
    }

    /// For who measures.
    pub(crate) fn reading(&mut self, now_us: u64) -> Reading {
        self.advance(now_us);
        Reading {
            presence: self.presence,
            incarnation: self.incarnation,
            reached: self.reached,
            busy_us: self.counters.busy_us,
            cores: self.cores,
        }
    }

    /// What it says of itself: what it counted, and of the time since it did so last rates of calls and errors per second and
    /// the mean share of its cores that was busy.
    pub(crate) fn report(&mut self, now_us: u64) -> (Counters, [f64; 3]) {
        self.advance(now_us);
        let now = self.counters;
        let before = std::mem::replace(&mut self.reported, now);
        self.reports += 1;
        let passed_us = (now.at_us - before.at_us).max(1) as f64;
        let rate = |new: u64, old: u64| (new - old) as f64 * 1e6 / passed_us;
        let busy = (now.busy_us - before.busy_us) / passed_us / f64::from(self.cores);
        let utilization = if self.condition.lies { LIE_UTILIZATION } else { busy };
        let told = Counters { in_flight_us: if self.condition.lies { 0.0 } else { now.in_flight_us }, ..now };
        (told, [rate(now.completions, before.completions), rate(now.errors, before.errors), utilization])
    }
}

#[cfg(test)]
mod tests;
