//! How calls share the cores of one endpoint. Under processor sharing all are served at once; under first come, first served
//! as many as there are cores, and the others wait. Either way those that are served progress alike, so one counter of progress
//! stands for all of them and the next to be done is the top of a heap: O(log n) per call however many share.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

/// Calls at one endpoint.
#[derive(Debug)]
pub(crate) struct Work {
    cores: u32,
    /// Of one core.
    speed: f64,
    /// Calls that may wait; `None` where nobody waits, since all share.
    waiting_max: Option<usize>,
    /// What each call that has been served all the time has got, microseconds of work.
    progress_us: f64,
    /// Those served: progress at which they are done, as the bits of a positive float, which sort as it does.
    served: BinaryHeap<Reverse<(u64, u32)>>,
    waiting: VecDeque<(u32, f64)>,
}

impl Work {
    pub(crate) fn new(cores: u32, speed: f64, waiting_max: Option<usize>) -> Self {
        Self { cores, speed, waiting_max, progress_us: 0.0, served: BinaryHeap::new(), waiting: VecDeque::new() }
    }

    pub(crate) fn count(&self) -> u32 {
        (self.served.len() + self.waiting.len()) as u32
    }

    pub(crate) fn busy_cores(&self) -> u32 {
        (self.served.len() as u32).min(self.cores)
    }

    pub(crate) fn set_speed(&mut self, speed: f64) {
        self.speed = speed;
    }

    /// What each call that is served gets per unit of time.
    fn rate(&self) -> f64 {
        let served = self.served.len() as f64;
        let cores = f64::from(self.cores);
        if served > cores { self.speed * cores / served } else { self.speed }
    }

    pub(crate) fn advance(&mut self, passed_us: u64) {
        if self.served.is_empty() {
            // Begins anew, so that the counter stays small and exact.
            self.progress_us = 0.0;
        } else {
            self.progress_us += self.rate() * passed_us as f64;
        }
    }

    /// Takes a call in; false where there is no room.
    pub(crate) fn take(&mut self, call: u32, size_us: f64) -> bool {
        match self.waiting_max {
            Some(max) if self.served.len() as u32 >= self.cores => {
                let fits = self.waiting.len() < max;
                if fits {
                    self.waiting.push_back((call, size_us));
                }
                fits
            }
            Some(_) | None => {
                self.serve(call, size_us);
                true
            }
        }
    }

    fn serve(&mut self, call: u32, size_us: f64) {
        self.served.push(Reverse(((self.progress_us + size_us).to_bits(), call)));
    }

    fn serve_next(&mut self) {
        if let Some((call, size_us)) = self.waiting.pop_front() {
            self.serve(call, size_us);
        }
    }

    /// Time until the next is done; `None` where there is none, or nothing moves.
    pub(crate) fn next_in_us(&self) -> Option<u64> {
        let Reverse((done_at, _)) = self.served.peek()?;
        let rate = self.rate();
        let left_us = (f64::from_bits(*done_at) - self.progress_us).max(0.0);
        (rate > 0.0).then(|| (left_us / rate).ceil() as u64)
    }

    /// Ends the call that is done first.
    pub(crate) fn finish(&mut self) -> Option<u32> {
        let Reverse((_, call)) = self.served.pop()?;
        self.serve_next();
        Some(call)
    }

    /// Takes a call out; false where it is not there. Looks through all: calls are rarely given up.
    pub(crate) fn remove(&mut self, call: u32) -> bool {
        let before = self.count();
        let served_before = self.served.len();
        self.served.retain(|Reverse((_, other))| *other != call);
        self.waiting.retain(|(other, _)| *other != call);
        if self.served.len() < served_before {
            self.serve_next();
        }
        self.count() < before
    }

    /// Takes all out.
    pub(crate) fn clear(&mut self) -> Vec<u32> {
        let mut calls: Vec<u32> = self.served.drain().map(|Reverse((_, call))| call).collect();
        calls.extend(self.waiting.drain(..).map(|(call, _)| call));
        calls.sort_unstable();
        calls
    }
}
