//! The life of a call: it arrives, a dispatcher chooses, an attempt travels, is served or fails, and its end travels back; then
//! perhaps another attempt.

use lookaside_sdk::picker::{Class, Pace};

use super::{Engine, Event};
use crate::{
    chance::happens,
    dispatch::{Answer, Choice, End},
    endpoint::Presence,
    measure::Ended,
};

/// A call that has not ended.
#[derive(Debug)]
pub(super) struct Call {
    client: u32,
    arrived_us: u64,
    size_us: f64,
    attempts: u32,
    /// Endpoints that it was at.
    tried: Vec<u32>,
    /// Those that are asked, and what they answered.
    asked: Option<[(u32, Option<Answer>); 2]>,
    is_open: bool,
}

/// An attempt that somebody has still to hear of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    call: u32,
    client: u32,
    endpoint: u32,
    /// Which start of the endpoint it reached.
    incarnation: u64,
    sent_us: u64,
    size_us: f64,
    /// Differs for each use of this place.
    serial: u32,
    place: Place,
    class: Class,
    /// Calls in flight that it found there.
    found: u32,
    reached_us: u64,
    /// What its end carries.
    rif: Option<u32>,
    /// It counts as in flight while it waits to fail.
    held: bool,
    /// Its client has given it up.
    abandoned: bool,
}

/// Where an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On its way, or free.
    Way,
    /// At the endpoint.
    There,
    /// At the endpoint, and will fail.
    Failing,
    /// Its end is on the way back.
    Back,
}

impl Engine<'_> {
    pub(super) fn plan_call(&mut self, client: u32) {
        if let Some((at_us, size_us)) = self.arrivals[client as usize].next() {
            self.next_size_us[client as usize] = size_us;
            self.queue.at(at_us, Event::Called { client });
        }
    }

    pub(super) fn called(&mut self, client: u32) {
        let arrived_us = self.queue.now_us();
        let size_us = self.next_size_us[client as usize];
        self.plan_call(client);
        let call = self.calls.put(|left| {
            let mut tried = left.map_or_else(Vec::new, |call| std::mem::take(&mut call.tried));
            tried.clear();
            Call { client, arrived_us, size_us, attempts: 0, tried, asked: None, is_open: true }
        });
        self.meter.called(arrived_us);
        self.choose(call);
    }

    fn choose(&mut self, at: u32) {
        let now_us = self.queue.now_us();
        let call = &mut self.calls[at];
        let client = &mut self.clients[call.client as usize];
        let choice = client.dispatcher.choose(&self.world, now_us, &mut client.rng, &call.tried);
        match choice {
            Choice::Send(endpoint) => self.send(at, endpoint),
            Choice::Ask(two) => {
                call.asked = Some(two.map(|endpoint| (endpoint, None)));
                self.meter.asked(call.arrived_us, two.len() as u64);
                self.queue.send(Event::Asked { call: at });
            }
            Choice::HeldBack => self.end(at, Ended::Overload),
            Choice::Nobody => self.end(at, Ended::Nobody),
        }
    }

    /// Both questions are where they were sent; how those answer who do is seen now and known a way later.
    pub(super) fn asked(&mut self, call: u32) {
        let Call { asked: Some([(first, _), (second, _)]), client, .. } = self.calls[call] else { return };
        let answered = [first, second].map(|endpoint| (endpoint, self.answer(endpoint)));
        self.calls[call].asked = Some(answered);
        if answered.iter().all(|(_, answer)| answer.is_some()) {
            self.queue.send(Event::Answered { call });
        } else {
            let patience_us = self.clients[client as usize].dispatcher.patience_us();
            let patience_us = patience_us.unwrap_or(self.scenario.probe_timeout_us);
            // Whoever answers is known no sooner than a way later.
            let wait_us = patience_us.saturating_sub(self.scenario.network_us).max(self.scenario.network_us);
            self.queue.at(self.queue.now_us() + wait_us, Event::Answered { call });
        }
    }

    /// What an endpoint answers to a probe now; one that fails its calls is idle, and says so.
    fn answer(&mut self, endpoint: u32) -> Option<Answer> {
        let endpoint = &self.endpoints[endpoint as usize];
        let answers = endpoint.presence != Presence::Absent && !endpoint.stands_still();
        let took_us = 2 * self.scenario.network_us;
        answers.then(|| Answer { rif: endpoint.rif(), latency_us: endpoint.latency_us(), took_us })
    }

    pub(super) fn answered(&mut self, at: u32) {
        let now_us = self.queue.now_us();
        let call = &mut self.calls[at];
        let Some(asked) = call.asked.take() else { return };
        let client = &mut self.clients[call.client as usize];
        match client.dispatcher.settle(asked, now_us, &mut client.rng, &call.tried) {
            Some(endpoint) => self.send(at, endpoint),
            None => self.end(at, Ended::Nobody),
        }
    }

    fn send(&mut self, at: u32, endpoint: u32) {
        let now_us = self.queue.now_us();
        let call = &mut self.calls[at];
        call.attempts += 1;
        let (client, arrived_us) = (call.client, call.arrived_us);
        let sender = &mut self.clients[client as usize];
        sender.dispatcher.sent(endpoint, now_us);
        self.wanted.clear();
        sender.dispatcher.probes(now_us, &mut sender.rng, &mut self.wanted);
        self.meter.probed(arrived_us, self.wanted.len() as u64);
        for probed in self.wanted.drain(..) {
            self.queue.send(Event::Probed { client, endpoint: probed });
        }
        self.meter.sent(arrived_us, self.faults.marks(endpoint), now_us);
        self.world.endpoints[endpoint as usize].in_flight += 1;
        let flight = Flight {
            call: at,
            client,
            endpoint,
            incarnation: 0,
            sent_us: now_us,
            size_us: call.size_us,
            serial: 0,
            place: Place::Way,
            class: Class::Ok,
            found: 0,
            reached_us: 0,
            rif: None,
            held: false,
            abandoned: false,
        };
        let (flight, serial) = self.take_off(flight);
        self.queue.send(Event::Reached { flight });
        if self.scenario.retries.timeout_ms > 0 {
            let at_us = now_us + self.scenario.retries.timeout_ms * 1_000;
            self.queue.at(at_us, Event::TimedOut { flight, serial });
        }
        if self.clients[client as usize].dispatcher.is_alarmed() {
            self.hurry(client, Pace::suspicion);
        }
    }

    fn take_off(&mut self, flight: Flight) -> (u32, u32) {
        let serial = |left: Option<&mut Flight>| left.map_or(0, |landed| landed.serial.wrapping_add(1));
        let at = self.flights.put(|left| Flight { serial: serial(left), ..flight });
        (at, self.flights[at].serial)
    }

    /// Nobody will hear of it any more.
    fn land(&mut self, flight: u32) {
        let landed = &mut self.flights[flight];
        landed.serial = landed.serial.wrapping_add(1);
        self.flights.free(flight);
    }

    pub(super) fn reached(&mut self, at: u32) {
        let now_us = self.queue.now_us();
        let flight = &mut self.flights[at];
        let endpoint = &mut self.endpoints[flight.endpoint as usize];
        flight.reached_us = now_us;
        flight.incarnation = endpoint.incarnation;
        if endpoint.presence == Presence::Absent {
            self.send_back(at, Class::Endpoint);
            return;
        }
        endpoint.reached += 1;
        flight.found = endpoint.in_flight();
        self.meter.found(self.calls[flight.call].arrived_us, flight.found);
        let condition = endpoint.condition;
        if let Some(after_us) = condition.fails_after_us
            && happens(self.faults.chance(), condition.fails_permille)
        {
            (flight.place, flight.held) = (Place::Failing, condition.holds);
            endpoint.hold(now_us);
            self.queue.at(now_us + after_us, Event::Failed { flight: at });
            return;
        }
        flight.place = Place::There;
        let (number, size_us) = (flight.endpoint, flight.size_us);
        if endpoint.take(at, size_us, now_us) {
            self.plan_served(number);
        } else {
            self.send_back(at, Class::Overload);
        }
    }

    pub(super) fn plan_served(&mut self, endpoint: u32) {
        let now_us = self.queue.now_us();
        if let Some((at_us, generation)) = self.endpoints[endpoint as usize].plan(now_us) {
            self.queue.at(at_us, Event::Served { endpoint, generation });
        }
    }

    pub(super) fn served(&mut self, number: u32, generation: u32) {
        let now_us = self.queue.now_us();
        let endpoint = &mut self.endpoints[number as usize];
        let Some(at) = endpoint.finish(generation, now_us) else { return };
        let flight = &self.flights[at];
        endpoint.note_latency(flight.found, now_us - flight.reached_us);
        self.plan_served(number);
        self.send_back(at, Class::Ok);
    }

    pub(super) fn failed(&mut self, at: u32) {
        let now_us = self.queue.now_us();
        let flight = &self.flights[at];
        let endpoint = &mut self.endpoints[flight.endpoint as usize];
        if endpoint.incarnation == flight.incarnation && endpoint.presence != Presence::Absent {
            endpoint.failed(flight.held, now_us);
        }
        self.send_back(at, Class::Endpoint);
    }

    /// The end of an attempt begins its way back.
    pub(super) fn send_back(&mut self, at: u32, class: Class) {
        let flight = &mut self.flights[at];
        let endpoint = &self.endpoints[flight.endpoint as usize];
        flight.place = Place::Back;
        flight.class = class;
        // Without itself: it has been taken out by now.
        flight.rif = (endpoint.presence != Presence::Absent).then(|| endpoint.rif());
        let truth = &mut self.world.endpoints[flight.endpoint as usize];
        truth.in_flight = truth.in_flight.saturating_sub(1);
        self.queue.send(Event::Back { flight: at });
    }

    pub(super) fn back(&mut self, at: u32) {
        let flight = self.flights[at];
        self.land(at);
        if !flight.abandoned {
            self.attempt_ended(&flight, flight.class, flight.rif);
        }
    }

    pub(super) fn timed_out(&mut self, at: u32, serial: u32) {
        let flight = &mut self.flights[at];
        if flight.serial != serial || flight.abandoned {
            return;
        }
        flight.abandoned = true;
        let flight = *flight;
        if self.scenario.retries.cancels {
            self.queue.send(Event::Cancelled { flight: at, serial });
        }
        self.attempt_ended(&flight, Class::Deadline, None);
    }

    pub(super) fn cancelled(&mut self, at: u32, serial: u32) {
        let now_us = self.queue.now_us();
        let flight = self.flights[at];
        if flight.serial != serial || flight.place != Place::There {
            // What is on its way back or about to fail ends by itself.
            return;
        }
        if self.endpoints[flight.endpoint as usize].drop_call(at, now_us) {
            let truth = &mut self.world.endpoints[flight.endpoint as usize];
            truth.in_flight = truth.in_flight.saturating_sub(1);
            self.plan_served(flight.endpoint);
            self.land(at);
        }
    }

    /// An attempt has ended, as its client sees it.
    fn attempt_ended(&mut self, flight: &Flight, class: Class, rif: Option<u32>) {
        let now_us = self.queue.now_us();
        let Flight { endpoint, sent_us, .. } = *flight;
        let client = &mut self.clients[flight.client as usize];
        let latency_us = now_us - sent_us;
        let suspicious = client.dispatcher.ended(&End { endpoint, class, sent_us, now_us, rif, latency_us });
        if self.policy.tells_outcomes() {
            let is_first = client.count(endpoint, class, suspicious);
            if suspicious {
                self.hurry(flight.client, Pace::suspicion);
            }
            if is_first {
                self.hurry(flight.client, Pace::first_failure);
            }
        }
        let ended = match class {
            Class::Ok | Class::Caller => Ended::Well,
            Class::Cancelled | Class::Endpoint => Ended::Endpoint,
            Class::Overload => Ended::Overload,
            Class::Deadline => Ended::Deadline,
        };
        let call = &mut self.calls[flight.call];
        let dispatcher = &mut self.clients[flight.client as usize].dispatcher;
        if ended == Ended::Well || call.attempts >= self.scenario.retries.attempts || !dispatcher.may_repeat(now_us) {
            self.end(flight.call, ended);
            return;
        }
        call.tried.push(endpoint);
        self.choose(flight.call);
    }

    fn end(&mut self, at: u32, ended: Ended) {
        let now_us = self.queue.now_us();
        let call = &mut self.calls[at];
        call.is_open = false;
        self.meter.ended(call.arrived_us, call.size_us, ended, now_us);
        self.calls.free(at);
    }

    /// The run is over: what has not ended took at least until now.
    pub(super) fn end_open_calls(&mut self) {
        let open: Vec<u32> = self.calls.iter().filter(|(_, call)| call.is_open).map(|(at, _)| at).collect();
        for at in open {
            self.end(at, Ended::Well);
        }
    }

    pub(super) fn probed(&mut self, client: u32, endpoint: u32) {
        if let Some(answer) = self.answer(endpoint) {
            self.queue.send(Event::ProbeBack { client, endpoint, answer });
        }
    }
}
