//! One `lookaside.v1.Backend/Probe`: asks an endpoint how many requests it has in flight, on a connection that is there and has
//! room to spare. It is no call: it counts for nothing in outcomes and in what is judged by them. When to ask is not for this
//! to say.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header, uri};
use lookaside_proto::v1::ProbeResponse;
use prost::Message as _;
use tonic::Code;

use crate::{
    dial::SDK,
    endpoint::{Endpoint, Seat},
    outcome::code_of_headers,
    response::code_of_status,
};

const PATH: uri::PathAndQuery = uri::PathAndQuery::from_static("/lookaside.v1.Backend/Probe");
/// A message without a field: no flag, no length.
const EMPTY_MESSAGE: &[u8] = &[0; PREFIX_BYTES];
const PREFIX_BYTES: usize = 5;
/// An answer has 19 bytes; a newer contract may say more.
const ANSWER_BYTES_MAX: usize = 256;
/// Nobody waits for so long, but a probe that is given up is a stream reset, and of these a peer bears only so many.
const LIFE: Duration = Duration::from_secs(2);
/// Probes under way at one endpoint.
const PROBES_MAX: u32 = 4;
/// An endpoint that does not know probes, or answers with nonsense, is not asked again before this, microseconds.
const MUTE_US: u64 = 60_000_000;
/// One that has no time for a probe is left alone for so long, microseconds, and for twice as long each time again: up to what
/// an overload lasts that is over soon.
const BUSY_US_MIN: u64 = 1_000_000;
const BUSY_US_MAX: u64 = 8_000_000;

/// How one endpoint takes probes.
#[derive(Debug, Default)]
pub(crate) struct Probed {
    under_way: AtomicU32,
    /// Since when one has been under way at any time and none was answered, microseconds.
    since_us: AtomicU64,
    /// It does not know probes: not asked before this. 0 while it does.
    mute_until_us: AtomicU64,
    /// It had no time for one: not asked before this.
    busy_until_us: AtomicU64,
    /// How often in a row that was so.
    busy_times: AtomicU32,
}

impl Probed {
    /// Whether it does not know probes, as far as is known.
    pub(crate) fn is_mute(&self, now_us: u64) -> bool {
        now_us < self.mute_until_us.load(Relaxed)
    }

    /// It does not know probes.
    fn mute(&self, now_us: u64) {
        self.mute_until_us.store(now_us.saturating_add(MUTE_US), Relaxed);
    }

    fn is_busy(&self, now_us: u64) -> bool {
        now_us < self.busy_until_us.load(Relaxed)
    }

    /// It had no time for a probe. Several that were under way together count as one.
    fn busy(&self, now_us: u64) {
        if !self.is_busy(now_us) {
            let times = self.busy_times.fetch_add(1, Relaxed);
            let pause_us = (BUSY_US_MIN << times.min(16)).min(BUSY_US_MAX);
            self.busy_until_us.store(now_us.saturating_add(pause_us), Relaxed);
        }
    }

    /// This came of a probe.
    pub(crate) fn learn(&self, answer: Answer, now_us: u64) {
        match answer {
            Answer::Rif(_) | Answer::Unwilling => {
                self.since_us.store(now_us, Relaxed);
                self.forget();
            }
            Answer::Busy => self.busy(now_us),
            Answer::Mute => self.mute(now_us),
        }
    }

    /// The response to a call told of load: it has time again. The shortest pause stays: one that answers calls and sheds probes
    /// would be asked for every call.
    pub(crate) fn told(&self, now_us: u64) {
        if self.busy_times.load(Relaxed) > 0 {
            self.busy_times.store(0, Relaxed);
            self.busy_until_us.fetch_min(now_us.saturating_add(BUSY_US_MIN), Relaxed);
        }
    }

    /// It answers, or is somebody else now.
    pub(crate) fn forget(&self) {
        self.mute_until_us.store(0, Relaxed);
        self.busy_until_us.store(0, Relaxed);
        self.busy_times.store(0, Relaxed);
    }

    /// Counts a probe, unless there are too many, or one that is late: none was answered for longer than calls wait for that.
    fn begin(&self, now_us: u64, patience_us: u64) -> bool {
        let before = self.under_way.load(Relaxed);
        let is_late = before > 0 && now_us.saturating_sub(self.since_us.load(Relaxed)) > patience_us;
        if before >= PROBES_MAX || is_late || self.is_mute(now_us) || self.is_busy(now_us) {
            return false;
        }
        if self.under_way.fetch_add(1, Relaxed) == 0 {
            self.since_us.store(now_us, Relaxed);
        }
        true
    }

    fn end(&self) {
        self.under_way.fetch_sub(1, Relaxed);
    }
}

/// Leave to send one probe; dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Probe {
    endpoint: Arc<Endpoint>,
    seat: Seat,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.endpoint.probed.end();
    }
}

/// What came of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// So many requests are in flight there.
    Rif(u32),
    /// It answers, and should get no call: it leaves, or has too much to do.
    Unwilling,
    /// It has no time to answer, or the way to it is broken: nothing is known of it now, and soon it may be asked again.
    Busy,
    /// It does not know probes, or answers with nonsense.
    Mute,
}

impl Answer {
    /// What this code in place of an answer means.
    fn of_code(code: Code) -> Self {
        match code {
            Code::Unimplemented | Code::NotFound | Code::PermissionDenied | Code::Unauthenticated => Self::Mute,
            _ => Self::Busy,
        }
    }
}

impl Probe {
    /// Leave to ask this endpoint, if it can be asked now, where calls wait so long for answers.
    pub(crate) fn of(endpoint: &Arc<Endpoint>, now_us: u64, patience_us: u64) -> Option<Self> {
        let seat = endpoint.spare_seat()?;
        endpoint.probed.begin(now_us, patience_us).then(|| Self { endpoint: endpoint.clone(), seat })
    }

    /// Whom it asks.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Sends it, and waits for what is answered.
    pub(crate) async fn ask(self) -> Answer {
        match tokio::time::timeout(LIFE, self.exchange()).await {
            Err(_) => Answer::Busy,
            Ok(Err(otherwise)) => otherwise,
            Ok(Ok(answer)) if answer.draining || answer.overloaded => Answer::Unwilling,
            Ok(Ok(answer)) => Answer::Rif(answer.in_flight),
        }
    }

    /// The answer, or what it means that there is none.
    async fn exchange(&self) -> Result<ProbeResponse, Answer> {
        // What breaks off says nothing of whether probes are known.
        let broke_off = |_: h2::Error| Answer::Busy;
        let (response, mut request) = self.seat.slot().send(self.head()).map_err(broke_off)?;
        request.send_data(Bytes::from_static(EMPTY_MESSAGE), true).map_err(broke_off)?;
        let response = response.await.map_err(broke_off)?;
        if let Some(code) = code_of_headers(response.headers()) {
            // Nothing follows such a head: it is an error.
            return Err(Answer::of_code(code));
        }
        if response.status() != StatusCode::OK {
            return Err(Answer::of_code(code_of_status(response.status())));
        }
        let mut body = response.into_body();
        let mut answer = Vec::new();
        while let Some(bytes) = body.data().await {
            let bytes = bytes.map_err(broke_off)?;
            let _ = body.flow_control().release_capacity(bytes.len());
            if answer.len() + bytes.len() > ANSWER_BYTES_MAX {
                return Err(Answer::Mute);
            }
            answer.extend_from_slice(&bytes);
        }
        match body.trailers().await.map_err(broke_off)?.as_ref().and_then(code_of_headers) {
            Some(Code::Ok) => read(&answer).ok_or(Answer::Mute),
            Some(code) => Err(Answer::of_code(code)),
            None => Err(Answer::Mute),
        }
    }

    fn head(&self) -> Request<()> {
        let mut uri = uri::Parts::default();
        uri.scheme = Some(self.endpoint.scheme());
        uri.authority = Some(self.endpoint.authority.clone());
        uri.path_and_query = Some(PATH);
        let mut head = Request::new(());
        *head.method_mut() = Method::POST;
        *head.uri_mut() = uri::Uri::from_parts(uri).unwrap_or_default();
        let headers = head.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(SDK));
        head
    }
}

/// The one message in these bytes.
fn read(answer: &[u8]) -> Option<ProbeResponse> {
    let (prefix, message) = answer.split_at_checked(PREFIX_BYTES)?;
    // The length in the prefix is that of all the rest.
    let length = u32::try_from(message.len()).ok()?.to_be_bytes();
    let is_one = prefix.split_first() == Some((&0, &length));
    ProbeResponse::decode(message).ok().filter(|_| is_one)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE_US: u64 = 3_000;

    #[test]
    fn an_endpoint_that_owes_an_answer_is_not_asked_for_more() {
        let probed = Probed::default();
        assert!((0..PROBES_MAX).all(|n| probed.begin(u64::from(n), PATIENCE_US)), "several at the same time");
        assert!(!probed.begin(10, PATIENCE_US));
        (1..PROBES_MAX).for_each(|_| probed.end());
        assert!(!probed.begin(PATIENCE_US + 1, PATIENCE_US), "the first is late");
        probed.end();
        assert!(probed.begin(PATIENCE_US + 1, PATIENCE_US));
    }

    #[test]
    fn one_that_answers_far_away_is_not_late_while_calls_wait_for_it() {
        let probed = Probed::default();
        assert!(probed.begin(1, 10_000));
        assert!(probed.begin(5_000, 10_000), "where calls wait for ten milliseconds, one of five is not late");
        probed.learn(Answer::Rif(1), 9_000);
        probed.end();
        assert!(probed.begin(12_000, 10_000), "one was answered since");
        assert!(!probed.begin(19_001, 10_000), "nobody was for long");
    }

    #[test]
    fn a_mute_endpoint_is_asked_again_after_a_while_or_as_another_process() {
        let probed = Probed::default();
        probed.mute(5);
        assert!(!probed.begin(MUTE_US, PATIENCE_US) && probed.is_mute(MUTE_US + 4));
        assert!(probed.begin(MUTE_US + 5, PATIENCE_US));
        probed.mute(MUTE_US + 5);
        probed.forget();
        assert!(probed.begin(MUTE_US + 6, PATIENCE_US));
    }

    #[test]
    fn one_that_sheds_a_probe_is_asked_again_soon_and_later_each_time() {
        let probed = Probed::default();
        let mut now_us = 7;
        for pause_s in [1, 2, 4, 8, 8, 8] {
            // Three that were under way together.
            (0..3).for_each(|n| probed.learn(Answer::of_code(Code::Unavailable), now_us + n));
            assert!(!probed.is_mute(now_us), "it may well know probes");
            now_us += pause_s * 1_000_000;
            assert!(!probed.begin(now_us - 1, PATIENCE_US) && probed.begin(now_us, PATIENCE_US), "{pause_s}");
            probed.end();
        }
        probed.learn(Answer::Rif(3), now_us);
        probed.learn(Answer::of_code(Code::ResourceExhausted), now_us);
        assert!(probed.begin(now_us + BUSY_US_MIN, PATIENCE_US), "what was answered ends the row");
        probed.learn(Answer::of_code(Code::Unimplemented), now_us);
        assert!(probed.is_mute(now_us + MUTE_US - 1));
    }

    #[test]
    fn a_response_that_tells_of_load_ends_the_long_pauses_of_one_that_shed_probes() {
        let probed = Probed::default();
        [0, BUSY_US_MIN, 3 * BUSY_US_MIN].iter().for_each(|now_us| probed.learn(Answer::Busy, *now_us));
        let told_us = 4 * BUSY_US_MIN;
        probed.told(told_us);
        probed.told(told_us + 5);
        assert!(!probed.begin(told_us + BUSY_US_MIN - 1, PATIENCE_US), "not for every call");
        assert!(probed.begin(told_us + BUSY_US_MIN, PATIENCE_US), "not after seven seconds");
        probed.learn(Answer::Busy, told_us + BUSY_US_MIN);
        assert!(probed.is_busy(told_us + 2 * BUSY_US_MIN - 1) && !probed.is_busy(told_us + 2 * BUSY_US_MIN));
        probed.mute(told_us);
        probed.told(told_us);
        assert!(probed.is_mute(told_us), "probes it does not know");
    }
}
