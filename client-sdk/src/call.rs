//! One call, from the application's request to the head of its response. It moves to another endpoint by itself only when the
//! one it was sent to provably did not process it: never connected, never sent, refused, or above the last stream of a goodbye.
//! It is executed again only where its method is declared idempotent and a policy says so; everything else is the caller's to
//! know.

mod execution;
mod repeat;
mod trail;
mod verdict;

use std::{
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{HeaderValue, Request, Response, request};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status, body::Body};

use crate::{
    attempt::Attempt,
    deadlines::{Defaults, Expired, Limits},
    outcome::Class,
    policy::MethodPolicy,
    pool::Pool,
    replay::Replay,
    response::ResponseBody,
    why::{self, NotRetried, What},
};
use trail::Trail;
pub(crate) use verdict::{Verdict, of_error};

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What every call of a channel needs.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) defaults: Defaults,
    /// How long calls wait for the first list, since the channel was made.
    pub(crate) first_list: Duration,
    /// A fallback takes the place of the first list when that time is over.
    pub(crate) has_fallback: bool,
}

/// What the attempts of one call share.
struct Call<'a> {
    pool: &'a Arc<Pool>,
    settings: &'a Settings,
    head: &'a request::Parts,
    replay: &'a Arc<Replay>,
    limits: &'a Limits,
    policy: Option<&'a MethodPolicy>,
    trail: &'a Trail,
}

/// Makes a call: the head of its response, or a status that says what stands behind it.
pub(crate) async fn run(
    pool: &Arc<Pool>,
    settings: &Settings,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let (mut head, body) = request.into_parts();
    let policy = pool.advice.policy_of(head.uri.path());
    let policy = policy.as_deref();
    if policy.is_some_and(|p| p.idempotency_key) && !head.headers.contains_key(IDEMPOTENCY_KEY) {
        head.headers.insert(IDEMPOTENCY_KEY, random_key());
    }
    if pool.advice.throttle.is_on() && pool.advice.throttle.holds_back(pool.now_us(), &mut pool.rng()) {
        return Err(held_back(pool));
    }
    let mut limits = Limits::new(&head.headers, &settings.defaults, policy);
    let replay = Replay::new(body);
    let repeated = policy.filter(|p| p.repeats());
    let trail = Trail::new(repeated.is_some());
    let mut timer = Timer::default();
    let at_start = limits.clone();
    let call = Call { pool, settings, head: &head, replay: &replay, limits: &at_start, policy, trail: &trail };
    let expired = {
        let mut work = pin!(async {
            match repeated {
                None => execution::once_only(&call).await,
                // Large, and seldom needed: other calls do not carry the room for it.
                Some(policy) => Box::pin(repeat::run(&call, policy)).await,
            }
        });
        let done = poll_fn(|cx| {
            // A call that is over before it begins is not sent.
            if !at_start.left().is_some_and(|left| left.is_zero())
                && let Poll::Ready(result) = work.as_mut().poll(cx)
            {
                return Poll::Ready(Ok(result));
            }
            loop {
                let Some((at, what)) = limits.due(None) else { return Poll::Pending };
                if timer.poll(at, cx).is_pending() {
                    return Poll::Pending;
                }
                if what == Expired::DefaultDeadline && replay.messages() >= 2 {
                    limits.flows();
                    continue;
                }
                replay.expire();
                return Poll::Ready(Err(what));
            }
        })
        .await;
        match done {
            Ok(result) => {
                let answer = result.map_err(|status| pool.with_hint(status))?;
                return Ok(finish(answer, limits, timer));
            }
            // Leaving this block drops the attempts under way, which end by their time having run out.
            Err(expired) => expired,
        }
    };
    Err(pool.with_hint(timed_out(pool, &trail, &limits, expired)))
}

/// The head of a response.
struct Answer {
    attempt: Attempt,
    response: Response<h2::RecvStream>,
    /// It is an error, and this is why the call was not sent once more.
    not_retried: Option<NotRetried>,
}

impl Answer {
    /// The code of an answer that is an error and nothing else: its head is its end, and the application has seen none of it.
    fn error_code(&self) -> Option<Code> {
        crate::outcome::code_of_headers(self.response.headers()).filter(|code| *code != Code::Ok)
    }
}

fn finish(answer: Answer, limits: Limits, timer: Timer) -> Response<Body> {
    let Answer { mut attempt, response, not_retried } = answer;
    let (mut head, stream) = response.into_parts();
    head.extensions.insert(why::Picked { address: attempt.endpoint.address.clone(), attempts: attempt.number });
    if let Some(class) = crate::outcome::class_of_headers(&head.headers) {
        // An answer without a body: its head is its end.
        attempt.end_with(class, &head.headers);
        if class != Class::Ok {
            why::annotate(&mut head.headers, Some(&attempt.endpoint.address), What::Answered, attempt.number);
            not_retried.into_iter().for_each(|why_not| why::annotate_not_retried(&mut head.headers, why_not));
        }
        return Response::from_parts(head, Body::empty());
    }
    let body = ResponseBody::new(&head.headers, stream, attempt, limits, timer);
    Response::from_parts(head, Body::new(body))
}

fn timed_out(pool: &Pool, trail: &Trail, limits: &Limits, expired: Expired) -> Status {
    let waited_ms = limits.elapsed().as_millis();
    let words = expired.words();
    let status = match trail.at() {
        Some((endpoint, number)) => {
            let address = &endpoint.address;
            let message = format!("call to {address} failed: {words} after {waited_ms} ms, no answer yet");
            why::status(Code::DeadlineExceeded, message, Some(address), What::DeadlineExceeded, number)
        }
        None if trail.is_between() => {
            let message = format!("{words} after {waited_ms} ms, before the next attempt");
            why::status(Code::DeadlineExceeded, message, None, What::DeadlineExceeded, trail.sent())
        }
        None => {
            let (full, none) = match trail.is_queued() {
                true => (Code::ResourceExhausted, What::EndpointsFull),
                false => (Code::Unavailable, What::NoEndpoint),
            };
            let code = match expired {
                Expired::CallerDeadline => Code::DeadlineExceeded,
                Expired::DefaultDeadline | Expired::StreamIdle | Expired::StreamLife => full,
            };
            let message = format!("{words} after {waited_ms} ms: {}", pool.explain_none());
            why::status(code, message, None, none, trail.sent())
        }
    };
    trail.told_in(status)
}

fn held_back(pool: &Pool) -> Status {
    let (calls, taken) = pool.advice.throttle.remembered(pool.now_us());
    let message = format!(
        "not sent: the balancer says that {} has too much to do, and of this client's last {calls} calls it took {taken}. \
         try: lookaside explain {} --client {}",
        pool.service, pool.service, pool.client_id
    );
    why::status(Code::ResourceExhausted, message, None, What::Throttled, 0)
}

/// Different for every call, the same for all of its attempts.
fn random_key() -> HeaderValue {
    let (high, low): (u64, u64) = (rand::random(), rand::random());
    // Laid out as a random UUID: what takes such keys often insists on one.
    let key = format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xFFFF,
        high & 0xFFF,
        0x8000 | (low >> 50),
        low & 0xFFFF_FFFF_FFFF
    );
    HeaderValue::from_str(&key).unwrap_or(HeaderValue::from_static("0"))
}

impl Expired {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Expired::CallerDeadline => "the caller's deadline passed",
            Expired::DefaultDeadline => "the channel's default deadline passed",
            Expired::StreamIdle => "the stream was idle for longer than its limit",
            Expired::StreamLife => "the stream reached its longest life",
        }
    }
}

/// One timer for whichever limit is due first, made when first needed.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    pub(crate) fn poll(&mut self, at: Instant, cx: &mut std::task::Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx)
    }
}
