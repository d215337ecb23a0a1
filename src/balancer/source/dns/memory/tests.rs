use std::num::NonZeroU16;

use hickory_resolver::proto::rr::Name;
use lookaside_core::model::Locality;

use super::*;
use crate::source::dns::ask::Error;

const LIFE: Duration = Duration::from_secs(5);

fn server() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 53))
}

fn target(name: &str) -> Target {
    Target::new(&Name::from_ascii(name).unwrap()).unwrap()
}

fn dns(records: Records) -> Dns {
    Dns {
        name: "greeter.test".into(),
        records,
        servers: Vec::new(),
        search: false,
        refresh_min: Duration::from_secs(1),
        refresh_max: Duration::from_secs(30),
        locality: Locality::unknown(),
        priority: 0,
        tls_name: None,
    }
}

fn both() -> Records {
    Records::Addresses { v4: true, v6: true, port: NonZeroU16::new(80).unwrap(), weight: 100 }
}

fn found(addresses: &[&str]) -> Answer<IpAddr> {
    let records = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Answer::Found { records, lives: LIFE, from: server() }
}

fn empty<T>() -> Answer<T> {
    Answer::Empty { absence: Absence::NoRecords, lives: Some(2 * LIFE), from: server() }
}

fn failed<T>() -> Answer<T> {
    Answer::Failed(Error::TimedOut { server: server() })
}

fn addresses_of(heard: &Heard) -> Option<Vec<&str>> {
    match heard {
        Heard::Listed { endpoints, .. } => Some(endpoints.iter().map(|e| e.address.as_str()).collect()),
        Heard::Failed { .. } => None,
    }
}

/// One round about a name with two families.
fn round(memory: &mut Memory, v4: Answer<IpAddr>, v6: Answer<IpAddr>) -> Heard {
    let own = target("greeter.test");
    let addresses = BTreeMap::from([(own.clone(), Asked { v4: Some(v4), v6: Some(v6) })]);
    memory.hear(&dns(both()), &own, Round { srv: None, addresses })
}

#[test]
fn a_family_that_fails_keeps_what_it_had_and_one_that_is_empty_does_not() {
    let mut memory = Memory::default();
    let heard = round(&mut memory, found(&["10.0.0.1"]), found(&["::1"]));
    assert_eq!(addresses_of(&heard), Some(vec!["10.0.0.1:80", "[::1]:80"]));
    let heard = round(&mut memory, found(&["10.0.0.2"]), failed());
    assert_eq!(addresses_of(&heard), Some(vec!["10.0.0.2:80", "[::1]:80"]));
    assert!(matches!(heard, Heard::Listed { detail, .. } if detail.contains("does not answer")));
    let heard = round(&mut memory, found(&["10.0.0.2"]), empty());
    assert_eq!(addresses_of(&heard), Some(vec!["10.0.0.2:80"]));
    let heard = round(&mut memory, empty(), failed());
    assert_eq!(addresses_of(&heard), None, "what could not be asked for may be all there is");
}

#[test]
fn a_family_that_nobody_knows_of_makes_a_first_listing_wait() {
    let mut memory = Memory::default();
    for _ in 0..DNS_EMPTY_TRIES {
        assert_eq!(addresses_of(&round(&mut memory, failed(), found(&["::1"]))), None);
    }
    assert_eq!(addresses_of(&round(&mut memory, failed(), found(&["::1"]))), Some(vec!["[::1]:80"]));
}

/// A memory that begins while the table has these.
fn after(addresses: &[&str]) -> Memory {
    let spec = |address: &&str| EndpointSpec::at(Address::parse(address).unwrap());
    Memory::after(addresses.iter().map(spec))
}

#[test]
fn what_the_table_had_stays_until_all_that_was_asked_for_is_known() {
    let mut memory = after(&["10.0.0.1:80", "10.0.0.2:80", "[::1]:80"]);
    for _ in 0..DNS_EMPTY_TRIES {
        assert_eq!(addresses_of(&round(&mut memory, failed(), found(&["::1"]))), None);
    }
    let heard = round(&mut memory, failed(), found(&["::2"]));
    assert_eq!(addresses_of(&heard), Some(vec!["[::2]:80", "10.0.0.1:80", "10.0.0.2:80"]));
    assert!(matches!(heard, Heard::Listed { detail, .. } if detail.contains("; 2 from before stay")));
    let heard = round(&mut memory, found(&["10.0.0.2"]), found(&["::2"]));
    assert_eq!(addresses_of(&heard), Some(vec!["10.0.0.2:80", "[::2]:80"]));
    let mut memory = after(&["10.0.0.1:80"]);
    assert_eq!(addresses_of(&round(&mut memory, empty(), found(&["::1"]))), Some(vec!["[::1]:80"]), "it is known");
}

#[test]
fn absences_count_only_in_a_row() {
    let mut memory = Memory::default();
    round(&mut memory, found(&["10.0.0.1"]), empty());
    for _ in 1..DNS_EMPTY_TRIES {
        assert_eq!(addresses_of(&round(&mut memory, empty(), empty())), None);
    }
    assert_eq!(addresses_of(&round(&mut memory, failed(), failed())), None);
    for _ in 1..DNS_EMPTY_TRIES {
        let heard = round(&mut memory, empty(), empty());
        assert!(matches!(heard, Heard::Failed { lives: Some(lives), .. } if lives == 2 * LIFE), "{heard:?}");
    }
    assert_eq!(addresses_of(&round(&mut memory, empty(), empty())), Some(vec![]));
    assert_eq!(addresses_of(&round(&mut memory, empty(), empty())), Some(vec![]), "as long as that is so");
    assert_eq!(addresses_of(&round(&mut memory, found(&["10.0.0.3"]), empty())), Some(vec!["10.0.0.3:80"]));
}

/// One round about SRV records with these targets, of which these answer.
fn srv_round(memory: &mut Memory, srv: Answer<Srv>, answers: &[(&str, Answer<IpAddr>)]) -> Heard {
    let asked = |answer: &Answer<IpAddr>| Asked { v4: Some(answer.clone()), v6: None };
    let addresses = answers.iter().map(|(name, answer)| (target(name), asked(answer))).collect();
    memory.hear(&dns(Records::Srv), &target("greeter.test"), Round { srv: Some(srv), addresses })
}

fn targets(names: &[&str]) -> Answer<Srv> {
    let srv = |name: &&str| Srv { priority: 0, weight: 1, port: 80, target: target(name) };
    Answer::Found { records: names.iter().map(srv).collect(), lives: LIFE, from: server() }
}

#[test]
fn a_first_listing_waits_for_all_targets_but_not_for_ever() {
    let mut memory = Memory::default();
    let answers = [("a.test", found(&["10.0.0.1"])), ("b.test", failed())];
    for _ in 0..DNS_EMPTY_TRIES {
        assert_eq!(addresses_of(&srv_round(&mut memory, targets(&["a.test", "b.test"]), &answers)), None);
    }
    let heard = srv_round(&mut memory, targets(&["a.test", "b.test"]), &answers);
    assert_eq!(addresses_of(&heard), Some(vec!["10.0.0.1:80"]));
    let mut memory = after(&["10.0.0.1:80", "10.0.0.2:80"]);
    for _ in 0..DNS_EMPTY_TRIES {
        srv_round(&mut memory, targets(&["a.test", "b.test"]), &answers);
    }
    let heard = srv_round(&mut memory, targets(&["a.test", "b.test"]), &answers);
    assert_eq!(addresses_of(&heard), Some(vec!["10.0.0.1:80", "10.0.0.2:80"]), "it may be the other one's");
    // One that was named since is known: it goes like any other.
    let answers = [("a.test", found(&["10.0.0.2"])), ("b.test", failed())];
    let heard = srv_round(&mut memory, targets(&["a.test", "b.test"]), &answers);
    assert_eq!(addresses_of(&heard), Some(vec!["10.0.0.2:80"]));
}

#[test]
fn targets_that_all_fail_leave_the_listing_alone_and_those_that_are_gone_empty_it() {
    let mut memory = Memory::default();
    let names = ["a.test", "b.test"];
    let all = |answer: Answer<IpAddr>| [("a.test", answer.clone()), ("b.test", answer)];
    srv_round(&mut memory, targets(&names), &all(found(&["10.0.0.1"])));
    assert_eq!(addresses_of(&srv_round(&mut memory, targets(&names), &all(failed()))), None);
    assert_eq!(addresses_of(&srv_round(&mut memory, targets(&["c.test"]), &[("c.test", failed())])), None);
    srv_round(&mut memory, targets(&names), &all(found(&["10.0.0.1"])));
    for _ in 1..DNS_EMPTY_TRIES {
        assert_eq!(addresses_of(&srv_round(&mut memory, targets(&names), &all(empty()))), None);
    }
    assert_eq!(addresses_of(&srv_round(&mut memory, targets(&names), &all(empty()))), Some(vec![]));
}

#[test]
fn a_name_without_srv_records_is_doubted_as_well() {
    let mut memory = Memory::default();
    srv_round(&mut memory, targets(&["a.test"]), &[("a.test", found(&["10.0.0.1"]))]);
    for _ in 1..DNS_EMPTY_TRIES {
        assert_eq!(addresses_of(&srv_round(&mut memory, empty(), &[])), None);
    }
    assert_eq!(addresses_of(&srv_round(&mut memory, failed(), &[])), None);
    for _ in 1..DNS_EMPTY_TRIES {
        assert_eq!(addresses_of(&srv_round(&mut memory, empty(), &[])), None);
    }
    assert_eq!(addresses_of(&srv_round(&mut memory, empty(), &[])), Some(vec![]));
    let answers = [("a.test", failed()), ("b.test", found(&["10.0.0.2"]))];
    let heard = srv_round(&mut memory, targets(&["a.test", "b.test"]), &answers);
    assert_eq!(addresses_of(&heard), Some(vec!["10.0.0.1:80", "10.0.0.2:80"]), "what it had is remembered");
}
