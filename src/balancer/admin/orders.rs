//! Overrides that operators set: what they mean, what they would do, and the order itself.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use lookaside_core::{
    event::{Action, Override, Scope},
    model::{ServiceName, Version, printable},
    policy,
    snapshot::{Mode, Snapshot, State},
    table::Effect,
};
use lookaside_proto::v1::{self, set_override_response};
use tonic::{Code, Status};

use super::{Parts, views::count};
use crate::{
    convert::{self, refused},
    driver::{self, unix_ms},
    telemetry,
};

/// Sets an override on every service that it means, or says what it would do.
pub(super) async fn set(
    parts: &Parts,
    request: v1::SetOverrideRequest,
    peer: Option<SocketAddr>,
) -> Result<v1::SetOverrideResponse, Status> {
    let wire = request.r#override.unwrap_or_default();
    let action = convert::action(&wire)?;
    let done = order(parts, &wire, action, request.for_ms, request.dry_run, peer).await;
    let result = match (&done, request.dry_run) {
        (Ok(_), true) => "previewed",
        (Ok(_), false) => "done",
        (Err(_), _) => "refused",
    };
    metrics::counter!(telemetry::ADMIN_ACTIONS_TOTAL, "action" => name(action), "result" => result).increment(1);
    done
}

async fn order(
    parts: &Parts,
    wire: &v1::Override,
    action: Action,
    for_ms: u64,
    dry_run: bool,
    peer: Option<SocketAddr>,
) -> Result<v1::SetOverrideResponse, Status> {
    let scope = convert::scope(wire.scope.as_ref())?;
    let set_at_unix_ms = unix_ms();
    let words = meant(&parts.snapshot(), &wire.service, &scope)?.into_iter().map(|service| Override {
        service,
        scope: scope.clone(),
        action,
        reason: printable(&wire.reason),
        actor: peer.map(|peer| peer.ip().to_string()).unwrap_or_default(),
        set_at_unix_ms,
        replica: parts.node.clone(),
        expires_at_unix_ms: if for_ms == 0 { 0 } else { set_at_unix_ms.saturating_add(for_ms) },
        remaining: (for_ms > 0).then(|| Duration::from_millis(for_ms)),
    });
    let words: Vec<_> = words.collect();
    // An order that one service refuses is refused whole, and one on many services is carried out at once.
    let effects: Vec<_> = if dry_run {
        let effects = parts.driver.preview(words).await.map_err(|error| status(&error))?;
        effects.into_iter().map(|effect| (effect, None)).collect()
    } else {
        for word in &words {
            tracing::info!(
                service = %word.service, scope = ?word.scope, action = name(action), reason = word.reason, actor = word.actor,
                "an operator's order"
            );
        }
        let effects = parts.driver.order(words).await.map_err(|error| status(&error))?;
        effects.into_iter().map(|(effect, version)| (effect, Some(version))).collect()
    };
    let mut clients = BTreeMap::<_, usize>::new();
    for view in parts.clients.views() {
        *clients.entry(view.service).or_default() += 1;
    }
    let say = |(effect, version): (Effect, _)| {
        let clients = clients.get(&effect.after.name).copied().unwrap_or_default();
        say(action, &effect, clients, version)
    };
    Ok(v1::SetOverrideResponse { effects: effects.into_iter().map(say).collect() })
}

/// The services that an order is about.
fn meant(snapshot: &Snapshot, name: &str, scope: &Scope) -> Result<Vec<ServiceName>, Status> {
    if let Some(service) = Parts::chosen(snapshot, name)? {
        return Ok(vec![service]);
    }
    let (services, text): (Vec<_>, _) = match scope {
        Scope::Address(address) => {
            let having = snapshot.services.values().filter(|service| service.endpoint(address).is_some());
            (having.map(|service| service.name.clone()).collect(), address.as_str())
        }
        Scope::Locality(locality) => {
            let having = snapshot.services.values();
            let having = having.filter(|service| service.endpoints.iter().any(|e| e.spec.locality.is_within(locality)));
            (having.map(|service| service.name.clone()).collect(), locality.as_str())
        }
        Scope::Service => {
            let words = "an order on a whole service names the service";
            return Err(refused(Code::InvalidArgument, "SERVICE_MISSING", words, &[]));
        }
    };
    if services.is_empty() {
        let words = format!("no service has an endpoint at {text}");
        return Err(refused(Code::NotFound, "ENDPOINT_UNKNOWN", words, &[("scope", text)]));
    }
    Ok(services)
}

fn status(error: &driver::Error) -> Status {
    match error {
        driver::Error::Refused(refusal) => convert::refusal(refusal),
        driver::Error::Stopped => Status::unavailable("balancer is draining"),
    }
}

fn say(action: Action, effect: &Effect, clients: usize, version: Option<Version>) -> set_override_response::Effect {
    let (after, eligible) = (&effect.after, effect.eligible());
    let mut others = Others::of(effect).words();
    if after.config.locality.prefer_zone {
        // In zones it depends on who calls from where.
        others = others.map(|others| format!("of clients without a locality, {others}"));
    }
    set_override_response::Effect {
        service: after.name.to_string(),
        addresses: effect.addresses.iter().map(ToString::to_string).collect(),
        eligible_before: count(eligible[0]),
        eligible_after: count(eligible[1]),
        endpoints: count(after.endpoints.iter().filter(|e| e.state != State::Pending).count()),
        mode_after: convert::mode(after.mode).into(),
        clients: count(clients),
        summary: summary(action, eligible, after.mode, others),
        version: version.map(convert::version),
    }
}

/// What becomes of the calls of those that an order is not about.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Others {
    /// The least and the most by which the share of one changes, as factors; `None` where none has calls before and after.
    factors: Option<[f64; 2]>,
    /// How many have a share that had none, and had one that have none.
    begin: usize,
    end: usize,
}

impl Others {
    fn of(effect: &Effect) -> Self {
        let [before, after] = [&effect.before, &effect.after].map(|service| {
            let mut shares = policy::shares(service);
            // They are in order: an order may be about thousands.
            shares.retain(|address, _| effect.addresses.binary_search(address).is_err());
            shares
        });
        let factors = before.iter().filter_map(|(address, share)| Some(after.get(address)? / share));
        let factors: Vec<f64> = factors.collect();
        let range = |first: f64| {
            factors.iter().fold([first; 2], |[least, most], factor| [least.min(*factor), most.max(*factor)])
        };
        Self {
            factors: factors.first().copied().map(range),
            begin: after.len() - factors.len(),
            end: before.len() - factors.len(),
        }
    }

    /// In words; `None` if there is nothing to say.
    fn words(self) -> Option<String> {
        let factors = self.factors.map(|factors| match factors.map(|factor| (factor - 1.0) * 100.0) {
            [least, most] if most - least >= 0.05 => {
                format!("calls of the others change by {least:+.1} to {most:+.1} %")
            }
            [percent, _] if percent >= 0.05 => format!("each of the others gets {percent:.1} % more calls"),
            [percent, _] if percent <= -0.05 => format!("each of the others gets {:.1} % fewer calls", -percent),
            _ => "each of the others gets as many calls as before".to_owned(),
        });
        let begin = (self.begin > 0).then(|| format!("{} that got none get calls", self.begin));
        let end = (self.end > 0).then(|| format!("{} that got calls get none", self.end));
        let words: Vec<String> = factors.into_iter().chain(begin).chain(end).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// The effect in words: how many are offered before and after, in which mode, and what becomes of the others.
fn summary(action: Action, [before, after]: [usize; 2], mode_after: Mode, others: Option<String>) -> String {
    let change = match action {
        Action::Weight(percent) => {
            let others = others.map(|others| format!("; {others}")).unwrap_or_default();
            let nobody = if after == 0 && before > 0 { "; warning: nobody gets calls any more" } else { "" };
            format!("weight becomes {percent} % of the configured one{others}{nobody}")
        }
        Action::Drain | Action::Undrain | Action::Disable | Action::Enable if before == after => {
            "as many endpoints are offered as before".to_owned()
        }
        Action::Drain | Action::Undrain | Action::Disable | Action::Enable if after == 0 => {
            "no endpoint is offered any more".to_owned()
        }
        Action::Drain | Action::Undrain | Action::Disable | Action::Enable if before == 0 => {
            format!("{after} endpoints are offered again")
        }
        Action::Drain | Action::Undrain | Action::Disable | Action::Enable => {
            others.unwrap_or_else(|| format!("{after} endpoints are offered, before it were {before}"))
        }
    };
    match mode_after {
        Mode::Normal => change,
        Mode::Panic => format!("{change}; warning: PANIC, too few are usable and health is ignored"),
        Mode::LastGood => format!("{change}; warning: LAST_GOOD, the list is kept against the evidence"),
        Mode::Empty => format!("{change}; warning: EMPTY, calls of this service will fail"),
    }
}

fn name(action: Action) -> &'static str {
    match action {
        Action::Drain => "drain",
        Action::Undrain => "undrain",
        Action::Disable => "disable",
        Action::Enable => "enable",
        Action::Weight(_) => "weight",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_told_what_an_order_costs_the_others() {
        let others = |least, most| Others { factors: Some([least, most]), begin: 0, end: 0 };
        let told = |action, others: Others| summary(action, [6, 5], Mode::Normal, others.words());
        assert_eq!(told(Action::Drain, others(1.2, 1.2)), "each of the others gets 20.0 % more calls");
        assert_eq!(told(Action::Undrain, others(0.75, 0.75)), "each of the others gets 25.0 % fewer calls");
        assert_eq!(told(Action::Drain, others(1.0, 1.333)), "calls of the others change by +0.0 to +33.3 %");
        assert_eq!(
            told(Action::Drain, Others { begin: 4, ..others(0.5, 0.5) }),
            "each of the others gets 50.0 % fewer calls, 4 that got none get calls"
        );
        let none = Others { factors: None, begin: 0, end: 0 };
        assert_eq!(told(Action::Drain, none), "5 endpoints are offered, before it were 6");
        assert_eq!(
            told(Action::Weight(50), others(1.1, 1.1)),
            "weight becomes 50 % of the configured one; each of the others gets 10.0 % more calls"
        );
        let nobody = summary(Action::Weight(0), [6, 0], Mode::Normal, None);
        assert_eq!(nobody, "weight becomes 0 % of the configured one; warning: nobody gets calls any more");
        assert!(summary(Action::Drain, [1, 0], Mode::Empty, None).contains("EMPTY"));
        assert!(summary(Action::Undrain, [0, 1], Mode::Normal, None).contains("offered again"));
    }
}
