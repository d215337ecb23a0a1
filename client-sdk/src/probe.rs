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
use http::{HeaderValue, Method, Request, header, uri};
use lookaside_proto::v1::ProbeResponse;
use prost::Message as _;
use tonic::Code;

use crate::{
    dial::SDK,
    endpoint::{Endpoint, Seat},
    outcome::code_of_headers,
    picker::PATIENCE_US_MAX,
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
/// An endpoint that has not answered a probe, or with nonsense, is not asked again before this, microseconds.
const MUTE_US: u64 = 60_000_000;

/// How one endpoint takes probes.
#[derive(Debug, Default)]
pub(crate) struct Probed {
    under_way: AtomicU32,
    /// Since when there has been one under way at any time, microseconds.
    since_us: AtomicU64,
    /// It does not answer: not asked before this. 0 while it does.
    mute_until_us: AtomicU64,
}

impl Probed {
    /// Whether it does not answer probes, as far as is known.
    pub(crate) fn is_mute(&self, now_us: u64) -> bool {
        now_us < self.mute_until_us.load(Relaxed)
    }

    /// It does not answer.
    pub(crate) fn mute(&self, now_us: u64) {
        self.mute_until_us.store(now_us.saturating_add(MUTE_US), Relaxed);
    }

    /// It is somebody else now.
    pub(crate) fn forget(&self) {
        self.mute_until_us.store(0, Relaxed);
    }

    /// Counts a probe, unless there are too many, or one that is late.
    fn begin(&self, now_us: u64) -> bool {
        let before = self.under_way.load(Relaxed);
        let is_late = before > 0 && now_us.saturating_sub(self.since_us.load(Relaxed)) > PATIENCE_US_MAX;
        if before >= PROBES_MAX || is_late || self.is_mute(now_us) {
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
    /// It does not answer.
    Mute,
}

impl Probe {
    /// Leave to ask this endpoint, if it can be asked now.
    pub(crate) fn of(endpoint: &Arc<Endpoint>, now_us: u64) -> Option<Self> {
        let seat = endpoint.spare_seat()?;
        endpoint.probed.begin(now_us).then(|| Self { endpoint: endpoint.clone(), seat })
    }

    /// Sends it, and waits for what is answered.
    pub(crate) async fn ask(self) -> Answer {
        match tokio::time::timeout(LIFE, self.exchange()).await.ok().flatten() {
            None => Answer::Mute,
            Some(answer) if answer.draining || answer.overloaded => Answer::Unwilling,
            Some(answer) => Answer::Rif(answer.in_flight),
        }
    }

    async fn exchange(&self) -> Option<ProbeResponse> {
        let (response, mut request) = self.seat.slot().send(self.head()).ok()?;
        request.send_data(Bytes::from_static(EMPTY_MESSAGE), true).ok()?;
        let response = response.await.ok()?;
        if code_of_headers(response.headers()).is_some() {
            // Nothing follows such a head: it is an error.
            return None;
        }
        let mut body = response.into_body();
        let mut answer = Vec::new();
        while let Some(bytes) = body.data().await {
            let bytes = bytes.ok()?;
            let _ = body.flow_control().release_capacity(bytes.len());
            if answer.len() + bytes.len() > ANSWER_BYTES_MAX {
                return None;
            }
            answer.extend_from_slice(&bytes);
        }
        let code = code_of_headers(&body.trailers().await.ok()??);
        // The length in the prefix is that of all the rest: one message.
        let (prefix, message) = answer.split_at_checked(PREFIX_BYTES)?;
        let length = u32::try_from(message.len()).ok()?.to_be_bytes();
        let is_one = prefix.split_first() == Some((&0, &length));
        ProbeResponse::decode(message).ok().filter(|_| is_one && code == Some(Code::Ok))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_owes_an_answer_is_not_asked_for_more() {
        let probed = Probed::default();
        assert!((0..PROBES_MAX).all(|n| probed.begin(u64::from(n))), "several at the same time");
        assert!(!probed.begin(10));
        (1..PROBES_MAX).for_each(|_| probed.end());
        assert!(!probed.begin(PATIENCE_US_MAX + 1), "the first is late");
        probed.end();
        assert!(probed.begin(PATIENCE_US_MAX + 1));
    }

    #[test]
    fn a_mute_endpoint_is_asked_again_after_a_while_or_as_another_process() {
        let probed = Probed::default();
        probed.mute(5);
        assert!(!probed.begin(MUTE_US) && probed.is_mute(MUTE_US + 4));
        assert!(probed.begin(MUTE_US + 5));
        probed.mute(MUTE_US + 5);
        probed.forget();
        assert!(probed.begin(MUTE_US + 6));
    }
}
