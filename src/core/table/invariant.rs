//! What every snapshot of a service promises to those who read it. Checked where the table becomes a snapshot: a broken
//! promise is a mistake in this crate, and the last good snapshot stays while it lasts.

use crate::{
    model::Version,
    snapshot::{Mode, ServiceSnapshot, State},
};

/// A promise that a new snapshot would break.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invariant {
    /// Streams and clients take a higher version for the newer list.
    #[error("its version fell from {held:?} to {given:?}")]
    VersionFell {
        /// The version of the snapshot before.
        held: Version,
        /// The version of this one.
        given: Version,
    },
    /// Replicas and searches rely on one order.
    #[error("its endpoints are not sorted, or one is there twice")]
    Unsorted,
    /// A weight is a promise of calls.
    #[error("endpoint {address} is {state:?} and has weight {weight}")]
    WeightWithoutOffer {
        /// Which endpoint.
        address: String,
        /// Its state.
        state: State,
        /// Its weight.
        weight: u32,
    },
    /// Silence never empties a list.
    #[error("it would offer nothing any more, without proof")]
    EmptiedWithoutProof,
}

/// Whether `new` may follow `old`.
pub(super) fn succeeds(old: Option<&ServiceSnapshot>, new: &ServiceSnapshot) -> Result<(), Invariant> {
    if let Some(old) = old.filter(|old| old.version > new.version) {
        return Err(Invariant::VersionFell { held: old.version, given: new.version });
    }
    if !new.endpoints.windows(2).all(|pair| pair[0].spec.address < pair[1].spec.address) {
        return Err(Invariant::Unsorted);
    }
    if let Some(wrong) = new.endpoints.iter().find(|e| e.weight > 0 && !e.state.is_offered()) {
        let address = wrong.spec.address.to_string();
        return Err(Invariant::WeightWithoutOffer { address, state: wrong.state, weight: wrong.weight });
    }
    let offered_before = old.is_some_and(|old| old.offered().next().is_some());
    if offered_before && new.offered().next().is_none() && new.mode != Mode::Empty && !new.settling {
        return Err(Invariant::EmptiedWithoutProof);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ServiceConfig,
        event::Event,
        model::{Address, EndpointSpec, ServiceName, SourceId, Timestamp},
        table::Table,
    };

    fn service(endpoints: &[&str]) -> ServiceSnapshot {
        let mut table = Table::new(1, ServiceConfig::default(), Timestamp(0));
        let name = ServiceName::parse("greeter").unwrap();
        let specs = endpoints.iter().map(|at| EndpointSpec::at(Address::parse(at).unwrap())).collect();
        let source = SourceId::parse("file").unwrap();
        table
            .apply(
                Event::EndpointsListed { source, service: name.clone(), endpoints: specs, detail: String::new() },
                Timestamp(0),
            )
            .unwrap();
        (*table.publish(Timestamp(0)).unwrap().services[&name]).clone()
    }

    #[test]
    fn a_snapshot_as_the_table_makes_it_may_follow_itself() {
        let service = service(&["a:1", "b:1"]);
        assert_eq!(succeeds(None, &service), Ok(()));
        assert_eq!(succeeds(Some(&service), &service), Ok(()));
    }

    #[test]
    fn a_version_never_falls() {
        let new = service(&["a:1"]);
        let mut old = new.clone();
        old.version.sequence += 1;
        assert!(matches!(succeeds(Some(&old), &new), Err(Invariant::VersionFell { .. })));
    }

    #[test]
    fn endpoints_stand_in_order_and_once() {
        let mut swapped = service(&["a:1", "b:1"]);
        swapped.endpoints.swap(0, 1);
        assert_eq!(succeeds(None, &swapped), Err(Invariant::Unsorted));
        let mut doubled = service(&["a:1"]);
        doubled.endpoints.push(doubled.endpoints[0].clone());
        assert_eq!(succeeds(None, &doubled), Err(Invariant::Unsorted));
    }

    #[test]
    fn who_is_not_offered_has_no_weight() {
        let mut service = service(&["a:1", "b:1"]);
        service.endpoints[0].state = State::Draining;
        assert!(matches!(succeeds(None, &service), Err(Invariant::WeightWithoutOffer { .. })));
    }

    #[test]
    fn a_list_becomes_empty_with_proof_alone() {
        let old = service(&["a:1"]);
        let mut new = old.clone();
        new.endpoints[0].state = State::Excluded;
        new.endpoints[0].weight = 0;
        assert_eq!(succeeds(Some(&old), &new), Err(Invariant::EmptiedWithoutProof));
        new.mode = Mode::Empty;
        assert_eq!(succeeds(Some(&old), &new), Ok(()));
    }
}
