//! What one client knows of all its endpoints together: whose turn it is, what responses told, how long answers usually take, how
//! much is under way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::{
    STALL_FACTOR, STALL_US_MIN,
    tokens::{LANES_MAX, Lane, lane_of_thread},
};

/// A token is used for so many service times, within these bounds, microseconds: later it tells of another time.
const TOKEN_AGE_FACTOR: u64 = 5;
const TOKEN_AGE_US: std::ops::RangeInclusive<u64> = 5_000..=1_000_000;

/// An answer that takes so many times as long as usual is far beyond it; where most are, they disprove what their endpoint says of
/// its load. Of exponential service times one in three thousand is as long, of an endpoint whose queue is hidden most are.
const DISPROOF_FACTOR: u64 = 8;

/// A word of load beyond this, thousandths, and beyond twice the mean moves the mean no further.
const RIF_MILLI_MOST: u64 = 64_000;

/// When a call went well is noted so often, microseconds: mostly a thread only looks.
const WELL_PERIOD_US: u64 = 100_000;

/// What one client has learnt of all its endpoints together. Outlives pickers.
#[derive(Debug)]
pub struct Fleet {
    lanes: Box<[Lane]>,
    /// The last sign of life of any endpoint, microseconds.
    life_us: AtomicU64,
    /// When a call went well last, microseconds; a period late at most.
    well_us: AtomicU64,
    /// When one failed last at an endpoint that is not aside, microseconds.
    ill_us: AtomicU64,
    /// How long answers usually take, microseconds; 0 before the first.
    answer_us_mean: AtomicU64,
    /// The same times the capacity of whoever answered.
    work_us_mean: AtomicU64,
    /// Requests in flight per capacity that answers usually tell of, thousandths.
    rif_milli_mean: AtomicU64,
    /// A stalled endpoint was met that nobody was told of.
    alarm: AtomicBool,
    /// Endpoints can be asked how loaded they are.
    asks: AtomicBool,
    /// Clients that call the service, as far as is known; at least 1.
    clients: AtomicU64,
}

impl Fleet {
    /// Nothing learnt yet. The seed sets where turns begin, so that many clients do not begin with the same endpoint.
    pub fn new(seed: u64) -> Self {
        Self::with_lanes(seed, 1)
    }

    /// The same for so many threads at once: they keep out of each other's way. At most [`LANES_MAX`] count.
    pub fn with_lanes(seed: u64, lanes: usize) -> Self {
        Self {
            lanes: (0..lanes.clamp(1, LANES_MAX)).map(|number| Lane::new(seed, number)).collect(),
            life_us: AtomicU64::new(0),
            well_us: AtomicU64::new(0),
            ill_us: AtomicU64::new(0),
            answer_us_mean: AtomicU64::new(0),
            work_us_mean: AtomicU64::new(0),
            rif_milli_mean: AtomicU64::new(0),
            alarm: AtomicBool::new(false),
            asks: AtomicBool::new(false),
            clients: AtomicU64::new(1),
        }
    }

    /// Whether endpoints can be asked how loaded they are, and it pays to wait for what they say.
    pub fn set_asks(&self, asks: bool) {
        self.asks.store(asks, Relaxed);
    }

    /// So many clients call the service, this one included.
    pub fn set_clients(&self, clients: u64) {
        self.clients.store(clients.max(1), Relaxed);
    }

    pub(super) fn clients(&self) -> u64 {
        self.clients.load(Relaxed)
    }

    pub(super) fn asks(&self) -> bool {
        self.asks.load(Relaxed)
    }

    /// How long answers usually take, microseconds; 0 before the first.
    pub fn answer_us_mean(&self) -> u64 {
        self.answer_us_mean.load(Relaxed)
    }

    /// Time after which an unanswered call counts as silence, microseconds.
    pub fn stall_us(&self) -> u64 {
        self.answer_us_mean().saturating_mul(STALL_FACTOR).max(STALL_US_MIN)
    }

    /// Time after which an answer counts as late, microseconds: long before its endpoint counts as stalled, other endpoints are
    /// the safer choice.
    pub(super) fn late_us(&self) -> u64 {
        self.answer_us_mean().saturating_mul(2)
    }

    /// For how long a token is used, microseconds.
    pub(super) fn token_age_us(&self) -> u64 {
        let factored = self.answer_us_mean().saturating_mul(TOKEN_AGE_FACTOR);
        factored.clamp(*TOKEN_AGE_US.start(), *TOKEN_AGE_US.end())
    }

    /// True once after a pick met a stalled endpoint that was not suspected yet: time for [`super::Picker::survey`].
    pub fn take_alarm(&self) -> bool {
        self.alarm.load(Relaxed) && self.alarm.swap(false, Relaxed)
    }

    /// Calls picked and not ended, of all endpoints.
    pub(super) fn in_flight(&self) -> u64 {
        let sum = self.lanes.iter().fold(0_u64, |sum, lane| sum.wrapping_add(lane.in_flight()));
        // An end counted twice by mistake must not look like a fleet that is infinitely busy.
        if sum > i64::MAX as u64 { 0 } else { sum }
    }

    pub(super) fn learn_answer(&self, took_us: u64) {
        learn(&self.answer_us_mean, took_us.max(1));
    }

    /// An answer took so long, times the capacity of whoever gave it. True when that is far beyond what is usual.
    pub(super) fn learn_work(&self, work_us: u64) -> bool {
        let usual = self.work_us_mean.load(Relaxed);
        let is_far = usual > 0 && work_us > usual.saturating_mul(DISPROOF_FACTOR);
        // One that is far beyond must not become what is usual by itself.
        learn(&self.work_us_mean, if is_far { usual * 2 } else { work_us.max(1) });
        is_far
    }

    /// An endpoint told of so many requests in flight per capacity, thousandths.
    pub(super) fn learn_rif(&self, rif_milli: u64) {
        // One that says what cannot be must not become what is usual by itself.
        let most = self.rif_milli_mean().saturating_mul(2).max(RIF_MILLI_MOST);
        learn(&self.rif_milli_mean, rif_milli.min(most));
    }

    pub(super) fn rif_milli_mean(&self) -> u64 {
        self.rif_milli_mean.load(Relaxed)
    }

    /// The lane of the calling thread.
    pub(super) fn lane(&self) -> &Lane {
        match &*self.lanes {
            [only] => only,
            lanes => &lanes[lane_of_thread() % lanes.len()],
        }
    }

    /// Of the other lanes the one that heard something last.
    pub(super) fn lane_beside(&self, own: &Lane) -> Option<&Lane> {
        let others = self.lanes.iter().filter(|lane| lane.number() != own.number());
        others.max_by_key(|lane| lane.heard_us()).filter(|lane| lane.heard_us() > 0)
    }

    pub(super) fn raise_alarm(&self) {
        self.alarm.store(true, Relaxed);
    }

    pub(super) fn spoke(&self, now_us: u64) {
        self.life_us.fetch_max(now_us, Relaxed);
    }

    /// A call went well, wherever.
    pub(super) fn went_well(&self, now_us: u64) {
        if now_us.saturating_sub(self.well_us.load(Relaxed)) >= WELL_PERIOD_US {
            self.well_us.store(now_us, Relaxed);
        }
    }

    /// A call failed at an endpoint that is not aside.
    pub(super) fn went_ill(&self, now_us: u64) {
        self.ill_us.store(now_us, Relaxed);
    }

    /// Whether calls failed since then where nothing was held against anybody, and none went well.
    pub(super) fn is_fault_of_all_since(&self, since_us: u64) -> bool {
        self.well_us.load(Relaxed) <= since_us && self.ill_us.load(Relaxed) > since_us
    }

    pub(super) fn spoke_after(&self, since_us: u64) -> bool {
        self.life_us.load(Relaxed) > since_us
    }
}

/// Moves a mean a sixteenth of the way. A lost update between threads costs one sample of thousands.
fn learn(mean: &AtomicU64, sample: u64) {
    let before = mean.load(Relaxed);
    // By one at least, or a small mean would stay where it is for ever.
    let step = sample.abs_diff(before).div_ceil(16);
    let after = match before {
        0 => sample,
        _ if sample > before => before.saturating_add(step),
        _ => (before - step).max(1),
    };
    mean.store(after, Relaxed);
}
