//! A call whose method is declared idempotent: executed again when an execution failed in a way that may pass, and beside the
//! first when that one is slow. Stays inside the call's deadline, its policy and the budgets of the channel, and lets nothing be
//! repeated of which the application has seen the head of an answer.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
};

use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    Answer, Call, Timer,
    execution::{Failure, attempt_at, execute},
};
use crate::{
    backoff::{Backoff, Pushback},
    error::cut,
    outcome::{Class, class_of},
    policy::MethodPolicy,
    why::{self, NotRetried},
};

type Execution<'a> = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send + 'a>>;

/// An execution that failed in a way that is the policy's to judge.
enum Failed {
    Answer(Answer),
    Status(Status),
    /// Nobody processed it: no load that a budget would have to bound.
    Unprocessed(Status),
}

/// What happens next.
#[expect(clippy::large_enum_variant, reason = "one at a time, and most are the large one")]
enum Event {
    Ended(Result<Answer, Failure>),
    HedgeDue,
    RetryDue,
}

/// A call under way.
struct Repeat<'a> {
    call: &'a Call<'a>,
    policy: &'a MethodPolicy,
    running: Vec<Execution<'a>>,
    /// Executions begun, hedges included.
    begun: u32,
    /// Those of them that count as attempts.
    attempts: u32,
    hedges: u32,
    hedge_at: Option<Instant>,
    retry_at: Option<Instant>,
    /// Until then an endpoint wants to be left alone.
    not_before: Option<Instant>,
    /// An endpoint wants no further attempt.
    is_refused: bool,
    backoff: Backoff,
    timer: Timer,
}

/// Executes the call as often as its policy allows: the first good answer, or the last failure.
pub(super) async fn run(call: &Call<'_>, policy: &MethodPolicy) -> Result<Answer, Status> {
    let mut repeat = Repeat::new(call, policy);
    if policy.hedge_delay.is_some() {
        call.pool.advice.hedges.earn();
    }
    repeat.attempt();
    loop {
        match repeat.next().await {
            Event::RetryDue => repeat.attempt(),
            Event::HedgeDue => repeat.hedge(),
            Event::Ended(Ok(answer)) => match answer.error_code() {
                None => {
                    call.pool.advice.retries.went_well(call.pool.now_us());
                    // Whoever else is at it is let go, and thereby cancelled.
                    return Ok(answer);
                }
                Some(code) => {
                    let pushback = Pushback::said_in(answer.response.headers());
                    if let Some(result) = repeat.judge(code, pushback, Failed::Answer(answer)) {
                        return result;
                    }
                }
            },
            Event::Ended(Err(Failure::There(status))) => {
                if let Some(result) = repeat.judge(status.code(), Pushback::None, Failed::Status(status)) {
                    return result;
                }
            }
            // Nothing was done there, and somebody else is at it.
            Event::Ended(Err(Failure::Unprocessed(status) | Failure::Nowhere(status)))
                if !repeat.running.is_empty() =>
            {
                repeat.note(status.code(), Failed::Unprocessed(status));
            }
            Event::Ended(Err(Failure::Unprocessed(status))) => {
                if let Some(result) = repeat.judge(status.code(), Pushback::None, Failed::Unprocessed(status)) {
                    return result;
                }
            }
            Event::Ended(Err(Failure::Nowhere(status) | Failure::Final(status))) => {
                return Err(call.trail.told_in(status));
            }
        }
    }
}

impl<'a> Repeat<'a> {
    fn new(call: &'a Call<'a>, policy: &'a MethodPolicy) -> Self {
        let seed = call.pool.rng().next_u64();
        Self {
            call,
            policy,
            running: Vec::with_capacity(1),
            begun: 0,
            attempts: 0,
            hedges: 0,
            hedge_at: None,
            retry_at: None,
            not_before: None,
            is_refused: false,
            backoff: Backoff::new(policy.backoff_base, policy.backoff_max, seed),
            timer: Timer::default(),
        }
    }

    /// Begins an attempt, at whichever endpoint there is; another one than those before, if there is another.
    fn attempt(&mut self) {
        self.retry_at = None;
        self.attempts += 1;
        self.plan_hedge();
        self.running.push(Box::pin(execute(self.call, None, self.begun)));
        self.begun += 1;
    }

    /// Begins an execution beside those under way, if all is there that it takes.
    fn hedge(&mut self) {
        self.plan_hedge();
        let (pool, advice) = (self.call.pool, &self.call.pool.advice);
        if !self.call.replay.is_complete() {
            // The application has not said all yet, and two cannot wait for the rest of it.
            return;
        }
        if advice.throttle.is_on() || !advice.retries.allows(pool.now_us()) || !advice.hedges.spend(1) {
            self.hedge_at = None;
            return;
        }
        let Some(endpoint) = pool.pick_other(self.call.head, &self.call.trail.tried()) else {
            advice.hedges.give_back(1);
            return;
        };
        self.hedges += 1;
        // Made here and not by the execution: the call may end before that is polled for the first time.
        let attempt = attempt_at(self.call, endpoint);
        self.running.push(Box::pin(execute(self.call, Some(attempt), self.begun)));
        self.begun += 1;
        self.plan_hedge();
    }

    /// The next hedge is due after a delay, if there is to be one.
    fn plan_hedge(&mut self) {
        let delay = self.policy.hedge_delay.filter(|_| self.hedges < self.policy.hedges_max);
        self.hedge_at = delay.and_then(|delay| Instant::now().checked_add(delay));
    }

    async fn next(&mut self) -> Event {
        poll_fn(|cx| {
            for n in 0..self.running.len() {
                if let Poll::Ready(result) = self.running[n].as_mut().poll(cx) {
                    drop(self.running.swap_remove(n));
                    return Poll::Ready(Event::Ended(result));
                }
            }
            // A call that waits to be tried again has nothing to be hedged.
            let (at, event) = match (self.retry_at, self.hedge_at) {
                (Some(at), _) => (at, Event::RetryDue),
                (None, Some(at)) => (at, Event::HedgeDue),
                (None, None) => return Poll::Pending,
            };
            self.timer.poll(at, cx).map(|()| event)
        })
        .await
    }

    /// An execution failed. `None` when the call goes on.
    fn judge(&mut self, code: Code, pushback: Pushback, failed: Failed) -> Option<Result<Answer, Status>> {
        let (retries, now_us) = (&self.call.pool.advice.retries, self.call.pool.now_us());
        if !self.policy.retry_codes.contains(code) {
            if class_of(code) == Class::Caller {
                retries.went_well(now_us);
            }
            return Some(self.end(failed, NotRetried::Code));
        }
        let is_in_budget = match failed {
            Failed::Answer(_) | Failed::Status(_) => retries.failed(now_us),
            Failed::Unprocessed(_) => retries.allows(now_us),
        };
        let now = Instant::now();
        match pushback {
            Pushback::None => {}
            Pushback::Never => (self.is_refused, self.hedge_at) = (true, None),
            Pushback::After(pause) => {
                self.not_before = self.not_before.max(now.checked_add(pause));
                self.hedge_at = self.hedge_at.and(self.not_before);
            }
        }
        if !self.running.is_empty() {
            self.note(code, failed);
            return None;
        }
        let next = match pushback {
            _ if self.is_refused => Err(NotRetried::Pushback),
            _ if self.attempts >= self.policy.attempts_max => Err(NotRetried::Attempts),
            _ if !self.call.replay.take_back() => Err(NotRetried::RequestTooLong),
            _ if self.call.pool.advice.throttle.is_on() => Err(NotRetried::Overload),
            _ if !is_in_budget => Err(NotRetried::Budget),
            Pushback::After(_) => self.in_time(now),
            Pushback::None | Pushback::Never => {
                let pause = self.backoff.next();
                self.in_time(now + pause)
            }
        };
        match next {
            Ok(at) => {
                self.note(code, failed);
                self.call.trail.waits();
                self.retry_at = Some(at);
                None
            }
            Err(not_retried) => Some(self.end(failed, not_retried)),
        }
    }

    /// This moment, or a later one that an endpoint asked for, unless the call is over by then.
    fn in_time(&self, at: Instant) -> Result<Instant, NotRetried> {
        let at = self.not_before.map_or(at, |not_before| at.max(not_before));
        if self.call.limits.is_over_at(at) { Err(NotRetried::Deadline) } else { Ok(at) }
    }

    /// The call goes on after this.
    fn note(&self, code: Code, failed: Failed) {
        match failed {
            Failed::Answer(mut answer) => {
                answer.attempt.end_with(class_of(code), answer.response.headers());
                let address = answer.attempt.endpoint.address.clone();
                let status = Status::from_header_map(answer.response.headers());
                let message = cut(status.map_or_else(String::new, |status| status.message().to_owned()));
                let separator = if message.is_empty() { "" } else { ", " };
                self.call.trail.failed_at(&address, format_args!("answered {code:?}{separator}{message}"));
            }
            Failed::Status(status) | Failed::Unprocessed(status) => {
                let at = why::why(&status).and_then(|why| why.endpoint).unwrap_or_default();
                self.call.trail.failed_at(&at, format_args!("{}", status.message()));
            }
        }
    }

    /// The call ends with this.
    fn end(&self, failed: Failed, not_retried: NotRetried) -> Result<Answer, Status> {
        match failed {
            Failed::Answer(mut answer) => {
                answer.not_retried = Some(not_retried);
                if self.begun > 1 {
                    let told = format!("; not retried: {}{}", not_retried.words(), self.call.trail.told());
                    why::add_to_message(answer.response.headers_mut(), &told);
                }
                Ok(answer)
            }
            Failed::Status(status) | Failed::Unprocessed(status) => {
                Err(self.call.trail.told_in(not_retried.said_in(status)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;
    use tokio::net::TcpListener;
    use tonic::body::Body;

    use super::*;
    use crate::{
        call::{Settings, Trail},
        deadlines::{Defaults, Limits},
        list::List,
        pool::Pool,
        replay::Replay,
        snapshot::ListSource,
    };

    /// Speaks HTTP/2, and answers nothing.
    async fn silent() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let mut server = h2::server::handshake(socket).await.unwrap();
            let mut calls = Vec::new();
            while let Some(Ok(call)) = server.accept().await {
                calls.push(call);
            }
        });
        address
    }

    #[tokio::test]
    async fn a_hedge_that_is_dropped_before_it_began_leaves_no_call_in_flight() {
        let pool = Pool::new("s".into(), "c".into(), Duration::from_secs(5), 1);
        pool.advice.hedges.set_percent(100);
        pool.advice.hedges.earn();
        let mut pickers = pool.pickers();
        pool.apply(List::plain(&[silent().await, silent().await]), ListSource::Static, None);
        while pool.picker().candidates().len() < 2 {
            pickers.changed().await.unwrap();
        }
        let (head, body) = Request::new(Body::empty()).into_parts();
        let defaults = Defaults { deadline: None, stream_idle: None, stream_life: None };
        let limits = Limits::new(&head.headers, &defaults, None);
        let settings = Settings { defaults, first_list: Duration::ZERO, has_fallback: false };
        let (replay, policy, trail) = (Replay::new(body), MethodPolicy::new(), Trail::new(true));
        let call = Call {
            pool: &pool,
            settings: &settings,
            head: &head,
            replay: &replay,
            limits: &limits,
            policy: None,
            trail: &trail,
        };
        let mut repeat = Repeat::new(&call, &policy);
        repeat.attempt();
        while !replay.is_complete() {
            assert!(futures_util::poll!(std::pin::pin!(repeat.next())).is_pending());
            tokio::task::yield_now().await;
        }
        repeat.hedge();
        let in_flight = || pool.endpoints().iter().map(|e| e.peer.in_flight()).sum::<u32>();
        assert_eq!((repeat.running.len(), in_flight()), (2, 2));
        drop(repeat);
        assert_eq!(in_flight(), 0);
        pool.close();
    }
}
