//! One call, from the application's request to the head of its response. It moves to another endpoint by itself only when the
//! one it was sent to provably did not process it: never connected, never sent, refused, or above the last stream of a goodbye.
//! Everything else is the caller's to know.

mod verdict;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response, header, request, uri};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::{Code, Status, body::Body};

use crate::{
    attempt::Attempt,
    limits::{Defaults, Expired, GRPC_TIMEOUT, Limits, format_timeout},
    outcome::{Class, class_of},
    pool::Pool,
    replay::{KEPT_BYTES_MAX, Replay},
    response::{self, ResponseBody},
    why::{self, What},
};
pub(crate) use verdict::{Verdict, of_error};

/// Endpoints one call is sent to at most.
const ATTEMPTS_MAX: u32 = 5;
/// How long a call waits while every endpoint refuses connections: long enough for a new list or a restart that is nearly
/// done, short enough for a caller to hear of an outage as such, not as a deadline.
const PATIENCE: Duration = Duration::from_secs(1);
const USER_AGENT: &str = concat!("lookaside-rust/", env!("CARGO_PKG_VERSION"));

/// What every call of a channel needs.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) defaults: Defaults,
    /// How long calls wait for the first list, since the channel was made.
    pub(crate) first_list: Duration,
    /// A fallback takes the place of the first list when that time is over.
    pub(crate) has_fallback: bool,
}

/// Makes a call: the head of its response, or a status that says what stands behind it.
pub(crate) async fn run(
    pool: &Arc<Pool>,
    settings: &Settings,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let (head, body) = request.into_parts();
    let mut limits = Limits::new(&head.headers, &settings.defaults);
    let replay = Replay::new(body);
    let mut timer = Timer::default();
    let at_start = limits.clone();
    let expired = {
        let mut work = pin!(attempts(pool, settings, &head, &replay, &at_start));
        let done = poll_fn(|cx| {
            if let Poll::Ready(result) = work.as_mut().poll(cx) {
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
                let (attempt, response) = result.map_err(|status| pool.with_hint(status))?;
                return Ok(answer(attempt, response, limits, timer));
            }
            // Leaving this block drops the attempt under way, which ends by its time having run out.
            Err(expired) => expired,
        }
    };
    Err(pool.with_hint(timed_out(pool, &replay, &limits, expired)))
}

type Answer = (Attempt, Response<h2::RecvStream>);

async fn attempts(
    pool: &Arc<Pool>,
    settings: &Settings,
    head: &request::Parts,
    replay: &Arc<Replay>,
    limits: &Limits,
) -> Result<Answer, Status> {
    let mut tried: Vec<u64> = Vec::new();
    let mut story = String::new();
    let mut number = 0;
    loop {
        number += 1;
        let endpoint = choose(pool, settings, &tried, &story).await?;
        replay.now_at(Some((endpoint.clone(), number)));
        let attempt = Attempt::new(pool.clone(), endpoint, replay.clone(), number);
        let address = attempt.endpoint.address.clone();
        let id = attempt.endpoint.peer.id();
        let reason = match once(attempt, head, replay, limits).await {
            Ok(answer) => return Ok(answer),
            Err(Verdict::Final(status)) => return Err(with_story(status, &story)),
            Err(Verdict::NotProcessed(reason)) => reason,
        };
        replay.now_at(None);
        let stuck = if number >= ATTEMPTS_MAX {
            "no further endpoint is tried".to_owned()
        } else if !replay.is_movable() {
            format!("its request is longer than {KEPT_BYTES_MAX} bytes and was not kept")
        } else {
            tried.push(id);
            story = format!("{story}{address}: {reason}; ");
            continue;
        };
        let message = format!("call to {address} failed before it was processed: {reason}; {stuck}");
        let status = why::status(Code::Unavailable, message, Some(&address), What::NotProcessed, number);
        return Err(with_story(status, &story));
    }
}

/// An endpoint for the next attempt, waiting for one while there is hope.
async fn choose(
    pool: &Arc<Pool>,
    settings: &Settings,
    tried: &[u64],
    story: &str,
) -> Result<Arc<crate::endpoint::Endpoint>, Status> {
    if let Some(endpoint) = pool.pick(tried) {
        return Ok(endpoint);
    }
    let mut pickers = pool.pickers();
    let patience_over = Instant::now() + PATIENCE;
    loop {
        pickers.mark_unchanged();
        if let Some(endpoint) = pool.pick(tried) {
            return Ok(endpoint);
        }
        let first_list_in = settings.first_list.saturating_sub(Duration::from_micros(pool.now_us()));
        let hope = match pool.has_list() {
            true => pool.may_get_ready() && !(Instant::now() >= patience_over && pool.is_unreachable()),
            false => !first_list_in.is_zero() || settings.has_fallback,
        };
        if !hope {
            let status = why::status(Code::Unavailable, pool.explain_none(), None, What::NoEndpoint, 0);
            return Err(with_story(status, story));
        }
        if pool.has_list() || settings.has_fallback {
            let look_at = patience_over.max(Instant::now() + PATIENCE / 4);
            let _ = timeout_at(look_at, pickers.changed()).await;
        } else {
            let _ = tokio::time::timeout(first_list_in, pickers.changed()).await;
        }
    }
}

/// One attempt, up to the head of its response.
async fn once(
    mut attempt: Attempt,
    head: &request::Parts,
    replay: &Arc<Replay>,
    limits: &Limits,
) -> Result<Answer, Verdict> {
    let seat = match attempt.endpoint.slot().await {
        Ok(seat) => seat,
        Err(reason) => {
            attempt.leave();
            return Err(Verdict::NotProcessed(reason));
        }
    };
    let sent = seat.slot().send(request_head(head, &attempt, limits));
    attempt.take_seat(seat);
    let (response, stream) = match sent {
        Ok(sent) => sent,
        Err(error) => {
            attempt.leave();
            return Err(Verdict::NotProcessed(format!("not sent: {}", crate::error::flatten(&error))));
        }
    };
    attempt.sent();
    // Most requests are one message, and gone at the first try; only the others need a task of their own.
    let mut pump = replay.pump(stream);
    if poll_fn(|cx| Poll::Ready(Pin::new(&mut pump).poll(cx))).await.is_pending() {
        attempt.pump_on(pump);
    } else {
        drop(pump);
    }
    match response.await {
        Ok(response) => {
            replay.settle();
            attempt.answered();
            match response::check(&response, &attempt.endpoint.address, attempt.number) {
                Ok(()) => Ok((attempt, response)),
                Err(status) => {
                    attempt.end(Class::Endpoint);
                    Err(Verdict::Final(status))
                }
            }
        }
        Err(error) => {
            let goodbye = attempt.goodbye().cloned();
            let verdict = of_error(&error, goodbye.as_ref(), &attempt.endpoint.address, attempt.number, false);
            let moves_or_is_ours =
                matches!(verdict, Verdict::NotProcessed(_)) || (error.is_reset() && !error.is_remote());
            if let Some(status) = replay.failure().filter(|_| moves_or_is_ours) {
                // The request broke off on the application's side: nobody here is to blame, and nobody else is to get half of it.
                attempt.end(Class::Cancelled);
                return Err(Verdict::Final(status));
            }
            match &verdict {
                Verdict::NotProcessed(_) if error.is_reset() => attempt.end(Class::Overload),
                Verdict::NotProcessed(_) => attempt.leave(),
                Verdict::Final(status) => attempt.end(class_of(status.code())),
            }
            Err(verdict)
        }
    }
}

fn request_head(head: &request::Parts, attempt: &Attempt, limits: &Limits) -> Request<()> {
    let mut uri = uri::Parts::default();
    uri.scheme = Some(uri::Scheme::HTTP);
    uri.authority = Some(attempt.endpoint.authority.clone());
    uri.path_and_query = Some(match head.uri.path_and_query() {
        Some(path) => path.clone(),
        None => uri::PathAndQuery::from_static("/"),
    });
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = http::Uri::from_parts(uri).unwrap_or_default();
    *request.headers_mut() = head.headers.clone();
    let headers = request.headers_mut();
    headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(USER_AGENT));
    if attempt.number > 1 || limits.elapsed() > Duration::from_millis(1) {
        rewrite_timeout(headers, limits);
    }
    request
}

/// Part of the caller's time is gone already: what is sent on is the rest.
fn rewrite_timeout(headers: &mut HeaderMap, limits: &Limits) {
    if let Some(value) = limits.left().and_then(|left| HeaderValue::from_str(&format_timeout(left)).ok()) {
        headers.insert(GRPC_TIMEOUT, value);
    }
}

fn answer(mut attempt: Attempt, response: Response<h2::RecvStream>, limits: Limits, timer: Timer) -> Response<Body> {
    let (mut head, stream) = response.into_parts();
    head.extensions.insert(why::Picked { address: attempt.endpoint.address.clone(), attempts: attempt.number });
    if let Some(class) = crate::outcome::class_of_headers(&head.headers) {
        // An answer without a body: its head is its end.
        if class != Class::Ok {
            why::annotate(&mut head.headers, Some(&attempt.endpoint.address), What::Answered, attempt.number);
        }
        attempt.end(class);
        return Response::from_parts(head, Body::empty());
    }
    let body = ResponseBody::new(stream, attempt, limits, timer);
    Response::from_parts(head, Body::new(body))
}

/// What the endpoints before the last one said.
fn with_story(status: Status, story: &str) -> Status {
    if story.is_empty() {
        return status;
    }
    let message = format!("{} (before that, not processed by {})", status.message(), story.trim_end_matches("; "));
    Status::with_metadata(status.code(), message, status.metadata().clone())
}

fn timed_out(pool: &Pool, replay: &Replay, limits: &Limits, expired: Expired) -> Status {
    let waited_ms = limits.elapsed().as_millis();
    match replay.at() {
        Some((endpoint, number)) => {
            let address = &endpoint.address;
            why::status(
                Code::DeadlineExceeded,
                format!("call to {address} failed: {} after {waited_ms} ms, no answer yet", expired.words()),
                Some(address),
                What::DeadlineExceeded,
                number,
            )
        }
        None => {
            let code = match expired {
                Expired::CallerDeadline => Code::DeadlineExceeded,
                Expired::DefaultDeadline | Expired::StreamIdle | Expired::StreamLife => Code::Unavailable,
            };
            let message = format!("{} after {waited_ms} ms: {}", expired.words(), pool.explain_none());
            why::status(code, message, None, What::NoEndpoint, 0)
        }
    }
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
