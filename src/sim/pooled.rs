//! What no policy can beat where cores are alike: all cores of all endpoints work on one queue, the fastest first, so that none is
//! idle while a call waits anywhere. Where some are slow, one that leaves those idle can, a little. Calls take the same ways
//! through the network as all others. Faults are left out: where there are some, this is the bound of a fleet without them.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use crate::{
    arrivals::{Arrivals, is_there_at_start},
    dispatch::Policy,
    measure::{Ended, Meter, Run, SECOND_US},
    queue::Queue,
    scenario::{Model, Scenario},
    slots::Slots,
};

#[derive(Debug)]
enum Event {
    Called {
        client: u32,
    },
    Reached {
        call: u32,
    },
    /// The call that was to be done first is done, unless plans have changed.
    Served {
        generation: u32,
    },
    Back {
        call: u32,
    },
    Second,
}

#[derive(Debug, Clone, Copy)]
struct Call {
    arrived_us: u64,
    size_us: f64,
    is_open: bool,
}

/// All cores.
#[derive(Debug)]
struct Pool {
    model: Model,
    /// Of the n fastest cores together; the first is 0.
    speed_sums: Vec<f64>,
    /// For `ps`: progress at which each is done; all progress alike. For `fcfs`: when, microseconds.
    served: BinaryHeap<Reverse<(u64, u32, u32)>>,
    waiting: VecDeque<(u32, f64)>,
    /// For `fcfs`: those that are idle, by their place among the fastest.
    idle: BinaryHeap<Reverse<u32>>,
    progress_us: f64,
    at_us: u64,
}

impl Pool {
    fn new(scenario: &Scenario) -> Self {
        let mut speeds: Vec<f64> = Vec::new();
        for (group, numbers) in scenario.groups() {
            let present = numbers.filter(|number| is_there_at_start(scenario, *number)).count();
            speeds.resize(speeds.len() + present * group.cores as usize, group.speed);
        }
        speeds.sort_by(|a, b| b.total_cmp(a));
        let sums = speeds.iter().scan(0.0, |sum, speed| {
            *sum += speed;
            Some(*sum)
        });
        let all_share = scenario.endpoints.iter().any(|group| group.model == Model::Ps);
        Self {
            model: if all_share { Model::Ps } else { Model::Fcfs },
            speed_sums: std::iter::once(0.0).chain(sums).collect(),
            served: BinaryHeap::new(),
            waiting: VecDeque::new(),
            idle: (0..speeds.len() as u32).map(Reverse).collect(),
            progress_us: 0.0,
            at_us: 0,
        }
    }

    /// What each call gets per unit of time under processor sharing: its part of the fastest cores, as many as there are calls.
    fn rate(&self) -> f64 {
        let cores = self.served.len().min(self.speed_sums.len() - 1);
        self.speed_sums[cores] / self.served.len().max(1) as f64
    }

    fn advance(&mut self, now_us: u64) {
        self.progress_us =
            if self.served.is_empty() { 0.0 } else { self.progress_us + self.rate() * (now_us - self.at_us) as f64 };
        self.at_us = now_us;
    }

    fn take(&mut self, call: u32, size_us: f64, now_us: u64) {
        self.advance(now_us);
        match self.model {
            Model::Ps => self.served.push(Reverse(((self.progress_us + size_us).to_bits(), call, 0))),
            Model::Fcfs => {
                self.waiting.push_back((call, size_us));
                self.begin(now_us);
            }
        }
    }

    /// The call that waits longest goes to the fastest core that is idle.
    fn begin(&mut self, now_us: u64) {
        while let Some(Reverse(core)) = self.idle.peek().copied() {
            let Some((call, size_us)) = self.waiting.pop_front() else { return };
            self.idle.pop();
            let speed = self.speed_sums[core as usize + 1] - self.speed_sums[core as usize];
            let done_us = now_us + (size_us / speed).ceil() as u64;
            self.served.push(Reverse((done_us, call, core)));
        }
    }

    /// When the next will be done.
    fn next_us(&self) -> Option<u64> {
        let Reverse((done_at, _, _)) = self.served.peek()?;
        Some(match self.model {
            Model::Ps => {
                let left_us = (f64::from_bits(*done_at) - self.progress_us).max(0.0);
                self.at_us + (left_us / self.rate()).ceil() as u64
            }
            Model::Fcfs => *done_at,
        })
    }

    fn finish(&mut self, now_us: u64) -> Option<u32> {
        self.advance(now_us);
        let Reverse((_, call, core)) = self.served.pop()?;
        match self.model {
            Model::Ps => {}
            Model::Fcfs => {
                self.idle.push(Reverse(core));
                self.begin(now_us);
            }
        }
        Some(call)
    }
}

/// Plays a scenario with one queue for all.
pub(crate) fn run(scenario: &Scenario, seed: u64) -> Run {
    let mut queue = Queue::new(scenario.network_us);
    let mut arrivals = Arrivals::of(scenario, seed);
    let mut next_size_us = vec![0.0; arrivals.len()];
    let mut pool = Pool::new(scenario);
    let mut calls = Slots::<Call>::new();
    let mut meter = Meter::new(scenario);
    let mut generation = 0_u32;
    let until_us = scenario.measured_until_us();
    let mut plan = |client: u32, queue: &mut Queue<Event>, next_size_us: &mut [f64]| {
        if let Some((at_us, size_us)) = arrivals[client as usize].next() {
            next_size_us[client as usize] = size_us;
            queue.at(at_us, Event::Called { client });
        }
    };
    for client in 0..scenario.clients.count {
        plan(client, &mut queue, &mut next_size_us);
    }
    queue.at(scenario.measured_from_us(), Event::Second);
    while let Some(event) = queue.next() {
        let now_us = queue.now_us();
        if meter.is_over(now_us) {
            break;
        }
        match event {
            Event::Called { client } => {
                let size_us = next_size_us[client as usize];
                let call = calls.put(|_| Call { arrived_us: now_us, size_us, is_open: true });
                plan(client, &mut queue, &mut next_size_us);
                meter.called(now_us);
                meter.sent(now_us, false, now_us);
                queue.send(Event::Reached { call });
                continue;
            }
            Event::Reached { call } => pool.take(call, calls[call].size_us, now_us),
            Event::Served { generation: planned } if planned == generation => {
                if let Some(call) = pool.finish(now_us) {
                    queue.send(Event::Back { call });
                }
            }
            Event::Served { .. } => continue,
            Event::Back { call: at } => {
                calls.free(at);
                let call = &mut calls[at];
                call.is_open = false;
                meter.ended(call.arrived_us, call.size_us, Ended::Well, now_us);
                continue;
            }
            Event::Second => {
                meter.second_over(now_us);
                if now_us < until_us {
                    queue.at(now_us + SECOND_US, Event::Second);
                }
                continue;
            }
        }
        generation = generation.wrapping_add(1);
        if let Some(at_us) = pool.next_us() {
            queue.at(at_us, Event::Served { generation });
        }
    }
    for (_, call) in calls.iter().filter(|(_, call)| call.is_open) {
        meter.ended(call.arrived_us, call.size_us, Ended::Well, queue.now_us());
    }
    meter.finish(scenario, Policy::Bound, seed, queue.planned_ever())
}
