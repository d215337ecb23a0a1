//! One attempt of a call at one endpoint, counted from the pick to the end, whichever way it ends. Dropping it gives everything
//! back: the place in flight, the stream's room, the rest of the request.

use std::sync::Arc;

use http::HeaderMap;
use tokio::task::JoinHandle;

use crate::{
    connection::Goodbye,
    endpoint::{Endpoint, Seat},
    orca,
    outcome::Class,
    picker::{Said, Suspicion},
    pool::Pool,
    replay::{Pump, Replay},
};

/// Who is told of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Nobody.
    Nothing,
    /// Whoever judges the endpoint.
    Outcome,
    /// The same, and whoever judges the service: the call ended with it.
    All,
}

#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) endpoint: Arc<Endpoint>,
    /// How often the call was sent, this time included.
    pub(crate) number: u32,
    pool: Arc<Pool>,
    replay: Arc<Replay>,
    seat: Option<Seat>,
    pump: Option<JoinHandle<()>>,
    sent_us: Option<u64>,
    answered: bool,
    ended: bool,
}

impl Attempt {
    /// For an endpoint that was picked, and counts a call in flight for it.
    pub(crate) fn new(pool: Arc<Pool>, endpoint: Arc<Endpoint>, replay: Arc<Replay>, number: u32) -> Self {
        Self { endpoint, number, pool, replay, seat: None, pump: None, sent_us: None, answered: false, ended: false }
    }

    pub(crate) fn take_seat(&mut self, seat: Seat) {
        self.seat = Some(seat);
    }

    /// Why the connection it uses is over, once it is.
    pub(crate) fn goodbye(&self) -> Option<&Goodbye> {
        self.seat.as_ref().and_then(|seat| seat.slot().goodbye())
    }

    /// The head of the request is on its way.
    pub(crate) fn sent(&mut self) {
        let now_us = self.pool.now_us();
        self.sent_us = Some(now_us);
        self.endpoint.peer.sent(now_us);
    }

    /// Sends the rest of a request that could not be sent at once.
    pub(crate) fn pump_on(&mut self, pump: Pump) {
        self.pump = Some(tokio::spawn(pump));
    }

    /// Whether nothing of the request is left to send.
    pub(crate) fn is_request_sent(&self) -> bool {
        self.pump.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The response head is here.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
        let now_us = self.pool.now_us();
        self.pool.picker().answered(&self.endpoint.peer, self.sent_us.unwrap_or(now_us), now_us);
    }

    /// More of the response is here.
    pub(crate) fn spoke(&self) {
        self.pool.picker().spoke(&self.endpoint.peer, self.pool.now_us());
    }

    /// The endpoint told of so many requests in flight, at this time.
    pub(crate) fn told(&self, rif: u32, told_us: u64) {
        self.pool.probing.told();
        self.endpoint.probed.told(self.pool.now_us());
        self.pool.picker().heard(&self.endpoint.peer, Said::Rif(rif), told_us, self.pool.now_us());
    }

    pub(crate) fn replay(&self) -> &Replay {
        &self.replay
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The call ended here.
    pub(crate) fn end(&mut self, class: Class) {
        self.finish(class, Told::All, None);
    }

    /// The call ended here with these trailers, or with a head that is all there is.
    pub(crate) fn end_with(&mut self, class: Class, trailers: &HeaderMap) {
        self.finish(class, Told::All, orca::rif_of(trailers));
    }

    /// The endpoint refused the call, and nothing was done there. It moves on if it can: what becomes of it is not decided here.
    pub(crate) fn refused(&mut self) {
        self.finish(Class::Overload, Told::Outcome, None);
    }

    /// The call moves on; nothing was done here, so nothing is said of it.
    pub(crate) fn leave(&mut self) {
        self.finish(Class::Cancelled, Told::Nothing, None);
    }

    fn finish(&mut self, class: Class, told: Told, rif: Option<u32>) {
        if self.ended {
            return;
        }
        self.ended = true;
        if let Some(pump) = self.pump.take() {
            pump.abort();
        }
        let now_us = self.pool.now_us();
        // Counted before it leaves its place in flight: an endpoint that left the list is forgotten with its last call.
        if let Some(sent_us) = self.sent_us.filter(|_| told != Told::Nothing) {
            if told == Told::All {
                self.pool.advice.throttle.ended(class, now_us);
            }
            let is_news = self.endpoint.tally.count(class, now_us.saturating_sub(sent_us));
            if is_news {
                self.pool.news();
            }
        }
        if rif.is_some() {
            self.pool.probing.told();
            // A failed call's word counts for nothing: perhaps it was shed as well.
            if class == Class::Ok {
                self.endpoint.probed.told(now_us);
            }
        }
        let suspicion = self.pool.picker().ended(&self.endpoint.peer, class, self.sent_us, self.answered, rif, now_us);
        if let Some(suspicion) = suspicion {
            self.endpoint.tally.suspect(match suspicion {
                Suspicion::FailuresInARow => "calls fail one after the other".to_owned(),
                Suspicion::Silence => "calls stay unanswered while other endpoints answer".to_owned(),
            });
            self.pool.alarm();
        }
        self.seat = None;
        self.pool.room.free();
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.end(if self.replay.is_expired() { Class::Deadline } else { Class::Cancelled });
    }
}
