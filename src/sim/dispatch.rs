//! How a client chooses. A [`Dispatcher`] is one client's way to do that; the engine tells it what that client can know, and
//! no more: lists when they have arrived, answers when they are back.

use lookaside_core::snapshot::Fleet;
use lookaside_sdk::picker::{Class, Rng};

use crate::{
    chance::{Stream, stream},
    scenario::Scenario,
    world::World,
};

mod known;
mod lookaside;
mod oracle;
mod peak_ewma;
mod pid;
mod prequal;
mod probing_p2c;
mod simple;
mod stride;
mod wrr;

/// The ways to balance that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// No choice at all: one queue for all cores. What no policy can beat where cores are alike.
    Bound,
    /// The endpoint that truly has least to do per capacity, known without delay.
    Oracle,
    /// The SDK's picker, fed by the balancer.
    Lookaside,
    /// Any.
    Random,
    /// One after the other, each client from its own start.
    RoundRobin,
    /// Of two drawn at random the one with fewer of this client's own calls.
    P2c,
    /// Of two drawn at random the one with the lower latency by calls in flight, peaks weighing most.
    PeakEwma,
    /// In turns by calls per second over utilisation (gRFC A58).
    Wrr,
    /// In turns by weights that feedback on utilisation moves (Robinhood, A80).
    Pid,
    /// An emulation of Prequal by calls in flight alone (Q 0).
    Prequal0,
    /// The same, the lower 60 % being cold (Q 0.6).
    Prequal60,
    /// The same, the lower 84 % being cold (Q 0.84, the paper's).
    Prequal84,
    /// Of two drawn at random the one that says it has fewer calls; both are asked, and waited for.
    ProbingP2c,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Bound,
        Self::Oracle,
        Self::Lookaside,
        Self::ProbingP2c,
        Self::Prequal0,
        Self::Prequal60,
        Self::Prequal84,
        Self::PeakEwma,
        Self::P2c,
        Self::Wrr,
        Self::Pid,
        Self::RoundRobin,
        Self::Random,
    ];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Oracle => "oracle",
            Self::Lookaside => "lookaside",
            Self::Random => "random",
            Self::RoundRobin => "round_robin",
            Self::P2c => "p2c",
            Self::PeakEwma => "peak_ewma",
            Self::Wrr => "wrr",
            Self::Pid => "pid",
            Self::Prequal0 => "prequal_0",
            Self::Prequal60 => "prequal_60",
            Self::Prequal84 => "prequal_84",
            Self::ProbingP2c => "probing_p2c",
        }
    }

    /// Whether its clients tell the balancer how their calls ended. The others get the same lists, by registrations and checks
    /// alone, as from any directory of endpoints that checks them.
    pub(crate) fn tells_outcomes(self) -> bool {
        match self {
            Self::Lookaside => true,
            Self::Bound | Self::Oracle | Self::Random | Self::RoundRobin | Self::P2c => false,
            Self::PeakEwma | Self::Wrr | Self::Pid | Self::ProbingP2c => false,
            Self::Prequal0 | Self::Prequal60 | Self::Prequal84 => false,
        }
    }

    /// The policy of that name.
    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

impl Policy {
    /// What a word stands for: a policy, `prequal` for its emulation at each quantile, or `all`. None where it stands for nothing.
    pub fn named(word: &str) -> Vec<Self> {
        match word {
            "all" => Self::ALL.to_vec(),
            "prequal" => vec![Self::Prequal0, Self::Prequal60, Self::Prequal84],
            name => Self::parse(name).into_iter().collect(),
        }
    }
}

/// Where a call is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// There.
    Send(u32),
    /// To be asked first, both; then [`Dispatcher::settle`]. Costs a round trip.
    Ask([u32; 2]),
    /// Not sent at all: the service has too much to do.
    HeldBack,
    /// There is nobody.
    Nobody,
}

/// What an endpoint answers to a probe: how it was when the probe got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Calls in flight there.
    pub rif: u32,
    /// Median of what calls took there lately that came when it had about as many in flight.
    pub latency_us: u64,
    /// What question and answer took on their ways.
    pub took_us: u64,
}

/// One place in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub endpoint: u32,
    /// Which start of it.
    pub incarnation: u64,
    /// Share of calls wanted; 0 means no new calls.
    pub weight: u32,
    /// Calls it serves at once compared with the others, thousandths; 0 is unknown.
    pub capacity_milli: u32,
    /// Failover tier, 0 is best.
    pub priority: u32,
    /// Whether this client is connected to it.
    pub ready: bool,
}

/// What an endpoint says of itself once per report period, to those who want to hear it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Which.
    pub endpoint: u32,
    /// Calls that it completed, failed ones included.
    pub calls_per_second: f64,
    /// Those that failed.
    pub errors_per_second: f64,
    /// Mean share of its cores that was busy; 1 is full.
    pub utilization: f64,
}

/// An attempt came to its end, at the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Where it was.
    pub endpoint: u32,
    /// How.
    pub class: Class,
    /// When it was sent.
    pub sent_us: u64,
    /// Now.
    pub now_us: u64,
    /// Calls in flight at the endpoint when it answered, without this one; `None` where it did not answer.
    pub rif: Option<u32>,
    /// Time from sending to here.
    pub latency_us: u64,
}

/// One client's way to choose.
pub trait Dispatcher {
    /// The list as it is from now on, whenever it or a connection has changed. Those with weight 0 or not ready get no calls.
    fn list(&mut self, list: &[Listed], now_us: u64);

    /// Where a call is to go; those in `tried` only if there is no other. `world` is for oracles.
    fn choose(&mut self, world: &World, now_us: u64, rng: &mut Rng, tried: &[u32]) -> Choice;

    /// The same, after both of [`Choice::Ask`] were asked. `None` stands for who did not answer in time.
    fn settle(&mut self, asked: [(u32, Option<Answer>); 2], now_us: u64, rng: &mut Rng, tried: &[u32]) -> Option<u32> {
        let _ = (now_us, rng, tried);
        let [(first, _), (second, _)] = asked;
        let rif = |asked: (u32, Option<Answer>)| asked.1.map_or(u32::MAX, |answer| answer.rif);
        Some(if rif(asked[1]) < rif(asked[0]) { second } else { first })
    }

    /// How long answers are waited for; `None` for as long as the scenario says.
    fn patience_us(&self) -> Option<u64> {
        None
    }

    /// The balancer tells how the fleet fares; the default when it is gone.
    fn ticked(&mut self, fleet: &Fleet, now_us: u64) {
        let _ = (fleet, now_us);
    }

    /// An attempt was sent there.
    fn sent(&mut self, endpoint: u32, now_us: u64) {
        let _ = (endpoint, now_us);
    }

    /// An attempt came to its end. True when that makes the endpoint suspicious, so that the balancer should hear of it.
    fn ended(&mut self, end: &End) -> bool {
        let _ = end;
        false
    }

    /// Whether a failed attempt may be repeated, if the scenario allows another.
    fn may_repeat(&mut self, now_us: u64) -> bool {
        let _ = now_us;
        true
    }

    /// Asked after each choice: endpoints that are to be probed in the background.
    fn probes(&mut self, now_us: u64, rng: &mut Rng, out: &mut Vec<u32>) {
        let _ = (now_us, rng, out);
    }

    /// An answer to a probe in the background is back.
    fn probe_answered(&mut self, endpoint: u32, answer: Answer, now_us: u64) {
        let _ = (endpoint, answer, now_us);
    }

    /// Whether [`Dispatcher::loads`] is of use to it.
    fn wants_loads(&self) -> bool {
        false
    }

    /// What the endpoints that could be heard said of themselves, once per report period, the delays of reports and pushes
    /// late.
    fn loads(&mut self, loads: &[Load], now_us: u64) {
        let _ = (loads, now_us);
    }

    /// True once after a choice met something that the balancer should hear of at once.
    fn is_alarmed(&mut self) -> bool {
        false
    }

    /// Endpoints that the client has something against, as seen before its calls are told to the balancer.
    fn survey(&mut self, now_us: u64, out: &mut Vec<u32>) {
        let _ = (now_us, out);
    }
}

/// The way of one client to choose.
pub(crate) fn dispatcher(policy: Policy, scenario: &Scenario, client: u32, seed: u64) -> Box<dyn Dispatcher> {
    // Of the highest bit, so that where a client begins has nothing to do with what it draws later.
    let mut rng = stream(seed, Stream::Picks, client | (1 << 31));
    match policy {
        Policy::Lookaside => Box::new(lookaside::Lookaside::new(rng.next_u64(), scenario.clients.count)),
        Policy::Random => Box::new(simple::Random::default()),
        Policy::RoundRobin => Box::new(simple::RoundRobin::new(&mut rng)),
        Policy::P2c => Box::new(simple::P2c::default()),
        Policy::PeakEwma => Box::new(peak_ewma::PeakEwma::default()),
        Policy::Wrr => Box::new(wrr::Wrr::starting_at(rng.next_u64())),
        Policy::Pid => Box::new(pid::Pid::starting_at(rng.next_u64())),
        Policy::Prequal0 => Box::new(prequal::Prequal::new(0)),
        Policy::Prequal60 => Box::new(prequal::Prequal::new(600)),
        Policy::Prequal84 => Box::new(prequal::Prequal::new(840)),
        Policy::ProbingP2c => Box::new(probing_p2c::ProbingP2c::default()),
        // The bound chooses nothing; should it be asked, it does as an oracle.
        Policy::Oracle | Policy::Bound => Box::new(oracle::Oracle::default()),
    }
}
