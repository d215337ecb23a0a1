//! One report stream to one balancer, for as long as the backend lives: register, report, listen, reconnect.

use std::sync::Arc;
use std::time::Duration;

use lookaside_proto::v1::{LoadReport, ReportResponse, reporter_client::ReporterClient};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use super::shared::{Phase, Shared};
use crate::backoff::Backoff;
use crate::error::flatten;

/// Time between reports until a balancer names another.
const PERIOD: Duration = Duration::from_secs(1);
const PERIOD_MIN: Duration = Duration::from_millis(50);
const PERIOD_MAX: Duration = Duration::from_secs(60);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A balancer that takes a connection but does not answer the stream is as good as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long a balancer gets to end the stream of a backend that has left.
const FAREWELL: Duration = Duration::from_secs(1);

/// Reports are cumulative: when this many wait to be sent, the next one is left out and the one after says it all.
const WAITING_MAX: usize = 4;

/// Runs until the backend has left.
pub(crate) async fn keep_reporting(shared: Arc<Shared>, index: usize, balancer: String) {
    let endpoint = match Endpoint::from_shared(format!("http://{balancer}")) {
        Ok(endpoint) => endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true),
        // Checked when the reporter was built; a name that passes there and not here is reported and left alone.
        Err(error) => {
            tracing::error!(balancer, "cannot report: {error}");
            return;
        }
    };
    let mut link = Exchange {
        shared: &shared,
        index,
        balancer: &balancer,
        sequence: 0,
        told_of_drain: false,
        refused: String::new(),
    };
    let mut phase = shared.phase.subscribe();
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX, rand::random());
    // Said once per change: a balancer may be away for days.
    let mut said = String::new();
    loop {
        let end = link.run(&endpoint, &mut phase).await;
        let reached = shared.links.borrow().get(index).is_some_and(|link| link.connected);
        shared.update_link(index, |link| (link.connected, link.accepted) = (false, false));
        let why = match end {
            End::Left => return,
            End::Broken { why } => why,
        };
        if reached {
            backoff.reset();
        }
        if reached || why != said {
            tracing::warn!(balancer, service = shared.registration.service, "not reporting: {why}; trying again");
            said = why;
        }
        tokio::select! {
            () = sleep(backoff.next()) => {}
            // A drain is not kept waiting by a back-off.
            _ = phase.changed() => {
                if *phase.borrow() == Phase::Left {
                    return;
                }
            }
        }
    }
}

enum End {
    Left,
    Broken { why: String },
}

impl End {
    fn broken(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Broken { why: flatten(error) }
    }
}

struct Exchange<'a> {
    shared: &'a Shared,
    index: usize,
    balancer: &'a str,
    // Grows over reconnects: a balancer ignores what it has seen.
    sequence: u64,
    // The balancer was told of the drain on this stream: what it says of lists from now on takes that into account.
    told_of_drain: bool,
    // The last refusal, so that each is logged once.
    refused: String,
}

impl Exchange<'_> {
    async fn run(&mut self, endpoint: &Endpoint, phase: &mut watch::Receiver<Phase>) -> End {
        let channel = match endpoint.connect().await {
            Ok(channel) => channel,
            Err(error) => return End::broken(&error),
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
            Ok(Err(status)) => return End::broken(&status),
            Err(_) => return End::Broken { why: format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()) },
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
                    Ok(None) => return End::Broken { why: "the balancer ended the stream".to_owned() },
                    Err(status) => return End::broken(&status),
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
        let first = !self.shared.links.borrow().get(self.index).is_some_and(|link| link.connected);
        self.shared.update_link(self.index, |link| {
            link.connected = true;
            link.reached = true;
            link.accepted = response.accepted;
            // Whoever holds no registration of ours names us in no list.
            link.unlisted = told_of_drain && (!response.listed || !response.accepted);
        });
        if first {
            tracing::info!(balancer = self.balancer, service = self.shared.registration.service, "reporting");
        }
        if response.refused_reason != self.refused {
            self.refused.clone_from(&response.refused_reason);
            if !self.refused.is_empty() {
                tracing::warn!(
                    balancer = self.balancer,
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
fn jittered(period: Duration) -> Duration {
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
