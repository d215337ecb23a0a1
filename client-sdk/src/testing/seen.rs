//! What a scripted balancer was told, kept for the test to look at.

use std::collections::VecDeque;

use lookaside_proto::v1::{Ack, EndpointOutcomes, Hello, LoadReport, Outcomes, Registration, Version};

/// Messages of one kind beyond this many push out the oldest.
const KEPT_MAX: usize = 10_000;

/// Everything that clients and backends said, in the order it came.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Seen {
    /// One per pick stream.
    pub hellos: VecDeque<Hello>,
    /// Services subscribed to.
    pub subscribed: VecDeque<String>,
    /// Lists acknowledged or refused.
    pub acks: VecDeque<Ack>,
    /// Outcomes of calls.
    pub outcomes: VecDeque<Outcomes>,
    /// Reports of backends.
    pub reports: VecDeque<LoadReport>,
    /// One per report stream that began with one.
    pub registrations: VecDeque<Registration>,
    /// Pick streams open now.
    pub pick_streams: usize,
    /// Report streams open now.
    pub report_streams: usize,
}

impl Seen {
    /// The version of a service's list that was acknowledged last.
    pub fn acked(&self, service: &str) -> Option<Version> {
        self.acks.iter().rev().find(|ack| ack.service == service && ack.refused.is_empty()).and_then(|ack| ack.version)
    }

    /// The words with which a list of a service was refused last.
    pub fn refused(&self, service: &str) -> Option<&str> {
        let ack = self.acks.iter().rev().find(|ack| ack.service == service && !ack.refused.is_empty());
        ack.map(|ack| ack.refused.as_str())
    }

    /// Outcomes of one service.
    pub fn outcomes(&self, service: &str) -> impl Iterator<Item = &EndpointOutcomes> {
        self.outcomes
            .iter()
            .filter(move |outcomes| outcomes.service == service)
            .flat_map(|outcomes| &outcomes.endpoints)
    }

    /// Calls to an endpoint that ended well, as reported so far.
    pub fn ok_calls(&self, service: &str, address: &str) -> u64 {
        self.outcomes(service).filter(|outcomes| outcomes.address == address).map(|outcomes| outcomes.ok).sum()
    }
}

pub(crate) fn keep<T>(kept: &mut VecDeque<T>, one: T) {
    if kept.len() >= KEPT_MAX {
        kept.pop_front();
    }
    kept.push_back(one);
}
