//! Why the table does not take a fact in.

use crate::model::{Address, ServiceName};

/// Why an event was refused; nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More services than fit.
    #[error("there are {max} services already")]
    TooManyServices {
        /// The limit.
        max: usize,
    },
    /// More endpoints than fit.
    #[error(
        "service {service} would have {endpoints} endpoints, at most {max} are allowed; the last good list still serves"
    )]
    TooManyEndpoints {
        /// Which service.
        service: ServiceName,
        /// How many it would have.
        endpoints: usize,
        /// The limit.
        max: usize,
    },
    /// The same address twice in one listing.
    #[error("the listing of service {service} names {address} twice; the last good list still serves")]
    ListedTwice {
        /// Which service.
        service: ServiceName,
        /// Which address.
        address: Address,
    },
    /// A newer start owns the address.
    #[error("{address} belongs to incarnation {held}, {given} is older")]
    OldIncarnation {
        /// Which endpoint.
        address: Address,
        /// Its owner.
        held: u64,
        /// Who spoke.
        given: u64,
    },
    /// Another endpoint with a live registration has the same instance name.
    #[error("instance {instance} of service {service} is registered at {address} and alive")]
    DuplicateInstance {
        /// Which service.
        service: ServiceName,
        /// Which instance.
        instance: String,
        /// Where it is.
        address: Address,
    },
    /// A report of somebody who is not registered.
    #[error("{address} is not registered for service {service}")]
    NotRegistered {
        /// Which service.
        service: ServiceName,
        /// Which address.
        address: Address,
    },
    /// A report older than one already held.
    #[error("report {given} of {address} is not newer than report {held}")]
    OldReport {
        /// Whose.
        address: Address,
        /// The newest known.
        held: u64,
        /// This one.
        given: u64,
    },
    /// Nobody knows the service.
    #[error("service {service} is not known")]
    UnknownService {
        /// Which.
        service: ServiceName,
    },
    /// The override matches no endpoint.
    #[error("no endpoint of service {service} is meant by it")]
    NothingMeant {
        /// Which service.
        service: ServiceName,
    },
    /// More overrides than fit.
    #[error("service {service} has {max} overrides already")]
    TooManyOverrides {
        /// Which service.
        service: ServiceName,
        /// The limit.
        max: usize,
    },
}
