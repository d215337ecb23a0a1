//! What peers may take, as the file has it.

use std::time::Duration;

use serde::Deserialize;

use super::Problems;
use crate::config::{
    Limits,
    value::{Maybe, Span},
};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LimitsForm {
    pub(super) connections: Maybe<usize>,
    pub(super) connections_per_peer: Maybe<usize>,
    streams_per_connection: Maybe<u32>,
    streams_per_peer: Maybe<usize>,
    connection_age: Maybe<Span>,
    connection_age_grace: Maybe<Span>,
    connection_idle: Maybe<Span>,
    handshake_deadline: Maybe<Span>,
    keepalive_interval: Maybe<Span>,
    keepalive_timeout: Maybe<Span>,
    memory_mib: Maybe<u64>,
    pub(super) checks_at_once: Maybe<usize>,
    drain_deadline: Maybe<Span>,
}

impl LimitsForm {
    pub(super) fn limits(&self, problems: &mut Problems) -> Limits {
        let mut limits = Limits::default();
        let (ms, second) = (Duration::from_millis(1), Duration::from_secs(1));
        problems.bounded("connections", &mut limits.connections, &self.connections, 1, 1_000_000);
        let per_peer = &mut limits.connections_per_peer;
        problems.bounded("connections_per_peer", per_peer, &self.connections_per_peer, 1, 1_000_000);
        problems.bounded("streams_per_peer", &mut limits.streams_per_peer, &self.streams_per_peer, 1, 10_000_000);
        let streams = &mut limits.streams_per_connection;
        problems.bounded("streams_per_connection", streams, &self.streams_per_connection, 1, 1_000_000);
        problems.span("connection_age", &mut limits.connection_age, &self.connection_age, second);
        problems.span("connection_age_grace", &mut limits.connection_age_grace, &self.connection_age_grace, ms);
        problems.span("connection_idle", &mut limits.connection_idle, &self.connection_idle, second);
        problems.span("handshake_deadline", &mut limits.handshake_deadline, &self.handshake_deadline, ms);
        problems.span("keepalive_interval", &mut limits.keepalive_interval, &self.keepalive_interval, second);
        problems.span("keepalive_timeout", &mut limits.keepalive_timeout, &self.keepalive_timeout, ms);
        problems.bounded("memory_mib", &mut limits.memory_mib, &self.memory_mib, 0, 1 << 20);
        problems.bounded("checks_at_once", &mut limits.checks_at_once, &self.checks_at_once, 1, 100_000);
        problems.span("drain_deadline", &mut limits.drain_deadline, &self.drain_deadline, ms);
        limits
    }
}
