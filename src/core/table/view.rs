//! How a service looks from outside: mode, states, reasons, weights.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    endpoint::Endpoint,
    health::Verdict,
    service::Service,
    words::{Effective, Words},
};
use crate::{
    ceiling,
    event::Override,
    limits::WEIGHT_MAX,
    model::{SourceId, Timestamp, Version},
    snapshot::{Code, EndpointSnapshot, LeaseSnapshot, Mode, Reason, ServiceSnapshot, SourceSnapshot, State},
};

/// What a service is seen with.
pub(super) struct Light<'a> {
    pub(super) words: Option<&'a Words>,
    pub(super) sources: &'a BTreeMap<SourceId, SourceSnapshot>,
    pub(super) version: Version,
    pub(super) now: Timestamp,
}

/// The service as it is now. Where nothing changed that a list could show, the version of the snapshot before stays.
pub(super) fn view(service: &Service, light: &Light<'_>) -> ServiceSnapshot {
    let now = light.now;
    let faces: Vec<Face<'_>> = service.endpoints.values().map(|endpoint| Face::of(endpoint, light)).collect();
    let mut stance = stance(service, &faces, now);
    if stance.mode == Mode::Empty && service.is_settling(now) && service.endpoints.is_empty() {
        // Nobody has turned up yet, which proves nothing.
        stance = Stance::new(Mode::Normal, String::new());
    }
    let mut endpoints: Vec<EndpointSnapshot> =
        faces.into_iter().map(|face| face.snapshot(service, &stance, light)).collect();
    cap(&mut endpoints);
    let Stance { mode, mut note, .. } = stance;
    let pending = endpoints.iter().filter(|e| e.state == State::Pending).count();
    let nothing_offered = endpoints.iter().all(|e| !e.state.is_offered());
    let settling = service.is_settling(now) || (nothing_offered && pending > 0);
    if note.is_empty() {
        note = remark(service, &endpoints, settling);
    }
    let before = service.snapshot.as_deref();
    keep_since(&mut endpoints, before);
    let mut after = ServiceSnapshot {
        name: service.name.clone(),
        version: light.version,
        changed_at: now,
        config: Arc::clone(&service.config),
        mode,
        note,
        settling,
        stale: service.is_stale(now),
        fleet: service.gauge.fleet(),
        help: service.zones.help.clone(),
        endpoints,
    };
    if let Some(before) = before.filter(|before| shows_the_same(before, &after)) {
        after.version = before.version;
        after.changed_at = before.changed_at;
    }
    after
}

/// No capacity is above the ceiling of its priority. Exact for each snapshot, since it goes by those who are offered in it; lists
/// hold each to the ceiling of its own tier besides.
fn cap(endpoints: &mut [EndpointSnapshot]) {
    let mut offered: Vec<_> = endpoints.iter_mut().filter(|e| e.state.is_offered()).collect();
    offered.sort_by_key(|e| e.spec.priority);
    for tier in offered.chunk_by_mut(|a, b| a.spec.priority == b.spec.priority) {
        let ceiling = ceiling::of(tier.iter().map(|e| (e.spec.weight.into(), e.capacity_milli)));
        tier.iter_mut().for_each(|e| e.capacity_milli = e.capacity_milli.min(ceiling));
    }
}

/// An endpoint before the mode of its service is known.
struct Face<'a> {
    endpoint: &'a Endpoint,
    words: Effective,
    state: State,
}

impl<'a> Face<'a> {
    fn of(endpoint: &'a Endpoint, light: &Light<'_>) -> Self {
        let words = light.words.map(|words| words.effective(&endpoint.spec)).unwrap_or_default();
        let state = if words.disabled.is_some() {
            State::Disabled
        } else if words.drained.is_some() || endpoint.is_leaving() {
            State::Draining
        } else {
            match endpoint.health.verdict {
                Verdict::New if !endpoint.trusted => State::Pending,
                Verdict::Down(..) => State::Excluded,
                Verdict::New | Verdict::Up if endpoint.outlier.is_out() => State::Excluded,
                Verdict::New | Verdict::Up if endpoint.doubted || endpoint.withdrawn_at.is_some() => State::Restored,
                Verdict::New | Verdict::Up => State::Eligible,
            }
        };
        Self { endpoint, words, state }
    }

    fn snapshot(self, service: &Service, stance: &Stance, light: &Light<'_>) -> EndpointSnapshot {
        let endpoint = self.endpoint;
        let restored = stance.restores && self.state == State::Excluded && is_counted(endpoint, service);
        let state = if restored { State::Restored } else { self.state };
        let share = endpoint.slow_start_permille(service.config.slow_start, light.now);
        let percent = self.words.weight_percent.as_ref().map_or(100, |(percent, _)| *percent);
        // In a panic everybody is needed as a whole.
        let kept = if stance.restores { 1000 } else { endpoint.outlier.share_permille() };
        let weight = if state.is_offered() { weight(endpoint, percent, share * kept / 1000) } else { 0 };
        EndpointSnapshot {
            spec: endpoint.spec.clone(),
            state,
            reasons: reasons(endpoint, &self.words, service, stance, state, share, light),
            weight,
            capacity_milli: service.capacity_milli(endpoint),
            load_permille: endpoint.load.published_permille(),
            utilization_permille: endpoint.load.utilization_permille(),
            seats: endpoint.seats.clone(),
            in_flight: endpoint.load.in_flight(),
            calls_per_second_milli: (endpoint.load.calls_per_second() * 1000.0) as u64,
            check: endpoint.health.check.clone(),
            check_wanted: endpoint.health.wanted,
            lease: endpoint.registration.as_ref().map(|registration| LeaseSnapshot {
                renewed_at: registration.renewed_at,
                reported_at: endpoint.load.reported_at(),
                connected: registration.connected,
                restored: registration.restored,
            }),
            sources: sources(endpoint),
            overrides: self.words.words(),
            joined_at: endpoint.joined_at,
        }
    }
}

/// Weight of the spec, times operator's percent and slow start; at least 1, unless an operator said 0, and at most what sums
/// in any client bear.
fn weight(endpoint: &Endpoint, percent: u32, share_permille: u64) -> u32 {
    let weight = u64::from(endpoint.spec.weight) * u64::from(percent) * share_permille / (100 * 1000);
    let least = u64::from(percent > 0);
    weight.clamp(least, u64::from(WEIGHT_MAX)) as u32
}

fn sources(endpoint: &Endpoint) -> Vec<SourceId> {
    let registration = endpoint.registration.as_ref().map(|_| SourceId::registration());
    endpoint.listed_by.iter().cloned().chain(registration).collect()
}

/// Whether an endpoint's failing says something about the service. Where none was ever found usable, all do: better to
/// offer what nobody could check than nothing.
fn is_counted(endpoint: &Endpoint, service: &Service) -> bool {
    endpoint.trusted || !service.endpoints.values().any(|e| e.trusted && !e.is_leaving())
}

/// How a service is taken as a whole.
struct Stance {
    mode: Mode,
    /// Whether those that are out are offered all the same.
    restores: bool,
    note: String,
}

impl Stance {
    fn new(mode: Mode, note: String) -> Self {
        Self { mode, restores: false, note }
    }
}

fn stance(service: &Service, faces: &[Face<'_>], now: Timestamp) -> Stance {
    let counted: Vec<&Face<'_>> = faces
        .iter()
        .filter(|face| match face.state {
            State::Eligible | State::Restored | State::Excluded => is_counted(face.endpoint, service),
            State::Draining | State::Disabled | State::Pending => false,
        })
        .collect();
    if counted.is_empty() {
        return nothing_left(service, faces);
    }
    let lease = service.config.lease;
    let gone = |face: &&Face<'_>| {
        let silent = face.state == State::Excluded && face.endpoint.lease_expired(lease, now);
        face.endpoint.withdrawn_at.is_some() || silent
    };
    let all = counted.len();
    let usable = counted.iter().filter(|face| face.state != State::Excluded).count();
    let threshold = service.config.panic_threshold_percent;
    let is_below = usable * 100 < all * threshold as usize;
    // A threshold of 0 is no leave to offer nobody.
    let restores = is_below || usable == 0;
    if counted.iter().all(gone) {
        let note = format!("all {all} endpoints seem gone, without proof: the last good list stays");
        return Stance { mode: Mode::LastGood, restores, note };
    }
    if restores {
        let below = match is_below {
            true => format!(" ({} %), below the panic threshold of {threshold} %", usable * 100 / all),
            false => String::new(),
        };
        let note = format!("{usable} of {all} usable{below}: health is ignored");
        return Stance { mode: Mode::Panic, restores, note };
    }
    if service.judge.doubts {
        // Those that nobody offers yet are doubted like the others.
        let doubted = faces.iter().filter(|face| face.endpoint.doubted).count();
        let all = all + faces.iter().filter(|face| face.state == State::Pending).count();
        let note = format!(
            "checks of {doubted} of {all} endpoints fail at once: the balancer doubts itself, the last good list stays"
        );
        // What clients confirmed stays out.
        return Stance::new(Mode::LastGood, note);
    }
    if counted.iter().all(|face| face.state == State::Excluded || face.endpoint.withdrawn_at.is_some()) {
        let note = format!("the only {usable} that serve seem gone, without proof: they stay");
        return Stance::new(Mode::LastGood, note);
    }
    Stance::new(Mode::Normal, String::new())
}

fn nothing_left(service: &Service, faces: &[Face<'_>]) -> Stance {
    let out = faces.iter().filter(|face| face.state.is_named_out()).count();
    let pending = faces.len() - out;
    match (out, pending) {
        (_, 1..) => Stance::new(Mode::Normal, format!("{pending} new, not checked yet")),
        (0, 0) if service.endpoints.is_empty() => Stance::new(Mode::Empty, "no endpoint is known".into()),
        _ => Stance::new(Mode::Empty, format!("all {out} endpoints are drained, disabled or gone by their own word")),
    }
}

/// What there is to say about a list that is not in a mode of its own.
fn remark(service: &Service, endpoints: &[EndpointSnapshot], settling: bool) -> String {
    let mut out: BTreeMap<Code, usize> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|e| !e.state.is_offered()) {
        if let Some(reason) = endpoint.reasons.first() {
            *out.entry(reason.code).or_default() += 1;
        }
    }
    let mut parts: Vec<String> = out.iter().map(|(code, count)| format!("{count} {}", code.name())).collect();
    if !parts.is_empty() {
        parts = vec![format!("not offered: {}", parts.join(", "))];
    }
    let awaited: Vec<&str> = service.awaited().map(SourceId::as_str).collect();
    if !awaited.is_empty() {
        parts.push(format!("settling: no answer yet from {}", awaited.join(", ")));
    } else if settling {
        parts.push("settling after a start: endpoints may still turn up".into());
    }
    parts.join("; ")
}

fn reasons(
    endpoint: &Endpoint,
    words: &Effective,
    service: &Service,
    stance: &Stance,
    state: State,
    share_permille: u64,
    light: &Light<'_>,
) -> Vec<Reason> {
    let now = light.now;
    let mut reasons: Vec<(Code, String)> = Vec::new();
    let mut say = |code: Code, detail: &str| reasons.push((code, detail.to_owned()));
    if let Some(word) = &words.disabled {
        say(Code::AdminDisabled, &said(word));
    }
    if let Some(word) = &words.drained {
        say(Code::AdminDrain, &said(word));
    }
    if endpoint.departed_at.is_some() {
        say(Code::SelfDraining, "it left by its own word");
    } else if endpoint.draining {
        say(Code::SelfDraining, "");
    }
    match &endpoint.health.verdict {
        Verdict::Down(code, detail) => say(*code, detail),
        Verdict::New if state == State::Pending && endpoint.health.failure().is_none() => {
            say(Code::HealthPending, "not checked yet");
        }
        Verdict::New | Verdict::Up => {
            if let Some((code, detail)) = endpoint.health.failure() {
                say(*code, detail);
            }
        }
    }
    // In a panic one that comes back has its whole share.
    let is_less = !stance.restores || endpoint.outlier.is_out();
    if let Some(why) = endpoint.outlier.words().filter(|_| is_less) {
        say(Code::OutlierEjected, &why);
    }
    if endpoint.doubted {
        say(Code::ChecksDoubted, "too many checks fail at once");
    }
    if endpoint.health.clients_fail(now) {
        say(Code::ClientFailures, "clients see its calls fail or stay unanswered");
    }
    if endpoint.withdrawn_at.is_some() {
        say(Code::DiscoveryRemoved, "its source no longer names it");
    }
    if endpoint.lease_expired(service.config.lease, now) {
        say(Code::LeaseExpired, "its registration was not renewed");
    } else if endpoint.registration.as_ref().is_some_and(|r| r.restored) {
        say(Code::DiscoveryStale, "not heard of since the balancer started");
    } else if endpoint.is_late() {
        say(Code::ReportStale, "no report for two periods");
    } else if endpoint.registration.is_some() && endpoint.load.sequence().is_none() {
        say(Code::NoReportYet, "");
    }
    match (state, stance.mode) {
        (State::Restored, Mode::Panic) => say(Code::PanicRestored, "too few others are usable"),
        (State::Restored, Mode::LastGood) if !endpoint.doubted => say(Code::LastEndpoint, "nothing better is known"),
        _ => {}
    }
    if state.is_offered() && share_permille < 1000 {
        say(Code::WarmingUp, &format!("{} % of its share", share_permille / 10));
    }
    if let Some((percent, word)) = &words.weight_percent {
        say(Code::AdminWeight, &format!("{percent} %, {}", said(word)));
    }
    if endpoint.load.published_permille() >= 1000 {
        say(Code::Overloaded, "full by its own account");
    }
    let is_stale = |source: &SourceId| {
        service.silent.contains(source) || light.sources.get(source).is_some_and(|s| s.stale.is_some())
    };
    if !endpoint.listed_by.is_empty() && endpoint.registration.is_none() && endpoint.listed_by.iter().all(is_stale) {
        say(Code::DiscoveryStale, "its source is silent");
    }
    reasons.into_iter().map(|(code, detail)| Reason { code, detail, since: now }).collect()
}

/// Why an operator spoke, and who it was.
fn said(word: &Override) -> String {
    match word.reason.as_str() {
        "" => format!("by {}", word.actor),
        reason => format!("{reason}, by {}", word.actor),
    }
}

/// A reason that held in the snapshot before has held since then.
fn keep_since(endpoints: &mut [EndpointSnapshot], before: Option<&ServiceSnapshot>) {
    let Some(before) = before else { return };
    for endpoint in endpoints {
        let Some(old) = before.endpoint(&endpoint.spec.address) else { continue };
        for reason in &mut endpoint.reasons {
            if let Some(held) = old.reasons.iter().find(|held| held.code == reason.code) {
                reason.since = held.since;
            }
        }
    }
}

/// Whether no list could tell the two apart.
fn shows_the_same(a: &ServiceSnapshot, b: &ServiceSnapshot) -> bool {
    let same = |a: &EndpointSnapshot, b: &EndpointSnapshot| {
        a.spec == b.spec
            && a.state == b.state
            && a.weight == b.weight
            && a.capacity_milli == b.capacity_milli
            && a.seats == b.seats
            && a.load_permille == b.load_permille
            && a.overrides == b.overrides
            && a.reasons.iter().map(|r| (r.code, &r.detail)).eq(b.reasons.iter().map(|r| (r.code, &r.detail)))
    };
    (a.mode, &a.note, a.settling, a.stale, &a.config) == (b.mode, &b.note, b.settling, b.stale, &b.config)
        && a.help == b.help
        && a.endpoints.len() == b.endpoints.len()
        && a.endpoints.iter().zip(&b.endpoints).all(|(a, b)| same(a, b))
}
