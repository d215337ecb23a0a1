//! Failover tiers of one cohort: configured priorities, each split into the client's own zone and the others where the
//! service prefers zones. The best tier serves alone while enough of it is usable; otherwise the next one helps.

use std::collections::BTreeMap;

use crate::{
    model::Cohort,
    snapshot::{Code, EndpointSnapshot, Help, Mode, ServiceSnapshot, State},
};

/// Offered endpoints by tier, best first.
pub(super) struct Tiers<'a> {
    /// After failover: `chosen[0]` is who serves now.
    pub(super) chosen: Vec<Vec<&'a EndpointSnapshot>>,
    /// Why other zones serve beside the client's own, when they do.
    pub(super) failover: Option<String>,
    best_priority: u32,
    /// The client's zone, and who helps it since it is full.
    help: Option<(&'a str, &'a Help)>,
}

/// Configured priority, then whether it is outside the client's zone.
type Rank = (u32, bool);

impl<'a> Tiers<'a> {
    /// The tiers of a cohort.
    pub(super) fn of(service: &'a ServiceSnapshot, cohort: &'a Cohort) -> Self {
        let mut ranks: BTreeMap<Rank, Vec<&EndpointSnapshot>> = BTreeMap::new();
        for endpoint in service.endpoints.iter().filter(|e| counts(e.state)) {
            ranks.entry(rank(service, cohort, endpoint)).or_default().push(endpoint);
        }
        let mut tiers = Self { chosen: Vec::new(), failover: None, best_priority: u32::MAX, help: None };
        let mut weak: Option<Rank> = None;
        for (rank, members) in ranks {
            let usable = members.iter().filter(|e| is_usable(e.state, service.mode)).count();
            let enough = usable * 100 >= members.len() * service.config.locality.failover_below_percent as usize;
            let offered: Vec<_> = members.iter().copied().filter(|e| e.state.is_offered()).collect();
            if offered.is_empty() {
                if !rank.1 && is_split(service, cohort) {
                    // The client's own zone has endpoints, and none of them is offered.
                    tiers.failover = Some(format!("zone {} has no usable endpoint", cohort.locality.zone()));
                }
                continue;
            }
            match (weak.take(), tiers.chosen.last_mut()) {
                (Some(before), Some(last)) => {
                    last.extend(offered);
                    if before.0 == rank.0 {
                        tiers.failover = Some(format!("zone {} is too weak, other zones help", cohort.locality.zone()));
                    }
                }
                _ => tiers.chosen.push(offered),
            }
            tiers.best_priority = tiers.best_priority.min(rank.0);
            if !enough && tiers.chosen.len() == 1 {
                weak = Some(rank);
            }
        }
        tiers.get_help(service, cohort);
        tiers
    }

    /// Where the client's zone serves, but cannot take all that its clients call, endpoints of others join it.
    fn get_help(&mut self, service: &'a ServiceSnapshot, cohort: &'a Cohort) {
        let zone = cohort.locality.zone();
        let Some(help) = service.help.iter().find(|(at, _)| at.as_str() == zone).map(|(_, help)| help) else { return };
        let Some((first, lower)) = self.chosen.split_first_mut() else { return };
        if self.failover.is_some() || !is_split(service, cohort) {
            return;
        }
        let priority = self.best_priority;
        let helps = |e: &EndpointSnapshot| e.spec.priority == priority && help.of(e.spec.locality.zone()).is_some();
        for tier in lower {
            first.extend(tier.extract_if(.., |e| helps(e)));
        }
        self.chosen.retain(|tier| !tier.is_empty());
        self.help = Some((zone, help));
        self.failover = Some(format!("zone {zone} is full, other zones help"));
    }

    /// The part of its weight that an endpoint has in the best tier, thousandths; `None` if it is at home there.
    pub(super) fn help_milli(&self, endpoint: &EndpointSnapshot) -> Option<u32> {
        let (zone, help) = self.help?;
        let at = endpoint.spec.locality.zone();
        if at == zone { None } else { help.of(at) }
    }

    /// Why an offered endpoint stands in a lower tier.
    pub(super) fn why_lower(&self, endpoint: &EndpointSnapshot) -> Code {
        if endpoint.spec.priority > self.best_priority { Code::PriorityNotPreferred } else { Code::ZoneNotPreferred }
    }
}

/// Those that tell how strong a tier is: who drains or is new is no sign of weakness.
fn counts(state: State) -> bool {
    match state {
        State::Eligible | State::Restored | State::Excluded => true,
        State::Draining | State::Disabled | State::Pending => false,
    }
}

/// Whether an endpoint makes its tier strong. Where the balancer doubts itself or lacks proof, those that it keeps are as
/// good as they were; in PANIC it keeps everybody, which says nothing.
fn is_usable(state: State, mode: Mode) -> bool {
    match state {
        State::Eligible => true,
        State::Restored => mode != Mode::Panic,
        State::Excluded | State::Draining | State::Disabled | State::Pending => false,
    }
}

fn is_split(service: &ServiceSnapshot, cohort: &Cohort) -> bool {
    service.config.locality.prefer_zone && !cohort.locality.as_str().is_empty()
}

fn rank(service: &ServiceSnapshot, cohort: &Cohort, endpoint: &EndpointSnapshot) -> Rank {
    let elsewhere = is_split(service, cohort) && endpoint.spec.locality.zone() != cohort.locality.zone();
    (endpoint.spec.priority, elsewhere)
}
