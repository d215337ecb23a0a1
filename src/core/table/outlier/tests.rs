//! What ejections cost the table; what they do is in `tests/scenarios/`.

use super::*;
use crate::{
    config::ServiceConfig,
    event::{Action, CheckOutcome, Event, Override, Scope},
    hash,
    model::{ClientId, EndpointSpec, Locality, Peer, ServiceName, SourceId},
    table::Table,
};

const ENDPOINTS: u64 = 10;

fn name() -> ServiceName {
    ServiceName::parse("greeter").unwrap()
}

fn address(at: u64) -> Address {
    Address::parse(&format!("10.0.0.{at}:1")).unwrap()
}

fn table() -> Table {
    let now = Timestamp(0);
    let mut table = Table::new(1, ServiceConfig::default(), now);
    let endpoints = (0..ENDPOINTS).map(|at| EndpointSpec::at(address(at))).collect();
    let source = SourceId::parse("file").unwrap();
    let listed = Event::EndpointsListed { source, service: name(), endpoints, detail: String::new() };
    table.apply(listed, now).unwrap();
    for at in 0..ENDPOINTS {
        let checked = Event::Checked { service: name(), address: address(at), outcome: CheckOutcome::Passed };
        table.apply(checked, now).unwrap();
    }
    table.publish(now);
    table
}

/// Ten clients have called each endpoint a thousand times in ten seconds, and all went well.
fn table_of_thousands_of_good_calls() -> Table {
    let mut table = table();
    for ms in (1_000..11_000).step_by(100) {
        for at in 0..ENDPOINTS {
            let outcomes = Outcomes { ok: 10, ..Outcomes::default() };
            tells_of(&mut table, ms / 100 % 10, at, outcomes, Timestamp(ms * 1_000));
        }
    }
    table
}

fn tells(table: &mut Table, client: u64, at: u64, failed: u64, now: Timestamp) {
    tells_of(table, client, at, Outcomes { failed, ..Outcomes::default() }, now);
}

fn tells_of(table: &mut Table, client: u64, at: u64, outcomes: Outcomes, now: Timestamp) {
    let id = ClientId::parse(&format!("web-{client}")).unwrap();
    let client = Client { id, peer: Peer(client), locality: Locality::unknown() };
    table.apply(Event::CallsEnded { client, service: name(), address: address(at), outcomes }, now).unwrap();
}

#[test]
fn where_everything_fails_the_table_has_few_turns() {
    let mut table = table();
    let mut turns = 0;
    for ms in 1..=2_000 {
        let now = Timestamp(ms * 1_000);
        tells(&mut table, ms % 7, ms % ENDPOINTS, 3, now);
        turns += usize::from(table.services[&name()].wants_turn(now));
        table.publish(now);
    }
    // Each endpoint at most every half a second, and for what first failures do besides; otherwise it is nearly one for each word.
    assert!(turns <= 150, "{turns} in two seconds");
    let out = table.services[&name()].endpoints.values().filter(|e| !e.may_be_offered()).count();
    assert_eq!(out, 0, "a fault of all is nobody's");
}

#[test]
fn an_accusation_is_late_by_half_a_second_and_never_lost() {
    let mut table = table();
    // Everything fails, and has been looked at; then all but one are well again.
    for (at, client) in (0..ENDPOINTS).flat_map(|at| (0..3).map(move |client| (at, client))) {
        tells(&mut table, client, at, 1, Timestamp(1_000_000));
    }
    table.publish(Timestamp(1_000_000));
    let again = Timestamp(12_000_000);
    for (at, client) in (0..ENDPOINTS).flat_map(|at| (0..3).map(move |client| (at, client))) {
        tells(&mut table, client, at, 1, again);
    }
    table.publish(again);
    for client in 3..9 {
        tells(&mut table, client, 0, 100, again.after(Duration::from_millis(1)));
        for at in 1..ENDPOINTS {
            let id = ClientId::parse(&format!("web-{client}")).unwrap();
            let client = Client { id, peer: Peer(client), locality: Locality::unknown() };
            let outcomes = Outcomes { ok: 100, ..Outcomes::default() };
            let ended = Event::CallsEnded { client, service: name(), address: address(at), outcomes };
            table.apply(ended, again.after(Duration::from_millis(1))).unwrap();
        }
    }
    table.publish(again.after(Duration::from_millis(2)));
    let is_out = |table: &Table| table.services[&name()].endpoints[&address(0)].outlier.is_out();
    assert!(!is_out(&table));
    let due = again.after(LOOK);
    assert!(table.services[&name()].wants_turn(due), "nobody has to speak again");
    table.publish(due);
    assert!(is_out(&table));
}

#[test]
fn one_that_was_called_a_thousand_times_before_it_failed_is_out_at_once() {
    let mut table = table_of_thousands_of_good_calls();
    let now = Timestamp(11_500_000);
    (0..8).for_each(|client| tells(&mut table, client, 3, 1, now));
    table.publish(now);
    let service = &table.services[&name()];
    assert!(service.endpoints.values().all(|e| e.outlier.is_whole() == (e.spec.address != address(3))));
}

#[test]
fn a_fault_of_all_is_nobodys_from_its_first_moment_on() {
    let mut table = table_of_thousands_of_good_calls();
    // Word for word, and a turn after each.
    for (word, (client, at)) in (0..8).flat_map(|client| (0..ENDPOINTS).map(move |at| (client, at))).enumerate() {
        let now = Timestamp(11_500_000 + word as u64 * 5_000);
        tells(&mut table, client, at, 3, now);
        table.publish(now);
    }
    assert!(table.services[&name()].endpoints.values().all(|e| e.outlier.is_whole()));
}

#[test]
fn where_clients_put_half_of_all_aside_in_a_fault_of_all_nobody_is_out() {
    let mut table = table();
    for (second, client, at) in words(1..11) {
        let well = Outcomes { ok: 50, ..Outcomes::default() };
        tells_of(&mut table, client, at, well, Timestamp(second * 1_000_000));
    }
    // Each client has put another half aside, and tries it every four seconds.
    for (second, client, at) in words(11..30) {
        let is_aside = (at + 3 * client) % ENDPOINTS >= ENDPOINTS / 2;
        let failed = if is_aside { u64::from(second % 4 == 3) } else { 100 };
        let now = Timestamp(second * 1_000_000 + client * 250_000 + at);
        tells(&mut table, client, at, failed, now);
        table.publish(now);
        assert!(table.services[&name()].endpoints.values().all(|e| e.outlier.is_whole()), "{second} {client} {at}");
    }
}

/// Of three clients, of each endpoint, in each of these seconds.
fn words(seconds: std::ops::Range<u64>) -> impl Iterator<Item = (u64, u64, u64)> {
    let of = |second| (0..3).flat_map(move |client| (0..ENDPOINTS).map(move |at| (second, client, at)));
    seconds.flat_map(of)
}

#[test]
fn a_single_voice_does_not_say_that_others_fail_as_well() {
    let mut table = table();
    for (second, client, at) in words(1..11) {
        let bad = u64::from(at == 3) * 50;
        let outcomes = Outcomes { ok: 50 - bad, failed: bad, ..Outcomes::default() };
        tells_of(&mut table, client, at, outcomes, Timestamp(second * 1_000_000));
    }
    // The last word before anybody looks is that of one who says that all fail.
    let now = Timestamp(12_000_000);
    (0..ENDPOINTS).for_each(|at| tells(&mut table, 7, at, 1_000, now));
    table.publish(now);
    assert!(table.services[&name()].endpoints[&address(3)].outlier.is_out());
}

#[test]
fn clients_whose_calls_come_in_bursts_and_fail_everywhere_keep_nobody_in() {
    let mut table = table();
    for (second, client, at) in
        (2..20).flat_map(|second| (0..12).flat_map(move |c| (0..2).map(move |at| (second, c, at))))
    {
        // Two call in bursts, and give up too soon.
        let outcomes = match (client, at) {
            (10.., _) if second % 8 != 2 => continue,
            (10.., _) => Outcomes { failed: 300, ..Outcomes::default() },
            (_, 0) if second > 2 => Outcomes { failed: 20, ..Outcomes::default() },
            _ => Outcomes { ok: 20, ..Outcomes::default() },
        };
        let now = Timestamp(second * 1_000_000 + client * 10_000);
        tells_of(&mut table, client, at, outcomes, now);
        table.publish(now);
    }
    assert!(table.services[&name()].endpoints[&address(0)].outlier.ejections > 0);
}

#[test]
fn those_that_an_operator_took_out_excuse_nobody() {
    let mut table = table();
    for (_, client, at) in words(1..2) {
        let outcomes = Outcomes { ok: u64::from(at < 4) * 50, failed: u64::from(at >= 4) * 50, ..Outcomes::default() };
        tells_of(&mut table, client, at, outcomes, Timestamp(1_000_000));
    }
    for at in 4..ENDPOINTS {
        let word = Override {
            service: name(),
            scope: Scope::Address(address(at)),
            action: Action::Disable,
            reason: String::new(),
            actor: "ann".into(),
            set_at_unix_ms: at,
            replica: "lb-0".into(),
            expires_at_unix_ms: 0,
            remaining: None,
        };
        table.apply(Event::OverrideSet { word }, Timestamp(1_000_000)).unwrap();
    }
    for (_, client, at) in words(2..3).filter(|(.., at)| *at < 4) {
        let outcomes = Outcomes { ok: u64::from(at > 0) * 50, failed: u64::from(at == 0) * 100, ..Outcomes::default() };
        tells_of(&mut table, client, at, outcomes, Timestamp(2_000_000));
    }
    table.publish(Timestamp(2_000_000));
    assert!(!table.services[&name()].endpoints[&address(0)].outlier.is_whole());
}

/// Clients call endpoints at random until one is out, or 16 s long; from 12 s on calls fail of those below `bad`. They tell as
/// the SDK does: once a second, and of a first failure at once, five times a second at most. Returns who is out, and when.
fn first_out(clients: u64, calls_per_second: u64, bad: u64, seed: u64) -> Option<(u64, Timestamp)> {
    const STEP_MS: u64 = 10;
    let mut table = table();
    let mut untold = vec![BTreeMap::<u64, Outcomes>::new(); clients as usize];
    let mut told_ms: Vec<u64> = (0..clients).map(|client| hash::number(seed ^ client << 8) % 1_000).collect();
    for ms in (1_000..16_000).step_by(STEP_MS as usize) {
        let now = Timestamp(ms * 1_000);
        for client in 0..clients {
            let chance = hash::number(seed ^ (client << 8) ^ (ms << 20));
            let untold = &mut untold[client as usize];
            if chance % 1_000 < calls_per_second * STEP_MS {
                let at = chance / 1_000 % ENDPOINTS;
                let outcomes = untold.entry(at).or_default();
                *(if ms >= 12_000 && at < bad { &mut outcomes.failed } else { &mut outcomes.ok }) += 1;
            }
            let has_news = untold.values().any(|outcomes| outcomes.failed > 0);
            if ms - told_ms[client as usize].min(ms) >= if has_news { 200 } else { 1_000 } {
                told_ms[client as usize] = ms;
                std::mem::take(untold).into_iter().for_each(|(at, o)| tells_of(&mut table, client, at, o, now));
            }
        }
        table.publish(now);
        let is_out = |at: &u64| !table.services[&name()].endpoints[&address(*at)].outlier.is_whole();
        if let Some(at) = (0..ENDPOINTS).find(is_out) {
            return Some((at, now));
        }
    }
    None
}

#[test]
fn clients_that_call_seldom_find_the_one_that_fails_and_hardly_ever_blame_one_for_a_fault_of_all() {
    let mut blamed = 0;
    for (clients, calls_per_second) in [(40, 1), (20, 2), (10, 3), (5, 5)] {
        for seed in 0..10 {
            blamed += usize::from(first_out(clients, calls_per_second, ENDPOINTS, seed).is_some());
            let found = first_out(clients, calls_per_second, 1, seed).map(|(at, _)| at);
            assert_eq!(found, Some(0), "{clients} clients, {calls_per_second} calls a second, seed {seed}");
        }
    }
    // Of 800 such runs it is 33.
    assert!(blamed <= 2, "{blamed} of 40");
}

#[test]
fn where_clients_call_seldom_a_fault_of_all_is_nobodys_either() {
    let mut table = table_of_thousands_of_good_calls();
    // Nine have seen a failure there, and one elsewhere, each somewhere else; nobody has seen a call go well since.
    let now = Timestamp(11_500_000);
    for (client, other) in [0, 1, 2, 4, 5, 6, 7, 8, 9].into_iter().enumerate() {
        tells(&mut table, client as u64, 3, 1, now);
        tells(&mut table, client as u64, other, 1, now);
    }
    table.publish(now);
    assert!(table.services[&name()].endpoints.values().all(|e| e.outlier.is_whole()));
}

#[test]
fn where_two_endpoints_fail_neither_is_out_though_a_single_client_calls_one_of_them() {
    let mut table = table();
    for ms in (1_000..4_000).step_by(100) {
        let now = Timestamp(ms * 1_000);
        (0..3).for_each(|client| tells(&mut table, client, 0, 5, now));
        tells(&mut table, 3, 1, 5, now);
        table.publish(now);
    }
    assert!(table.services[&name()].endpoints.values().all(|e| e.outlier.is_whole()));
}

#[test]
fn a_voice_without_rows_of_its_own_keeps_nobody_in() {
    let mut table = table();
    for second in 1..8 {
        let now = Timestamp(second * 1_000_000);
        // Each endpoint has heard of others first, so that other owners have the rows in which the liar speaks.
        for (at, client) in (0..ENDPOINTS).flat_map(|at| (0..39).map(move |client| (at, (client + 4 * at) % 39))) {
            let outcomes =
                Outcomes { ok: u64::from(at > 0) * 20, failed: u64::from(at == 0) * 20, ..Outcomes::default() };
            tells_of(&mut table, client, at, outcomes, now);
        }
        (1..ENDPOINTS).for_each(|at| tells(&mut table, 99, at, 1_000_000, now));
        table.publish(now);
    }
    assert!(table.services[&name()].endpoints[&address(0)].outlier.ejections > 0);
}
