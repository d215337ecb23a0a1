//! The table at one moment: immutable, versioned, printable. Policies, explanations and front ends read this alone.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    config::ServiceConfig,
    event::Override,
    model::{Address, EndpointSpec, Locality, ServiceName, SourceId, Timestamp, Version},
};

/// Everything, at one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Of this balancer, and the number of this snapshot.
    pub version: Version,
    /// When it was taken.
    pub at: Timestamp,
    /// By name. Services that did not change since the snapshot before are shared with it.
    pub services: BTreeMap<ServiceName, Arc<ServiceSnapshot>>,
    /// What is known of each source.
    pub sources: BTreeMap<SourceId, SourceSnapshot>,
    /// Until when a service that nobody has listed or registered may still turn up after the start.
    pub settled_at: Timestamp,
}

impl Snapshot {
    /// Whether a service unknown now may still turn up because the balancer has only just started.
    pub fn is_settling(&self) -> bool {
        self.at < self.settled_at
    }
}

/// What is known of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSnapshot {
    /// Since when it has been silent, and why; `None` while it answers.
    pub stale: Option<(Timestamp, String)>,
    /// Its last answer.
    pub answered_at: Option<Timestamp>,
    /// What that answer was to, in its own words; empty when it says nothing of the kind.
    pub detail: String,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceSnapshot {
    /// Which.
    pub name: ServiceName,
    /// When it last changed, as a version.
    pub version: Version,
    /// When it last changed, as a time.
    pub changed_at: Timestamp,
    /// How it is balanced.
    pub config: Arc<ServiceConfig>,
    /// How far its list is to be trusted.
    pub mode: Mode,
    /// Why, in words; empty when there is nothing to say.
    pub note: String,
    /// The balancer has not heard everybody yet: lists are not complete.
    pub settling: bool,
    /// It is what the last start had kept, and not everybody has had the time to speak since: a client may know more.
    pub stale: bool,
    /// How its endpoints fare together. A version does not tell of it.
    #[serde(default)]
    pub fleet: Fleet,
    /// Zones whose clients call more than it can take, where they prefer it: who helps.
    pub help: BTreeMap<Locality, Help>,
    /// Sorted by address, so that replicas agree.
    pub endpoints: Vec<EndpointSnapshot>,
}

impl ServiceSnapshot {
    /// The endpoint at an address.
    pub fn endpoint(&self, address: &Address) -> Option<&EndpointSnapshot> {
        let at = self.endpoints.binary_search_by(|e| e.spec.address.cmp(address)).ok()?;
        self.endpoints.get(at)
    }

    /// Endpoints that lists offer.
    pub fn offered(&self) -> impl Iterator<Item = &EndpointSnapshot> {
        self.endpoints.iter().filter(|e| e.state.is_offered())
    }

    /// In one word, never better than the worst part.
    pub fn status(&self) -> Status {
        match self.mode {
            Mode::Empty => Status::Empty,
            Mode::Panic => Status::Panic,
            Mode::LastGood => Status::LastGood,
            Mode::Normal if self.settling => Status::Settling,
            Mode::Normal if self.endpoints.iter().all(EndpointSnapshot::serves) => Status::Ok,
            Mode::Normal => Status::Degraded,
        }
    }
}

/// How the endpoints of a service fare together, for clients, that see some of them. Zeros while nobody reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// Calls in flight per usual capacity (1000 in a list) of which nine in ten offered endpoints have less, thousandths: what
    /// a client hears of an endpoint's load, over what its list says of the capacity, is in the same unit.
    pub hot_milli: u32,
    /// Mean time that a call takes where it has not to wait, microseconds.
    pub service_time_us: u64,
    /// Mean utilisation, permille; 0 where none is measured.
    pub utilization_permille: u32,
    /// The service as a whole has more calls than it can serve.
    pub is_overload: bool,
    /// Probes that clients may send, percent of their calls.
    pub probe_percent: u32,
}

impl Fleet {
    /// Whether a client that was told `told` is to hear of it before the next heartbeat: everything is told with those, and
    /// each further message is one for every client. An overload is, and a probe budget of more than a fifth more or less;
    /// no client acts on the other numbers sooner.
    pub fn is_news_to(&self, told: &Self) -> bool {
        self.is_overload != told.is_overload || self.probe_percent.abs_diff(told.probe_percent) > told.probe_percent / 5
    }
}

/// What endpoints of other zones do for the clients of one that is full.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Help {
    /// By zone: the part of its weight that an endpoint there has beside one at home, thousandths.
    pub weight_milli: BTreeMap<Locality, u32>,
}

impl Help {
    /// The same of one zone; `None` if it does not help.
    pub(crate) fn of(&self, zone: &str) -> Option<u32> {
        self.weight_milli.iter().find(|(at, _)| at.as_str() == zone).map(|(_, milli)| *milli)
    }
}

/// A service in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Status {
    /// All endpoints serve.
    Ok,
    /// Still hearing from everybody after a start.
    Settling,
    /// Some endpoints do not serve.
    Degraded,
    /// The last good list is kept against the evidence.
    LastGood,
    /// Too few serve: health is ignored.
    Panic,
    /// Nothing to offer.
    Empty,
}

impl Status {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Settling => "SETTLING",
            Self::Degraded => "DEGRADED",
            Self::LastGood => "LAST_GOOD",
            Self::Panic => "PANIC",
            Self::Empty => "EMPTY",
        }
    }
}

/// How far the list of a service is to be trusted; the modes that depend on who asks come with the assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mode {
    /// Health counts.
    Normal,
    /// Fewer usable endpoints than the panic threshold: health is ignored, drain and disable are not.
    Panic,
    /// The evidence is doubted, or would take the last endpoint: what was good stays.
    LastGood,
    /// Nothing to offer, with proof.
    Empty,
}

impl Mode {
    /// The word, as in the wire contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Panic => "PANIC",
            Self::LastGood => "LAST_GOOD",
            Self::Empty => "EMPTY",
        }
    }
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointSnapshot {
    /// What it says of itself.
    pub spec: EndpointSpec,
    /// Whether it is offered.
    pub state: State,
    /// Why; the first is the main one. Empty for an eligible endpoint of which there is nothing to say.
    pub reasons: Vec<Reason>,
    /// Share of new calls wanted, before anything measured: weight of the spec, times operator's percent and slow start. 0 when
    /// not offered.
    pub weight: u32,
    /// Calls it gets done per second and weight, against the median endpoint, thousandths: 1000 is usual. 0 while nothing is known of any
    /// endpoint of the service; 1000 throughout where the policy asks for no measure. Its share is weight times this, which
    /// for `weighted_round_robin` makes up for what it has in flight as well.
    #[serde(default)]
    pub capacity_milli: u32,
    /// How full it is, for the order of lists; steps of 100 with hysteresis, so that lists do not flicker.
    pub load_permille: u32,
    /// How full it said it is.
    pub utilization_permille: Option<u32>,
    /// Who sees it, where each client sees a part.
    pub seats: Seats,
    /// Calls in flight when it reported last.
    pub in_flight: u32,
    /// Completed calls, thousandths per second.
    pub calls_per_second_milli: u64,
    /// The last check.
    pub check: Option<Check>,
    /// Counts up whenever a check is wanted at once.
    pub check_wanted: u64,
    /// Its registration, when it has one.
    pub lease: Option<LeaseSnapshot>,
    /// Sources that name it.
    pub sources: Vec<SourceId>,
    /// Operator's words that concern it.
    pub overrides: Vec<Override>,
    /// When it became known under this incarnation.
    pub joined_at: Timestamp,
}

/// Which cohorts see an endpoint, where there are more endpoints than one client is to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seats {
    /// A bit for each seed; 0 while it is not known who calls how much, and where everybody sees everything.
    pub cohorts: u64,
    /// The part of its weight that it has for those who see a part, so that what all of them send it is its share of all
    /// calls; thousandths.
    pub weight_milli: u32,
}

impl Default for Seats {
    fn default() -> Self {
        Self { cohorts: 0, weight_milli: 1000 }
    }
}

impl EndpointSnapshot {
    /// What calls are divided by: weight times capacity, whichever of the two a policy tells its clients, thousandths.
    pub(crate) fn share(&self) -> u64 {
        let capacity_milli = if self.capacity_milli == 0 { 1000 } else { self.capacity_milli };
        u64::from(self.weight) * u64::from(capacity_milli)
    }

    /// Whether it is offered, and nobody says that it should not be.
    fn serves(&self) -> bool {
        self.state == State::Eligible && self.reasons.iter().all(|reason| reason.code != Code::OutlierEjected)
    }
}

/// A check that came to an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// When.
    pub at: Timestamp,
    /// "SERVING", or what went wrong.
    pub result: String,
    /// Whether it passed.
    pub passed: bool,
    /// Same results in a row.
    pub streak: u32,
}

/// A registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSnapshot {
    /// Last sign of life on the report stream.
    pub renewed_at: Timestamp,
    /// Last report with counters.
    pub reported_at: Option<Timestamp>,
    /// Whether its report stream is open.
    pub connected: bool,
    /// From before the balancer started: it has not been heard of since.
    pub restored: bool,
}

/// Whether an endpoint is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// Yes.
    Eligible,
    /// Bad, but yes: PANIC or LAST_GOOD.
    Restored,
    /// No.
    Excluded,
    /// No new calls: it or an operator said so.
    Draining,
    /// No: an operator said so.
    Disabled,
    /// Not yet: nothing has been found out about it.
    Pending,
}

impl State {
    /// Whether lists offer it.
    pub fn is_offered(self) -> bool {
        match self {
            Self::Eligible | Self::Restored => true,
            Self::Excluded | Self::Draining | Self::Disabled | Self::Pending => false,
        }
    }

    /// Whether lists name it with weight 0, so that holders leave it even while the balancer settles.
    pub fn is_named_out(self) -> bool {
        match self {
            Self::Excluded | Self::Draining | Self::Disabled => true,
            Self::Eligible | Self::Restored | Self::Pending => false,
        }
    }

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eligible => "ELIGIBLE",
            Self::Restored => "RESTORED",
            Self::Excluded => "EXCLUDED",
            Self::Draining => "DRAINING",
            Self::Disabled => "DISABLED",
            Self::Pending => "PENDING",
        }
    }
}

/// Why an endpoint is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Which.
    pub code: Code,
    /// What was seen, in words that do not change while the reason holds.
    pub detail: String,
    /// Since when.
    pub since: Timestamp,
}

/// Every reason there is. Closed: the same words in messages, JSON, metrics, logs and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is documented once, in proto/lookaside/v1/common.proto")]
pub enum Code {
    HealthNotServing,
    HealthUnreachable,
    HealthTimeout,
    HealthPending,
    HealthNotGrpc,
    NoReportYet,
    ReportStale,
    Overloaded,
    WarmingUp,
    OutlierEjected,
    AdminDrain,
    AdminDisabled,
    AdminWeight,
    SelfDraining,
    LeaseExpired,
    DiscoveryNotReady,
    DiscoveryRemoved,
    DiscoveryStale,
    ZoneNotPreferred,
    PriorityNotPreferred,
    SubsetNotSelected,
    LabelMismatch,
    CapacityLimit,
    ListTruncated,
    PanicRestored,
    ChecksDoubted,
    ClientFailures,
    LastEndpoint,
}

impl Code {
    /// The word, as in the wire contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::HealthNotServing => "HEALTH_NOT_SERVING",
            Self::HealthUnreachable => "HEALTH_UNREACHABLE",
            Self::HealthTimeout => "HEALTH_TIMEOUT",
            Self::HealthPending => "HEALTH_PENDING",
            Self::HealthNotGrpc => "HEALTH_NOT_GRPC",
            Self::NoReportYet => "NO_REPORT_YET",
            Self::ReportStale => "REPORT_STALE",
            Self::Overloaded => "OVERLOADED",
            Self::WarmingUp => "WARMING_UP",
            Self::OutlierEjected => "OUTLIER_EJECTED",
            Self::AdminDrain => "ADMIN_DRAIN",
            Self::AdminDisabled => "ADMIN_DISABLED",
            Self::AdminWeight => "ADMIN_WEIGHT",
            Self::SelfDraining => "SELF_DRAINING",
            Self::LeaseExpired => "LEASE_EXPIRED",
            Self::DiscoveryNotReady => "DISCOVERY_NOT_READY",
            Self::DiscoveryRemoved => "DISCOVERY_REMOVED",
            Self::DiscoveryStale => "DISCOVERY_STALE",
            Self::ZoneNotPreferred => "ZONE_NOT_PREFERRED",
            Self::PriorityNotPreferred => "PRIORITY_NOT_PREFERRED",
            Self::SubsetNotSelected => "SUBSET_NOT_SELECTED",
            Self::LabelMismatch => "LABEL_MISMATCH",
            Self::CapacityLimit => "CAPACITY_LIMIT",
            Self::ListTruncated => "LIST_TRUNCATED",
            Self::PanicRestored => "PANIC_RESTORED",
            Self::ChecksDoubted => "CHECKS_DOUBTED",
            Self::ClientFailures => "CLIENT_FAILURES",
            Self::LastEndpoint => "LAST_ENDPOINT",
        }
    }
}
