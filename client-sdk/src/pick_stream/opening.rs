//! Opens a pick stream to whichever balancer answers first. The one whose turn it is has a head start; one that takes a
//! connection and stays silent does not keep a client without a list waiting while another could answer. Nor does such a client
//! leave it before it must: it may have been given a turn.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use lookaside_proto::v1::{HeldList, Hello, PickResponse, Subscribe, balancer_client::BalancerClient, pick_request};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport;

use super::{
    ENDED, Identity,
    plan::{Plan, Refusal},
    requests::{self, Requests},
};
use crate::{Tls, backoff::Pushback, dial, error::cut, pool::Pool, resolve::Place};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A balancer that has accepted the connection must answer the stream within this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A list beyond this is refused by the transport, bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Balancers asked at once.
const ATTEMPTS_MAX: usize = 4;
/// How long a balancer is asked alone: by a client that calls wait for, and by one that holds a list and is in no hurry.
const HEAD_START: Duration = Duration::from_millis(300);
const HEAD_START_UNHURRIED: Duration = Duration::from_secs(2);
/// The same for one that has answered the stream and says nothing on it: perhaps it knows nothing yet, more likely many
/// clients came at once.
const HEAD_START_SILENT: Duration = Duration::from_secs(1);
/// It is left after this. Longer than balancers let anybody wait for a turn, 3 s: who leaves before gives the turn away and
/// asks for another.
const SILENCE_FIRST_MAX: Duration = Duration::from_secs(4);
/// Where nobody is due, things are looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A pick stream that a balancer has answered.
pub(super) struct Opened {
    pub(super) place: Place,
    pub(super) requests: Requests,
    pub(super) stream: tonic::Streaming<PickResponse>,
    /// Its first word, where that was waited for.
    pub(super) first: Option<PickResponse>,
}

/// Tries until one answers. `waiting` runs whenever nobody did for a while.
pub(super) async fn open(pool: &Arc<Pool>, identity: &Identity, plan: &mut Plan, waiting: impl Fn()) -> Opened {
    let mut attempts: FuturesUnordered<BoxFuture<'_, (Place, Result<Opened, Refusal>)>> = FuturesUnordered::new();
    let mut next_attempt = Instant::now();
    loop {
        let now = Instant::now();
        let may_ask = attempts.is_empty() || (now >= next_attempt && attempts.len() < ATTEMPTS_MAX);
        if may_ask && let Some(place) = plan.next(now) {
            attempts.push(Box::pin(async move { (place.clone(), attempt(pool, identity, place).await) }));
            next_attempt = now + if pool.has_list() { HEAD_START_UNHURRIED } else { HEAD_START };
            continue;
        }
        if attempts.is_empty() {
            pool.use_cached();
            // The balancers may be elsewhere by now.
            plan.resolve().await;
            if let Some(trouble) = plan.trouble() {
                pool.change_view(|view| view.disconnected(trouble));
            }
        }
        let mut wake = plan.due(now).unwrap_or(now + LOOK_AGAIN);
        if attempts.len() >= ATTEMPTS_MAX {
            wake = now + LOOK_AGAIN;
        } else if !attempts.is_empty() {
            wake = wake.max(next_attempt);
        }
        tokio::select! {
            Some((place, end)) = attempts.next(), if !attempts.is_empty() => {
                let now = Instant::now();
                match end {
                    Ok(opened) if opened.first.is_none() && !pool.has_list() && plan.knows_others(&place) => {
                        next_attempt = now + HEAD_START_SILENT;
                        pool.change_view(|view| view.connected(place.address.to_string()));
                        attempts.push(Box::pin(async move { (place, hear(opened).await) }));
                    }
                    Ok(opened) => {
                        plan.reached(&place, now);
                        return opened;
                    }
                    Err(refusal) => {
                        let (balancer, reason) = (place.address, &refusal.reason);
                        tracing::debug!(service = pool.service, %balancer, reason, "no pick stream");
                        pool.change_view(|view| view.lost(&balancer.to_string(), reason));
                        plan.failed(&place, &refusal, now);
                        // The next one is due at once.
                        next_attempt = now;
                    }
                }
            }
            () = sleep_until(wake) => {}
        }
        waiting();
    }
}

async fn attempt(pool: &Arc<Pool>, identity: &Identity, place: Place) -> Result<Opened, Refusal> {
    let (channel, trouble) = connect(&place, identity.tls.as_ref()).await.map_err(Refusal::unreachable)?;
    let (requests, outgoing) = requests::queue(pool);
    let greeting = [
        pick_request::Kind::Hello(hello(pool, identity)),
        pick_request::Kind::Subscribe(Subscribe { service: pool.service.clone() }),
    ];
    for kind in greeting {
        if !requests.say(kind) {
            return Err(Refusal::unreachable("the stream takes no requests".to_owned()));
        }
    }
    let mut client = BalancerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    match timeout(ANSWER_TIMEOUT, client.pick(outgoing)).await {
        Ok(Ok(response)) => Ok(Opened { place, requests, stream: response.into_inner(), first: None }),
        Ok(Err(status)) => Err(match trouble.said() {
            Some(said) => Refusal::unreachable(said.to_owned()),
            None => refusal(&status),
        }),
        Err(_) => Err(Refusal::unreachable(format!("no answer within {ANSWER_TIMEOUT:?}"))),
    }
}

/// Waits for the first word.
async fn hear(mut opened: Opened) -> Result<Opened, Refusal> {
    match timeout(SILENCE_FIRST_MAX, opened.stream.message()).await {
        Ok(Ok(Some(first))) => Ok(Opened { first: Some(first), ..opened }),
        Ok(Ok(None)) => Err(Refusal::of_stream(ENDED)),
        Ok(Err(status)) => Err(refusal(&status)),
        Err(_) => Err(Refusal::of_stream(format!("no word for {SILENCE_FIRST_MAX:?}"))),
    }
}

/// Connects to the place; the peer is addressed by the name that it was configured by.
async fn connect(place: &Place, tls: Option<&Tls>) -> Result<(transport::Channel, dial::Trouble), String> {
    let connect = dial::balancer(place, tls, |endpoint| {
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL)
            .keep_alive_while_idle(true)
    });
    match timeout(CONNECT_TIMEOUT, connect).await {
        Ok(connected) => connected,
        Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
    }
}

fn hello(pool: &Pool, identity: &Identity) -> Hello {
    let held = pool.with_view(|view| {
        view.balancers_list().map(|list| HeldList {
            service: pool.service.clone(),
            version: list.version.map(|v| lookaside_proto::v1::Version { epoch: v.epoch, sequence: v.sequence }),
            digest: list.digest,
            endpoints: list.offered().map(|e| e.address.clone()).collect(),
        })
    });
    Hello {
        client_id: pool.client_id.clone(),
        locality: identity.locality.clone(),
        labels: identity.labels.clone(),
        sdk: dial::SDK.to_owned(),
        held: held.into_iter().collect(),
    }
}

/// What a balancer that said no has said.
pub(super) fn refusal(status: &tonic::Status) -> Refusal {
    let reason = match status.message() {
        "" => format!("{:?}", status.code()),
        message => cut(format!("{:?}: {message}", status.code())),
    };
    Refusal { reason, unreachable: false, pushback: Pushback::said_in(status.metadata().as_ref()).pause() }
}
