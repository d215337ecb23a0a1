//! One report stream to one balancer, for as long as the backend lives: register, report, listen, reconnect.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lookaside_proto::v1::{LoadReport, ReportResponse, reporter_client::ReporterClient};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::shared::{Phase, Shared};
use crate::backoff::{self, Backoff, Pushback, RECONNECT_FIRST, RECONNECT_LONGEST};
use crate::error::flatten;
use crate::picker::Rng;
use crate::resolve::Place;
use crate::{Tls, dial};

/// Time between reports until a balancer names another.
const PERIOD: Duration = Duration::from_secs(1);
const PERIOD_MIN: Duration = Duration::from_millis(50);
const PERIOD_MAX: Duration = Duration::from_secs(60);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A balancer that takes a connection but does not answer the stream is as good as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a balancer gets to end the stream of a backend that has left.
const FAREWELL: Duration = Duration::from_secs(1);

/// Reports are cumulative: when this many wait to be sent, the next one is left out and the one after says it all.
const WAITING_MAX: usize = 4;

/// Runs until the backend has left.
pub(super) async fn keep_reporting(shared: Arc<Shared>, place: Place) {
    let balancer = place.address;
    let mut link =
        Exchange { shared: &shared, balancer, sequence: shared.age_ms(), told_of_drain: false, refused: String::new() };
    let mut phase = shared.phase.subscribe();
    let mut rng = Rng::from_seed(rand::random());
    let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_LONGEST, rng.next_u64());
    // Said once per change: a balancer may be away for days.
    let mut said = String::new();
    loop {
        let began = Instant::now();
        let end = link.run(&place, &mut phase).await;
        let before = shared.link(&balancer);
        shared.update_link(&balancer, |link| (link.connected, link.accepted, link.leaving) = (false, false, false));
        let (why, pushback) = match end {
            End::Left => return,
            End::Broken { why, pushback } => (why, pushback),
        };
        if before.connected && began.elapsed() >= RECONNECT_LONGEST {
            backoff.reset();
        }
        if before.leaving {
            tracing::info!(%balancer, service = shared.registration.service, "the balancer leaves; reporting to the others");
        } else if before.connected || why != said {
            tracing::warn!(%balancer, service = shared.registration.service, "not reporting: {why}; trying again");
        }
        said = why;
        let asked_for = pushback.map(|asked_for| backoff::spread(asked_for, &mut rng));
        let pause = backoff.next().max(asked_for.unwrap_or_default());
        tokio::select! {
            () = sleep(pause) => {}
            // A drain is not kept waiting by a back-off.
            _ = phase.changed() => {
                if *phase.borrow() == Phase::Left {
                    return;
                }
            }
        }
    }
}

/// Connects to the place; the peer is addressed by the name that it was configured by.
async fn connect(place: &Place, tls: Option<&Tls>) -> Result<(Channel, dial::Trouble), String> {
    let connect = dial::balancer(place, tls, |endpoint| {
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
    });
    connect.await
}

enum End {
    Left,
    Broken { why: String, pushback: Option<Duration> },
}

impl End {
    fn broken(why: impl Into<String>) -> Self {
        Self::Broken { why: why.into(), pushback: None }
    }

    fn said(status: &Status) -> Self {
        Self::Broken { why: flatten(status), pushback: Pushback::said_in(status.metadata().as_ref()).pause() }
    }
}

struct Exchange<'a> {
    shared: &'a Shared,
    balancer: SocketAddr,
    // Grows over reconnects, and over a balancer that was left and came back: it ignores what it has seen.
    sequence: u64,
    // The balancer was told of the drain on this stream: what it says of lists from now on takes that into account.
    told_of_drain: bool,
    // The last refusal, so that each is logged once.
    refused: String,
}

impl Exchange<'_> {
    async fn run(&mut self, place: &Place, phase: &mut watch::Receiver<Phase>) -> End {
        let (channel, trouble) = match connect(place, self.shared.tls.as_ref()).await {
            Ok(connected) => connected,
            Err(why) => return End::broken(why),
        };
        if *phase.borrow_and_update() == Phase::Left {
            return End::Left;
        }
        self.told_of_drain = false;
        let (reports, waiting) = mpsc::channel(WAITING_MAX);
        self.send(&reports, true);
        let mut client = ReporterClient::new(channel);
        let answer = timeout(ANSWER_TIMEOUT, client.report(ReceiverStream::new(waiting))).await;
        let mut responses = match answer {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return trouble.said().map_or_else(|| End::said(&status), End::broken),
            Err(_) => return End::broken(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
        };
        let mut period = PERIOD;
        let mut due = Instant::now() + jittered(period);
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        let wanted = self.take(response, &reports);
                        if wanted != period {
                            period = wanted;
                            due = Instant::now() + jittered(period);
                        }
                    }
                    Ok(None) => return End::broken("the balancer ended the stream"),
                    Err(status) => return End::said(&status),
                },
                () = sleep_until(due) => {
                    self.send(&reports, false);
                    due = Instant::now() + jittered(period);
                }
                _ = phase.changed() => {
                    let now = *phase.borrow_and_update();
                    match now {
                        Phase::Serving => {}
                        Phase::Draining => self.send(&reports, false),
                        Phase::Left => {
                            drop(reports);
                            // Whether it ends the stream in time or not, the balancer has had its chance.
                            let _ = timeout(FAREWELL, ended(&mut responses)).await;
                            return End::Left;
                        }
                    }
                }
            }
        }
    }

    fn send(&mut self, reports: &mpsc::Sender<LoadReport>, first: bool) {
        self.sequence += 1;
        let report = self.shared.report(self.sequence, first);
        let draining = report.draining;
        // Full: the balancer does not read; the next report says it all. Closed: the stream tells.
        if reports.try_send(report).is_ok() {
            self.told_of_drain |= draining;
        }
    }

    /// Takes an answer; the period the balancer wants.
    fn take(&mut self, response: ReportResponse, reports: &mpsc::Sender<LoadReport>) -> Duration {
        let told_of_drain = self.told_of_drain;
        let first = !self.shared.link(&self.balancer).connected;
        self.shared.update_link(&self.balancer, |link| {
            link.connected = true;
            link.reached = true;
            link.accepted = response.accepted;
            link.leaving = response.draining;
            // Whoever holds no registration of ours names us in no list.
            link.unlisted = told_of_drain && (!response.listed || !response.accepted);
        });
        if first {
            tracing::info!(balancer = %self.balancer, service = self.shared.registration.service, "reporting");
        }
        if response.refused_reason != self.refused {
            self.refused.clone_from(&response.refused_reason);
            if !self.refused.is_empty() {
                tracing::warn!(
                    balancer = %self.balancer,
                    reason = self.refused,
                    "the balancer refuses reports: {}",
                    response.refused_message
                );
            }
        }
        if self.shared.learn(response.overrides) {
            self.send(reports, false);
        }
        match response.report_period_ms {
            0 => PERIOD,
            wanted_ms => Duration::from_millis(wanted_ms.into()).clamp(PERIOD_MIN, PERIOD_MAX),
        }
    }
}

async fn ended(responses: &mut Streaming<ReportResponse>) {
    while let Ok(Some(_)) = responses.message().await {}
}

// A tenth either way, so that backends started together do not report together.
pub(super) fn jittered(period: Duration) -> Duration {
    period.mul_f64(rand::random_range(0.9..1.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_period_varies_by_a_tenth() {
        for _ in 0..100 {
            let period = jittered(Duration::from_secs(10));
            assert!((Duration::from_secs(9)..=Duration::from_secs(11)).contains(&period), "{period:?}");
        }
    }
}
