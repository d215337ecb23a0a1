//! Every maximum in the core, each with what happens there, and the pace of lists. Exceeding a maximum is refused with a reason and
//! changes nothing.

use std::time::Duration;

/// Beyond this a listing is refused whole and its source turns stale: half a list misleads.
pub const ENDPOINTS_PER_SERVICE_MAX: usize = 10_000;

/// Beyond this a registration that would make a new service is refused.
pub const SERVICES_MAX: usize = 10_000;

/// Beyond this an override is refused; those that ended are forgotten first.
pub const OVERRIDES_PER_SERVICE_MAX: usize = 1_000;

/// Rules for the methods of one service; beyond this a configuration is refused. They travel in one message.
pub const METHOD_RULES_MAX: usize = 256;

/// A longer name (service, instance, locality part, host) is refused. 253 is the longest DNS name.
pub const NAME_BYTES_MAX: usize = 253;

/// A longer text from outside (reasons of overrides, details of checks) is cut here.
pub const TEXT_BYTES_MAX: usize = 256;

/// A larger weight is refused, and what a list gives is cut here: sums of weights must stay far from overflow in any client.
pub const WEIGHT_MAX: u32 = 10_000;

/// A capacity is at least a sixteenth of the usual one and at most sixteen times that, thousandths: beyond that it is a mistake
/// of who measured. Weight times capacity, summed over a service, stays far from overflow.
pub const CAPACITY_MILLI_MIN: u32 = 62;
/// See there.
pub const CAPACITY_MILLI_MAX: u32 = 16_000;

/// A larger failover tier is refused.
pub const PRIORITY_MAX: u32 = 127;

/// Clients hash into this many cohorts per service and locality; each cohort's list is computed and encoded once.
pub const COHORTS_MAX: u64 = 64;

/// Between two lists of a service to a cohort that differ in nothing but weights and capacities.
pub const LOAD_LIST_PERIOD: Duration = Duration::from_secs(1);

/// The same where only the order differs: it says whom to connect to first, clients are connected, and among a hundred endpoints
/// somebody's load crosses a tenth in every second.
pub const ORDER_LIST_PERIOD: Duration = Duration::from_secs(5);

/// Between two words to a cohort about how a service fares as a whole, where that is news: an overload is known to all within
/// two seconds, and with 20,000 streams even news in every second is a tenth of a core.
pub const FLEET_PERIOD: Duration = Duration::from_secs(1);

/// Above this a utilisation is refused as absurd; 1.0 is full, and borrowing beyond a limit is normal.
pub const UTILIZATION_MAX: f64 = 100.0;

const _: () = assert!(ENDPOINTS_PER_SERVICE_MAX as u64 * WEIGHT_MAX as u64 <= u32::MAX as u64);
