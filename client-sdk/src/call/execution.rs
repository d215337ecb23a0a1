//! One execution of a call: sent to one endpoint, and on to others for as long as they provably did not process it, up to the
//! head of its response.

use std::{
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, header, uri};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status};

use super::{Answer, Call, Verdict, of_error};
use crate::{
    attempt::Attempt,
    deadlines::{GRPC_TIMEOUT, Limits, format_timeout},
    dial::SDK,
    endpoint::Endpoint,
    outcome::{Class, class_of, class_of_headers},
    policy::Codes,
    pool::NoPick,
    replay::KEPT_BYTES_MAX,
    response,
    room::Waiting,
    why::{self, NotRetried, What},
};

/// How often one call may move to another endpoint.
const MOVES_MAX: u32 = 4;
/// How long a call waits while every endpoint refuses connections: long enough for a new list or a restart that is nearly
/// done, short enough for a caller to hear of an outage as such, not as a deadline.
const PATIENCE: Duration = Duration::from_secs(1);
/// Executions before this one, for the endpoint to know.
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// How an execution came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// At an endpoint that may have processed it: a further execution may go better.
    There(Status),
    /// Nobody processed it, and it moves no further.
    Unprocessed(Status),
    /// There is no endpoint for it, nor a place to wait for one.
    Nowhere(Status),
    /// No further execution could go better.
    Final(Status),
}

/// Executes a call that must not be executed twice, or need not.
pub(super) async fn once_only(call: &Call<'_>) -> Result<Answer, Status> {
    let not_retried = match call.policy.is_some_and(|policy| policy.idempotent) {
        true => NotRetried::Attempts,
        false => NotRetried::NotIdempotent,
    };
    let retry_codes = call.policy.map_or(Codes::UNAVAILABLE, |policy| policy.retry_codes);
    match execute(call, None, 0).await {
        Ok(mut answer) => {
            // Of most errors nobody would expect that another attempt helps.
            answer.not_retried = answer.error_code().filter(|code| retry_codes.contains(*code)).map(|_| not_retried);
            Ok(answer)
        }
        Err(Failure::There(status)) => Err(not_retried.said_in(call.trail.told_in(status))),
        Err(Failure::Unprocessed(status) | Failure::Nowhere(status) | Failure::Final(status)) => {
            Err(call.trail.told_in(status))
        }
    }
}

/// The call's next attempt, at an endpoint that was picked for it: dropped, it gives the place back.
pub(super) fn attempt_at(call: &Call<'_>, endpoint: Arc<Endpoint>) -> Attempt {
    let number = call.trail.went_to(&endpoint);
    Attempt::new(call.pool.clone(), endpoint, call.replay.clone(), number)
}

/// Executes a call: by this attempt alone, or wherever there is a place. `previous` executions were begun before this one.
pub(super) async fn execute(call: &Call<'_>, bound: Option<Attempt>, previous: u32) -> Result<Answer, Failure> {
    let is_bound = bound.is_some();
    let mut bound = bound;
    let mut was_refused = false;
    // Once, whoever refused it, and nothing of a call that nobody saw: that says nothing of how much there is to do.
    let count = |was_refused: bool| {
        if was_refused && !is_bound {
            call.pool.advice.throttle.ended(Class::Overload, call.pool.now_us());
        }
    };
    loop {
        let attempt = match bound.take() {
            Some(attempt) => attempt,
            None => match choose(call).await {
                Ok(endpoint) => attempt_at(call, endpoint),
                Err(status) => {
                    count(was_refused);
                    return Err(Failure::Nowhere(status));
                }
            },
        };
        let (endpoint, number) = (attempt.endpoint.clone(), attempt.number);
        let reason = match once(call, attempt, previous).await {
            Ok(answer) => return Ok(answer),
            Err(Verdict::Failed(status)) => return Err(Failure::There(status)),
            Err(Verdict::Final(status)) => return Err(Failure::Final(status)),
            Err(Verdict::Refused(reason)) => {
                was_refused = true;
                reason
            }
            Err(Verdict::NotProcessed(reason)) => reason,
        };
        let address = &endpoint.address;
        let stuck = if call.trail.leaves(&endpoint) > MOVES_MAX {
            "no further endpoint is tried".to_owned()
        } else if !call.replay.take_back() {
            format!("its request is longer than {KEPT_BYTES_MAX} bytes and was not kept")
        } else if is_bound {
            "it was sent to others as well".to_owned()
        } else {
            call.trail.left(address, &reason);
            continue;
        };
        count(was_refused);
        let message = format!("call to {address} failed before it was processed: {reason}; {stuck}");
        let status = why::status(Code::Unavailable, message, Some(address), What::NotProcessed, number);
        return Err(Failure::Unprocessed(status));
    }
}

/// An endpoint for the next attempt.
async fn choose(call: &Call<'_>) -> Result<Arc<Endpoint>, Status> {
    let tried = call.trail.tried();
    // Whoever waits for a place was here before.
    if !call.pool.room.is_awaited() {
        let picked = match call.pool.asks() {
            false => call.pool.pick(call.head, &tried),
            // Seldom: other calls do not carry the room for it.
            true => Box::pin(call.pool.pick_or_ask(call.head, &tried)).await,
        };
        if let Ok(endpoint) = picked {
            return Ok(endpoint);
        }
    }
    Box::pin(wait_for_endpoint(call, &tried)).await
}

/// Waits for an endpoint while there is hope: for one that is connected, or in the queue for one that has a place.
async fn wait_for_endpoint(call: &Call<'_>, tried: &[u64]) -> Result<Arc<Endpoint>, Status> {
    let pool = call.pool;
    let mut pickers = pool.pickers();
    let patience_over = Instant::now() + PATIENCE;
    let mut place = None;
    if pool.room.is_awaited() {
        place = Some(queue(call)?);
    }
    loop {
        pickers.mark_unchanged();
        if let Some((place, is_behind)) = &mut place {
            let mut turn = pin!(place.turn());
            // Enlisted before looking, so that a place that becomes free in between is not missed.
            turn.as_mut().enable();
            // A place that is free already when it comes is for those before it.
            let picked = if std::mem::take(is_behind) { Err(NoPick::Full) } else { pool.pick(call.head, tried) };
            match picked {
                Ok(endpoint) => return Ok(endpoint),
                Err(NoPick::Full) => {
                    let _ = timeout(PATIENCE, async {
                        tokio::select! {
                            () = turn => {}
                            _ = pickers.changed() => {}
                        }
                    })
                    .await;
                    continue;
                }
                // What was full is gone.
                Err(NoPick::Nobody) => {}
            }
        }
        place = None;
        match pool.pick(call.head, tried) {
            Ok(endpoint) => return Ok(endpoint),
            Err(NoPick::Full) => {
                place = Some(queue(call)?);
                continue;
            }
            Err(NoPick::Nobody) => {}
        }
        let first_list_in = call.settings.first_list.saturating_sub(Duration::from_micros(pool.now_us()));
        let hope = match pool.has_list() {
            true => pool.may_get_ready() && !(Instant::now() >= patience_over && pool.is_unreachable()),
            false => !first_list_in.is_zero() || call.settings.has_fallback,
        };
        if !hope {
            return Err(why::status(Code::Unavailable, pool.explain_none(), None, What::NoEndpoint, call.trail.sent()));
        }
        if pool.has_list() || call.settings.has_fallback {
            let look_at = patience_over.max(Instant::now() + PATIENCE / 4);
            let _ = timeout_at(look_at, pickers.changed()).await;
        } else {
            let _ = timeout(first_list_in, pickers.changed()).await;
        }
    }
}

fn queue<'a>(call: &Call<'a>) -> Result<(Waiting<'a>, bool), Status> {
    call.trail.queues();
    call.pool.room.queue().map_err(|waiting| {
        let message = format!("{waiting} calls wait for a place already: {}", call.pool.explain_none());
        why::status(Code::ResourceExhausted, message, None, What::EndpointsFull, call.trail.sent())
    })
}

/// One attempt, up to the head of its response.
async fn once(call: &Call<'_>, mut attempt: Attempt, previous: u32) -> Result<Answer, Verdict> {
    let replay = call.replay;
    let seat = match attempt.endpoint.slot().await {
        Ok(seat) => seat,
        Err(reason) => {
            attempt.leave();
            return Err(Verdict::NotProcessed(reason));
        }
    };
    let sent = seat.slot().send(request_head(call, &attempt, previous));
    attempt.take_seat(seat);
    let (response, stream) = match sent {
        Ok(sent) => sent,
        Err(error) => {
            attempt.leave();
            return Err(Verdict::NotProcessed(format!("not sent: {}", crate::error::flatten(&error))));
        }
    };
    attempt.sent();
    let mut pump = replay.pump(stream);
    let reader = pump.attempt();
    // Most requests are one message, and gone at the first try; only the others need a task of their own.
    if poll_fn(|cx| Poll::Ready(Pin::new(&mut pump).poll(cx))).await.is_pending() {
        attempt.pump_on(pump);
    } else {
        drop(pump);
    }
    match response.await {
        Ok(response) => {
            attempt.answered();
            if let Err(status) = response::check(&response, &attempt.endpoint.address, attempt.number) {
                attempt.end(Class::Endpoint);
                return Err(Verdict::Failed(status));
            }
            if class_of_headers(response.headers()).is_none_or(|class| class == Class::Ok) {
                replay.settle(reader, attempt.is_request_sent());
            }
            Ok(Answer { attempt, response, not_retried: None })
        }
        Err(error) => {
            let goodbye = attempt.goodbye().cloned();
            let verdict = of_error(&error, goodbye.as_ref(), &attempt.endpoint.address, attempt.number, false);
            let moves_or_is_ours = matches!(verdict, Verdict::Refused(_) | Verdict::NotProcessed(_))
                || (error.is_reset() && !error.is_remote());
            if let Some(status) = replay.failure().filter(|_| moves_or_is_ours) {
                // The request broke off on the application's side: nobody here is to blame, and nobody else is to get half of it.
                attempt.end(Class::Cancelled);
                return Err(Verdict::Final(status));
            }
            match &verdict {
                Verdict::Refused(_) => attempt.refused(),
                Verdict::NotProcessed(_) => attempt.leave(),
                Verdict::Failed(status) | Verdict::Final(status) => attempt.end(class_of(status.code())),
            }
            Err(verdict)
        }
    }
}

fn request_head(call: &Call<'_>, attempt: &Attempt, previous: u32) -> Request<()> {
    let (head, limits) = (call.head, call.limits);
    let mut uri = uri::Parts::default();
    uri.scheme = Some(attempt.endpoint.scheme());
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
    headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(SDK));
    if previous > 0 {
        headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(previous));
    }
    if attempt.number > 1 || limits.differs_from_header() {
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
