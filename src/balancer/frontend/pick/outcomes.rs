//! What clients tell of their calls, checked at the edge. A message is taken whole or not at all.

use lookaside_core::{
    event,
    limits::ENDPOINTS_PER_SERVICE_MAX,
    model::{self, Address, printable},
};
use lookaside_proto::v1;

use crate::limits::OUTCOME_COUNT_MAX;

/// Why outcomes are not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// More endpoints than a list can have.
    #[error("{endpoints} endpoints, at most {ENDPOINTS_PER_SERVICE_MAX} are in a list")]
    TooMany {
        /// How many.
        endpoints: usize,
    },
    /// No address.
    #[error(transparent)]
    Address(#[from] model::Error),
    /// More calls than can have been made.
    #[error("{count} calls on {address} are more than {OUTCOME_COUNT_MAX}")]
    Absurd {
        /// Where.
        address: Address,
        /// How many.
        count: u64,
    },
}

/// What calls on one endpoint came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) address: Address,
    /// Which start of it they were made on; 0 when the client does not know.
    pub(super) incarnation: u64,
    /// For the table.
    pub(super) outcomes: event::Outcomes,
    /// For metrics: outcome and count.
    pub(super) counts: [(&'static str, u64); 7],
}

/// Checks a message.
pub(super) fn parse(wire: &v1::Outcomes) -> Result<Vec<Told>, Error> {
    if wire.endpoints.len() > ENDPOINTS_PER_SERVICE_MAX {
        return Err(Error::TooMany { endpoints: wire.endpoints.len() });
    }
    wire.endpoints.iter().map(endpoint).collect()
}

fn endpoint(wire: &v1::EndpointOutcomes) -> Result<Told, Error> {
    let address = Address::parse(&wire.address)?;
    let counts = [
        ("ok", wire.ok),
        ("caller", wire.caller),
        ("cancelled", wire.cancelled),
        ("overload", wire.overload),
        ("endpoint", wire.endpoint),
        ("deadline", wire.deadline),
        ("connect_failed", wire.connect_failed),
    ];
    if let Some((_, count)) = counts.iter().find(|(_, count)| *count > OUTCOME_COUNT_MAX) {
        return Err(Error::Absurd { address, count: *count });
    }
    Ok(Told {
        incarnation: wire.incarnation,
        outcomes: event::Outcomes {
            ok: wire.ok + wire.caller,
            // Not overload: an endpoint that says it is full is alive, and taking it out would fill the others.
            failed: wire.endpoint + wire.deadline + wire.connect_failed,
            suspect: wire.suspect,
            detail: printable(&wire.detail),
        },
        counts,
        address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_s_own_faults_and_overload_do_not_blame_the_endpoint() {
        let wire = v1::EndpointOutcomes {
            address: "a:1".into(),
            ok: 1,
            caller: 2,
            cancelled: 4,
            overload: 8,
            endpoint: 16,
            deadline: 32,
            connect_failed: 64,
            ..Default::default()
        };
        let told = endpoint(&wire).unwrap();
        let calls: u64 = told.counts.iter().map(|(_, count)| count).sum();
        assert_eq!((told.outcomes.ok, told.outcomes.failed, calls), (3, 112, 127));
    }

    #[test]
    fn absurd_counts_and_addresses_are_refused() {
        let told =
            |address: &str, ok| endpoint(&v1::EndpointOutcomes { address: address.into(), ok, ..Default::default() });
        assert!(told("a:1", u64::MAX).is_err());
        assert!(told("a", 1).is_err());
        assert!(told("a:1", 1).is_ok());
    }
}
