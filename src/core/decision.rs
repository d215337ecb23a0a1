//! What changed from one snapshot of a service to the next, in words: the decision log.

use crate::{
    model::{Address, ServiceName, Version},
    snapshot::{Reason, ServiceSnapshot},
};

/// What a decision is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An endpoint's state.
    State,
    /// The mode of a service.
    Mode,
    /// An endpoint's weight.
    Weight,
    /// A new endpoint.
    Added,
    /// An endpoint no longer known.
    Removed,
}

impl Kind {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::State => "STATE",
            Self::Mode => "MODE",
            Self::Weight => "WEIGHT",
            Self::Added => "ADDED",
            Self::Removed => "REMOVED",
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// In which service.
    pub service: ServiceName,
    /// Of which endpoint; `None` for the service itself.
    pub address: Option<Address>,
    /// Of what.
    pub kind: Kind,
    /// "ELIGIBLE -> EXCLUDED".
    pub change: String,
    /// Why.
    pub reasons: Vec<Reason>,
    /// From which version on.
    pub version: Version,
}

/// Everything that changed, the mode of the service first, then endpoints by address.
pub fn between(before: Option<&ServiceSnapshot>, after: &ServiceSnapshot) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let decision = |address: Option<&Address>, kind, change, reasons: &[Reason]| Decision {
        service: after.name.clone(),
        address: address.cloned(),
        kind,
        change,
        reasons: reasons.to_vec(),
        version: after.version,
    };
    if let Some(before) = before
        && before.mode != after.mode
    {
        let change = format!("{} -> {}: {}", before.mode.name(), after.mode.name(), after.note);
        decisions.push(decision(None, Kind::Mode, change, &[]));
    }
    for endpoint in &after.endpoints {
        let address = Some(&endpoint.spec.address);
        match before.and_then(|b| b.endpoint(&endpoint.spec.address)) {
            None => decisions.push(decision(address, Kind::Added, endpoint.state.name().into(), &endpoint.reasons)),
            Some(old) if old.state != endpoint.state => {
                let change = format!("{} -> {}", old.state.name(), endpoint.state.name());
                decisions.push(decision(address, Kind::State, change, &endpoint.reasons));
            }
            Some(old) if old.weight != endpoint.weight => {
                let change = format!("{} -> {}", old.weight, endpoint.weight);
                decisions.push(decision(address, Kind::Weight, change, &endpoint.reasons));
            }
            Some(_) => {}
        }
    }
    for old in before.iter().flat_map(|b| &b.endpoints) {
        if after.endpoint(&old.spec.address).is_none() {
            let address = Some(&old.spec.address);
            decisions.push(decision(address, Kind::Removed, old.state.name().into(), &old.reasons));
        }
    }
    decisions
}
