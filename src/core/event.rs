//! Everything that can happen to the table. Events are facts in the past tense; what to do about them is the table's.

use std::time::Duration;

use crate::{
    config::Configuration,
    model::{Address, ClientId, EndpointSpec, Locality, Peer, ServiceName, SourceId},
};

/// A fact.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A configuration was read, whole: of what it does not name, it says that nobody configures or lists it.
    Configured {
        /// Who read it.
        source: SourceId,
        /// What it says.
        configuration: Configuration,
    },
    /// A source that can list was set to follow a service. Until its first full answer the service settles.
    SourceAwaited {
        /// Who.
        source: SourceId,
        /// What for.
        service: ServiceName,
    },
    /// A source that can list gave its full answer for a service.
    EndpointsListed {
        /// Who.
        source: SourceId,
        /// What for.
        service: ServiceName,
        /// All of them; what it no longer names is gone by its word.
        endpoints: Vec<EndpointSpec>,
        /// What it was asked and where the answer is from, in words; empty when there is nothing to say.
        detail: String,
    },
    /// A source could not answer. What it said last still holds.
    SourceFailed {
        /// Who.
        source: SourceId,
        /// Why.
        reason: String,
    },
    /// The configuration no longer has a source follow a service: whatever it named, it names no longer.
    SourceDropped {
        /// Who.
        source: SourceId,
        /// What for.
        service: ServiceName,
    },
    /// The configuration has named every source there is, each awaited or heard: what was restored from another one is as
    /// good as dropped.
    SourcesNamed,
    /// A backend opened a report stream and registered itself.
    Registered {
        /// For what.
        service: ServiceName,
        /// As what.
        endpoint: EndpointSpec,
    },
    /// A backend reported.
    LoadReported {
        /// Whose.
        backend: Backend,
        /// What.
        load: LoadReport,
    },
    /// A backend said that it leaves.
    DrainAnnounced {
        /// Which.
        backend: Backend,
    },
    /// A backend ended its report stream after it had said that it leaves.
    Departed {
        /// Which.
        backend: Backend,
    },
    /// A report stream broke without such a word.
    ReportStreamBroken {
        /// Whose.
        backend: Backend,
    },
    /// A check came to an end.
    Checked {
        /// Of which service.
        service: ServiceName,
        /// Of which endpoint.
        address: Address,
        /// How.
        outcome: CheckOutcome,
    },
    /// A client told what its calls came to.
    CallsEnded {
        /// Who.
        client: Client,
        /// Calls of which service.
        service: ServiceName,
        /// On which endpoint.
        address: Address,
        /// How they ended.
        outcomes: Outcomes,
    },
    /// An operator spoke, here or on another replica.
    OverrideSet {
        /// What.
        word: Override,
    },
}

/// A backend process behind an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// For which service it registered.
    pub service: ServiceName,
    /// Under which address.
    pub address: Address,
    /// Which start of it.
    pub incarnation: u64,
}

/// A client, as it said hello, and from where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client {
    /// What it calls itself.
    pub id: ClientId,
    /// Where it connects from.
    pub peer: Peer,
    /// Where it says it runs.
    pub locality: Locality,
}

/// What a backend counted since its start. Sums, so that a lost report loses nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct LoadReport {
    /// Counts up per report of an incarnation.
    pub sequence: u64,
    /// Calls completed.
    pub completions: u64,
    /// Those that failed by the backend's fault: overload, endpoint and deadline classes.
    pub errors: u64,
    /// Those of them that were turned away because it was full.
    pub overloads: u64,
    /// Integral of calls in flight, microseconds.
    pub in_flight_us: u64,
    /// Calls in flight now.
    pub in_flight: u32,
    /// The fullest of all utilisations it named, permille; `None` when it measured none.
    pub utilization_permille: Option<u32>,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckOutcome {
    /// Serving, or connected where the endpoint has no health service.
    Passed,
    /// The backend said it is not serving.
    NotServing,
    /// No connection, or it was lost.
    Unreachable {
        /// The system's words.
        detail: String,
    },
    /// No answer within the deadline.
    TimedOut {
        /// The deadline.
        deadline: Duration,
    },
    /// An answer that is not gRPC.
    NotGrpc {
        /// What it was.
        detail: String,
    },
}

/// What calls of one client on one endpoint came to since it told last.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcomes {
    /// Good, or bad by the caller's own fault.
    pub ok: u64,
    /// Failed by the endpoint's fault, deadlines included, or not even connected.
    pub failed: u64,
    /// The client has put the endpoint aside.
    pub suspect: bool,
    /// What it saw, in words.
    pub detail: String,
}

/// Which endpoints of a service an override is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Scope {
    /// One.
    Address(Address),
    /// All in a locality or part of it.
    Locality(Locality),
    /// All.
    Service,
}

/// What an operator orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Action {
    /// No new calls; those in flight end where they are.
    Drain,
    /// Takes a drain back.
    Undrain,
    /// No calls, whatever happens.
    Disable,
    /// Takes a disable back.
    Enable,
    /// Percent of the configured weight.
    Weight(u32),
}

/// An operator's word. The newest on the same scope and matter (drain, disable, weight) holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Override {
    /// In which service.
    pub service: ServiceName,
    /// On which endpoints of it.
    pub scope: Scope,
    /// What.
    pub action: Action,
    /// Why, as the operator put it.
    pub reason: String,
    /// Who.
    pub actor: String,
    /// When, by the wall clock of the replica that took it, milliseconds since 1970; orders words between replicas.
    pub set_at_unix_ms: u64,
    /// Which replica; breaks ties.
    pub replica: String,
    /// When it ends, milliseconds since 1970, as told to others; 0 when it stays.
    pub expires_at_unix_ms: u64,
    /// How long it still holds, counted from when the table hears it; `None` when it stays.
    pub remaining: Option<Duration>,
}
